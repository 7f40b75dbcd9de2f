"""The items of a suite: how they read, and the file that they are written to as they finish.

`<suite>-stage<k>.jsonl` is JSON lines. The first is a header, `{"header": {...}}`: what the numbers were made with.
While an evaluation goes on, each further line is what was found of one item just then, flushed at once; lines of one
`id` add up. When it is done the file is written anew, whole or not at all, with one line an item in the suite's order.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from harness.errors import HarnessError
from harness.types import Example, Item, Message
from harness.utils.json_depth import load_json

PREDICTIONS_FORMAT = 1
_TUPLES = ("choices", "choice_lls")
_FIELDS = tuple(field.name for field in dataclasses.fields(Item))


def format_prompt_for_display(example: Example) -> str:
    """What was asked, to be read by a person: the message alone, or the turns with their roles; no template."""
    *before, _ = example.messages
    if len(before) == 1 and before[0].role == "user":
        return _message_text(before[0])
    return "\n".join(f"{message.role}: {_message_text(message)}" for message in before)


def item_from_example(example: Example) -> Item:
    """The item of a row before anything is asked of the model."""
    response = example.messages[-1].content
    gold = example.choices.index(response) if response in example.choices else None
    return Item(example.id, format_prompt_for_display(example), response, choices=example.choices, gold=gold)


def _message_text(message: Message) -> str:
    return f"{message.content}\n\n{message.input}" if message.input else message.content


def predictions_path(folder: Path, suite: str, stage: int) -> Path:
    """Where the items of a suite after a stage are."""
    return Path(folder) / f"{suite}-stage{stage}.jsonl"


@dataclass(frozen=True)
class PredictionsFile:
    """A file of items. header: `suite`, `stage`, `items` (how many the suite has), `identity` and `settings`.

    complete: whether the evaluation came to its end. Where it did not, `items` are those that it came to.
    """

    header: Mapping[str, Any]
    items: tuple[Item, ...]
    complete: bool


def load_predictions(file: Path) -> PredictionsFile:
    """The items of a file, also of one whose evaluation was cut off. Needs no model.

    Raises HarnessError when it is no file of items.
    """
    header, records, _ = _read_records(Path(file))
    if header is None:
        raise HarnessError(str(file), "is no file of evaluated items", "evaluate the suite first: harness run SPEC")
    return PredictionsFile(
        header, tuple(_item_from_record(record) for record in records.values()), bool(header.get("whole"))
    )


class PredictionsWriter:
    """What is known of a suite's items, and the file that it is kept in. stream: None where nothing is kept.

    changed_keys: in what a file that was there differs from what is asked now, so that nothing of it could be used.
    """

    def __init__(
        self,
        stream: IO[bytes] | None = None,
        header: dict[str, Any] | None = None,
        records: dict[str, dict[str, Any]] | None = None,
        changed_keys: tuple[str, ...] = (),
    ) -> None:
        self._stream, self._header, self._records = stream, header or {}, records or {}
        self.changed_keys = changed_keys

    @property
    def is_writing(self) -> bool:
        """Whether anything is written."""
        return self._stream is not None

    def start_measurement(self, measurement_type: str, settings: Mapping[str, Any]) -> None:
        """Note in the header with what settings `measurement_type` is read from here on."""
        self._header["settings"][measurement_type] = dict(settings)
        self._write({"header": self._header})

    def find_stored_fields(self, item_id: str, measurement_type: str, request_key: str) -> dict[str, Any] | None:
        """The fields that `measurement_type` found for the item when it was asked just so; None when it was not."""
        record = self._records.get(item_id)
        if record is None or record["keys"].get(measurement_type) != request_key:
            return None
        return {name: _tuple_if_sequence_field(name, record[name]) for name in record["found"][measurement_type]}

    def add_fields(self, item: Item, measurement_type: str, request_key: str, fields: Mapping[str, Any]) -> None:
        """Keep what `measurement_type` found for an item."""
        record: dict[str, Any] = {"id": item.id}
        if item.id not in self._records:
            record |= {"prompt": item.prompt, "reference": item.reference}
        record |= {**fields, "keys": {measurement_type: request_key}, "found": {measurement_type: sorted(fields)}}
        _merge_record(self._records, record)
        self._write(record)

    def finalize(self, path: Path, items: Sequence[Item]) -> None:
        """Write the file anew, whole: a line an item."""
        draft = path.with_suffix(f".draft-{os.getpid()}")
        common = {"suite": self._header["suite"], "stage": self._header["stage"]}
        with draft.open("wb") as stream:
            stream.write(_json_line({"header": {**self._header, "whole": True}}))
            for item in items:
                plain = {name: getattr(item, name) for name in _FIELDS}
                stream.write(_json_line({"id": item.id, **common, **plain, **self._records.get(item.id, {})}))
        draft.replace(path)

    def _write(self, record: Mapping[str, Any]) -> None:
        if self._stream is not None:
            self._stream.write(_json_line(record))
            self._stream.flush()


@contextmanager
def open_predictions(
    folder: Path | None, suite: str, stage: int, items: Sequence[Item], fingerprint: Mapping[str, str]
) -> Iterator[PredictionsWriter]:
    """The file of a suite's items after a stage; when the context ends well, with the items as they are then.

    fingerprint: of model, tokenizer and template. What a file that is there holds of the same fingerprint can be found
    in it; one of another is begun anew, and a line that was not written whole is dropped with what follows it. Nothing
    is written where there is no folder.
    """
    if folder is None:
        yield PredictionsWriter()
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = predictions_path(folder, suite, stage)
    old, records, sound = _read_records(path) if path.is_file() else (None, {}, 0)
    header = {
        "format": PREDICTIONS_FORMAT,
        "suite": suite,
        "stage": stage,
        "items": len(items),
        "identity": dict(fingerprint),
    }
    aside: tuple[str, ...] = ()
    if old is not None:
        before = {"format": old.get("format"), **old.get("identity", {})}
        now = {"format": PREDICTIONS_FORMAT, **fingerprint}
        aside = tuple(name for name in sorted({*before, *now}) if before.get(name) != now.get(name))
    going_on = old is not None and not aside
    header |= {"settings": dict(old["settings"]) if old is not None and going_on else {}, "whole": False}
    with path.open("r+b" if going_on else "wb") as stream:
        if going_on:
            stream.truncate(sound)
            stream.seek(sound)
        file = PredictionsWriter(stream, header, records if going_on else {}, aside)
        yield file
    file.finalize(path, items)


def _read_records(path: Path) -> tuple[dict[str, Any] | None, dict[str, dict[str, Any]], int]:
    """The newest header, the records by id, and how many bytes of the file are sound."""
    header: dict[str, Any] | None = None
    records: dict[str, dict[str, Any]] = {}
    sound = 0
    with path.open("rb") as file:
        for line in file:
            try:
                record = load_json(line) if line.endswith(b"\n") else None
            except ValueError:
                record = None
            if not isinstance(record, dict) or not (record.keys() & {"header", "id"}):
                break
            if "header" in record:
                header = record["header"]
            else:
                _merge_record(records, record)
            sound += len(line)
    return (header, records, sound) if header is not None else (None, {}, 0)


def _merge_record(records: dict[str, dict[str, Any]], new: Mapping[str, Any]) -> None:
    known = records.setdefault(new["id"], {})
    nested = {name: {**known.get(name, {}), **new.get(name, {})} for name in ("keys", "found")}
    known.update({**new, **nested})


def _item_from_record(record: Mapping[str, Any]) -> Item:
    return Item(**{name: _tuple_if_sequence_field(name, record[name]) for name in _FIELDS if name in record})


def _tuple_if_sequence_field(name: str, value: Any) -> Any:
    return tuple(value) if name in _TUPLES and value is not None else value


def _json_line(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode()
