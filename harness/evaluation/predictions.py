"""The predictions file of a suite: its items, written as they are measured.

`<suite>-stage<k>.jsonl` has one JSON line per item, in the suite's order, with the item's own `scores`. During an
evaluation each line has the fields that were just measured of one item, and is flushed at once. Lines with the same
`id` are merged. When the evaluation is complete, the file is replaced atomically. Each measurement of an item has a
checksum in `sha256`: fields that do not match it are damaged or were edited, and are measured again.

`<suite>-stage<k>.header.json` beside it has everything that the numbers depend on. Files of format 1 had the header as
their first line. They can be read, but a new evaluation measures their items again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from harness.errors import HarnessError
from harness.types import Example, Item, Message
from harness.utils.atomic_write import atomic_write
from harness.utils.json_dataclass import build_dataclass
from harness.utils.json_depth import load_json
from harness.utils.json_files import json_safe, write_json

PREDICTIONS_FORMAT = 2
DIGEST_LENGTH = 32
"""Hexadecimal digits of the checksum of a measurement."""
_TUPLE_FIELDS = ("choices", "choice_lls", "more_answers", "reference_calls")
_ITEM_FIELDS = tuple(field.name for field in dataclasses.fields(Item) if field.name != "computed")


def format_prompt_for_display(example: Example) -> str:
    """Return the prompt for display, without a template: a single message, or the turns with their roles."""
    *prompt_messages, _ = example.messages
    if len(prompt_messages) == 1 and prompt_messages[0].role == "user":
        return _message_text(prompt_messages[0])
    return "\n".join(f"{message.role}: {_message_text(message)}" for message in prompt_messages)


def item_from_example(example: Example, group_column: str | None = None, slice_columns: Sequence[str] = ()) -> Item:
    """Return the item of a row before anything is measured; columns as in `Suite.group` and `Suite.slice_by`."""
    response = example.messages[-1].content
    gold = example.choices.index(response) if response in example.choices else None
    prompt = format_prompt_for_display(example)
    group = dict(example.groups).get(group_column) if group_column is not None else None
    slices = tuple((column, value) for column, value in example.groups if column in slice_columns)
    calls = tuple({"name": call.name, "arguments": call.arguments} for call in example.messages[-1].tool_calls)
    return Item(
        example.id,
        prompt,
        response,
        choices=example.choices,
        gold=gold,
        group=group,
        slices=slices,
        data=example.data,
        reference_calls=calls,
    )


def _message_text(message: Message) -> str:
    return f"{message.content}\n\n{message.input}" if message.input else message.content


def predictions_path(folder: Path, suite: str, stage: int) -> Path:
    """Return the path of a suite's predictions file after a stage."""
    return Path(folder) / f"{suite}-stage{stage}.jsonl"


def header_path(file: Path) -> Path:
    """Return the path of the header of a predictions file."""
    return file.with_suffix(".header.json")


def stored_files(folder: Path, stage: int) -> list[Path]:
    """Return the predictions files of a stage and their headers, to be copied to another folder."""
    files = sorted(folder.glob(f"*-stage{stage}.jsonl"))
    return [path for file in files for path in (file, header_path(file)) if path.is_file()]


@dataclass(frozen=True)
class PredictionsFile:
    """The contents of a predictions file.

    Attributes:
        header: `suite`, `stage`, `items` (number of items of the suite), `identity` and `settings`.
        items: The items; of an interrupted evaluation, those that were measured.
        complete: Whether the evaluation is complete.
        scores: Item id -> score name -> the score of the item alone; None is not a number. Files of format 1 have none.
        computed: Item id -> metric name -> the value that the metric computed, see `metric_values`.
    """

    header: Mapping[str, Any]
    items: tuple[Item, ...]
    complete: bool
    scores: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    computed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def load_predictions(file: Path) -> PredictionsFile:
    """Load a predictions file with its header, also one of an interrupted evaluation.

    Raises:
        HarnessError: The file is not a predictions file, has no header, or an item does not match its checksum.
    """
    header, records, _ = _read_records(Path(file))
    if header is None:
        what = f"is not a predictions file: there is no {header_path(Path(file)).name} beside it"
        raise HarnessError(str(file), what, "evaluate the suite again: harness evaluate RUN")
    for item_id, record in records.items():
        damaged = next((name for name in record["sha256"] if not _is_intact(item_id, record, name)), None)
        if damaged is not None:
            what = f"the stored {damaged} of the item {item_id[:40]!r} does not match its checksum"
            raise HarnessError(str(file), what, "restore the file, or evaluate again: harness evaluate RUN")
    return PredictionsFile(
        header,
        _build_items(file, records),
        bool(header.get("whole")),
        {item_id: record["scores"] for item_id, record in records.items() if record.get("scores")},
        {item_id: record["computed"] for item_id, record in records.items() if record.get("computed")},
    )


def load_items(file: Path) -> tuple[Item, ...]:
    """Load the items of a predictions file, without its header.

    Raises:
        HarnessError: An item is damaged.
    """
    return _build_items(file, _read_records(file)[1])


def load_item_scores(file: Path) -> dict[str, Mapping[str, float | None]]:
    """Return item id -> score name -> the score of the item alone; {} for a file of format 1."""
    return {item_id: record["scores"] for item_id, record in _read_records(file)[1].items() if record.get("scores")}


class PredictionsWriter:
    """The measured fields of a suite's items, and the file that they are written to.

    Attributes:
        changed_keys: Names of the fingerprints in which an existing file differs, so that it could not be used.
    """

    def __init__(
        self,
        path: Path | None = None,
        stream: IO[bytes] | None = None,
        header: dict[str, Any] | None = None,
        records: dict[str, dict[str, Any]] | None = None,
        changed_keys: tuple[str, ...] = (),
    ) -> None:
        """Create the writer.

        Args:
            path: Path of the file; None if nothing is written.
            stream: The open file.
            header: Header of the file.
            records: Item id -> stored fields.
            changed_keys: See the attribute.
        """
        self._path, self._stream, self._header, self._records = path, stream, header or {}, records or {}
        self.changed_keys = changed_keys

    @property
    def is_writing(self) -> bool:
        """Whether there is a file."""
        return self._stream is not None

    def start_measurement(self, measurement_type: str, settings: Mapping[str, Any]) -> None:
        """Write the settings of a measurement into the header."""
        self._header["settings"][measurement_type] = dict(settings)
        self.write_header()

    def mark_as_cached(self, measurement_type: str) -> None:
        """Write into the header that a measurement comes from the cache of base models."""
        self._header["cached"] = sorted({*self._header.get("cached", ()), measurement_type})
        self.write_header()

    @property
    def is_from_cache(self) -> bool:
        """Whether a measurement comes from the cache of base models."""
        return bool(self._header.get("cached"))

    def find_stored_fields(self, item_id: str, measurement_type: str, request_key: str) -> dict[str, Any] | None:
        """Return the stored fields of an item's measurement; None if there are none for this request."""
        record = self._records.get(item_id)
        if record is None or record["keys"].get(measurement_type) != request_key:
            return None
        if not _is_intact(item_id, record, measurement_type):
            return None
        return {name: tuple_if_sequence(name, record[name]) for name in record["found"][measurement_type]}

    def add_fields(self, item: Item, measurement_type: str, request_key: str, fields: Mapping[str, Any]) -> None:
        """Write the fields of an item's measurement."""
        record: dict[str, Any] = {"id": item.id}
        if item.id not in self._records:
            record |= {"prompt": item.prompt, "reference": item.reference}
        record |= {
            **fields,
            "keys": {measurement_type: request_key},
            "found": {measurement_type: sorted(fields)},
            "sha256": {measurement_type: _fields_digest(item.id, measurement_type, fields)},
        }
        _merge_record(self._records, record)
        self._write(record)

    def finalize(self, items: Sequence[Item], scores: Mapping[str, Sequence[float]] | None = None) -> None:
        """Replace the file atomically by one line per item, and mark the header as complete.

        Args:
            items: The items of the suite.
            scores: Score name -> the score of each item alone, in the order of `items`.
        """
        if self._path is None:
            return
        common = {"suite": self._header["suite"], "stage": self._header["stage"]}
        with atomic_write(self._path) as draft, draft.open("wb") as stream:
            for index, item in enumerate(items):
                record = {"id": item.id, **common, **{name: getattr(item, name) for name in _ITEM_FIELDS}}
                record |= self._records.get(item.id, {}) | {"prompt": item.prompt, "reference": item.reference}
                record["scores"] = json_safe({name: values[index] for name, values in (scores or {}).items()})
                stream.write(_json_line(record))
        self._header["whole"] = True
        self.write_header()

    def write_header(self) -> None:
        """Write the header to its own file."""
        if self._path is not None:
            write_json(header_path(self._path), self._header, indent=2)

    def _write(self, record: Mapping[str, Any]) -> None:
        if self._stream is not None:
            self._stream.write(_json_line(record))
            self._stream.flush()


@contextmanager
def open_predictions(
    folder: Path | None, suite: str, stage: int, items: Sequence[Item], fingerprint: Mapping[str, str]
) -> Iterator[PredictionsWriter]:
    """Open a suite's predictions file to measure its items. Call `PredictionsWriter.finalize` after the context.

    Stored predictions can be used again if the existing file has the same fingerprint. Otherwise the file is started
    again. An incomplete line, and everything after it, is dropped.

    Args:
        folder: Folder of the file; None: nothing is written.
        suite: Name of the suite.
        stage: Index of the stage.
        items: The items of the suite, updated by the caller within the context.
        fingerprint: Of model, tokenizer and template.
    """
    if folder is None:
        yield PredictionsWriter()
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = predictions_path(folder, suite, stage)
    stored_header, records, valid_bytes = _read_records(path) if path.is_file() else (None, {}, 0)
    changed_keys: tuple[str, ...] = ()
    if stored_header is not None:
        stored = {"format": stored_header.get("format"), **stored_header.get("identity", {})}
        current = {"format": PREDICTIONS_FORMAT, **fingerprint}
        names = sorted({*stored, *current})
        changed_keys = tuple(name for name in names if stored.get(name) != current.get(name))
    header: dict[str, Any] = {
        "format": PREDICTIONS_FORMAT,
        "suite": suite,
        "stage": stage,
        "items": len(items),
        "identity": dict(fingerprint),
        "settings": {},
        "whole": False,
    }
    resuming = stored_header is not None and not changed_keys
    if stored_header is not None and resuming:
        header["settings"] = dict(stored_header["settings"])
        header |= {"cached": stored_header["cached"]} if "cached" in stored_header else {}
    with path.open("r+b" if resuming else "wb") as stream:
        if resuming:
            stream.truncate(valid_bytes)
            stream.seek(valid_bytes)
        file = PredictionsWriter(path, stream, header, records if resuming else {}, changed_keys)
        file.write_header()
        yield file


def _read_header(path: Path) -> dict[str, Any] | None:
    try:
        header = load_json(header_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_valid = isinstance(header, dict) and all(isinstance(header.get(key), dict) for key in ("identity", "settings"))
    return header if is_valid else None


def _read_records(path: Path) -> tuple[dict[str, Any] | None, dict[str, dict[str, Any]], int]:
    """Return the header, the records by id, and the number of bytes up to the first invalid line."""
    header = _read_header(path)
    records: dict[str, dict[str, Any]] = {}
    valid_bytes = 0
    with path.open("rb") as file:
        for line in file:
            try:
                record = load_json(line) if line.endswith(b"\n") else None
            except ValueError:
                record = None
            if not isinstance(record, dict) or not (record.keys() & {"header", "id"}):
                break
            if "header" in record:  # of format 1
                header = header or record["header"]
            elif isinstance(record["id"], str):
                _merge_record(records, record)
            valid_bytes += len(line)
    return header, records, valid_bytes


def _merge_record(records: dict[str, dict[str, Any]], new: Mapping[str, Any]) -> None:
    record = records.setdefault(new["id"], {})
    names = ("keys", "found", "sha256", "computed")
    nested = {name: {**(record.get(name) or {}), **_object_or_empty(new.get(name))} for name in names}
    record.update({**new, **nested})


def _object_or_empty(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_intact(item_id: str, record: Mapping[str, Any], measurement_type: str) -> bool:
    """Return whether the fields of a measurement match its checksum; False without one."""
    try:
        fields = {name: record[name] for name in record["found"][measurement_type]}
        return bool(record["sha256"][measurement_type] == _fields_digest(item_id, measurement_type, fields))
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


def _fields_digest(item_id: str, measurement_type: str, fields: Mapping[str, Any]) -> str:
    """Return the checksum of the fields of one measurement of an item; of a metric's value, that value alone."""
    if measurement_type.startswith("metric:"):
        name = measurement_type.removeprefix("metric:")
        fields = {"computed": {name: fields["computed"][name]}}
    text = json.dumps([item_id, measurement_type, fields], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]


def _build_items(file: Path, records: Mapping[str, Mapping[str, Any]]) -> tuple[Item, ...]:
    try:
        return tuple(map(_item_from_record, records.values()))
    except (TypeError, ValueError) as error:
        what = f"an item is damaged: {error}"
        raise HarnessError(str(file), what, "restore the file, or evaluate again: harness evaluate RUN") from error


def _item_from_record(record: Mapping[str, Any]) -> Item:
    names = [name for name in _ITEM_FIELDS if name in record]
    return build_dataclass(Item, {name: tuple_if_sequence(name, record[name]) for name in names})


def tuple_if_sequence(name: str, value: Any) -> Any:
    """Return a field of an item as `Item` has it: JSON has lists in place of tuples."""
    if name == "slices":
        return tuple((column, slice_value) for column, slice_value in value)
    return tuple(value) if name in _TUPLE_FIELDS and value is not None else value


def _json_line(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode(errors="backslashreplace")
