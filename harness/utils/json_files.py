"""Read and write JSON files: strict decoding, atomic writing, and null for numbers that JSON cannot express."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from harness.types import Evaluation, Score
from harness.utils.atomic_write import atomic_write
from harness.utils.json_depth import load_json, raw_decode_json


class StrictJsonDecoder:
    """Decodes JSON text and detects objects that name a key twice.

    Attributes:
        duplicate_key: A key that an object of the text decoded last names twice; None when there is none.
    """

    def __init__(self) -> None:
        self.duplicate_key: str | None = None
        self._decoder = json.JSONDecoder(object_pairs_hook=self._build_object)

    def decode(self, text: str) -> Any:
        """Return the value of a text. Raises what `load_json` raises."""
        self.duplicate_key = None
        return load_json(text, self._decoder)

    def raw_decode(self, text: str, start: int) -> tuple[Any, int]:
        """Return the value that begins at index `start`, and the index where it ends.

        Raises what `raw_decode_json` raises.
        """
        self.duplicate_key = None
        return raw_decode_json(text, start, self._decoder)

    def _build_object(self, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            unique_keys = iter(result)  # in the order in which each key is named first
            self.duplicate_key = next(key for key, _ in pairs if key != next(unique_keys, None))
        return result


def duplicate_key_error(key: str) -> tuple[str, str]:
    """Return what is wrong with an object that names a key twice, and the remedy."""
    return f"names the key {key[:40]!r} twice in one object", "name it once"


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    r"""Return the objects in the complete lines of a JSON Lines file; none when the file does not exist.

    A last line without a newline was cut off while it was written. It is ignored, like every line that is not a JSON
    object. Only `\n` ends a line: JSON strings may hold other Unicode line separators.
    """
    records = []
    for line in path.read_bytes().split(b"\n")[:-1] if path.is_file() else ():
        try:
            record = load_json(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def write_scores(evaluations: Sequence[tuple[Evaluation, ...]], stages: Sequence[str], folder: str | Path) -> None:
    """Write every score with its signature and per-item statistics to `scores.json`, by stage and suite.

    The statistics are in the order of `items`, the ids of the suite's items. So are `groups` and `slices`, if
    the suite has them.

    Args:
        evaluations: The evaluations of each stage; index 0: before the first one.
        stages: The name of each of them.
        folder: The folder that gets `scores.json`.
    """
    stage_entries = [
        {
            "stage": stage_index,
            "name": name,
            "suites": evaluations_as_dict(stage_evaluations),
        }
        for stage_index, (name, stage_evaluations) in enumerate(zip(stages, evaluations, strict=False))
    ]
    write_json(Path(folder) / "scores.json", {"stages": stage_entries})


def evaluations_as_dict(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """Return suite -> its items and scores, with the statistics of every item."""
    return {
        evaluation.suite: {
            "items": [item.id for item in evaluation.items],
            **_groups_as_dict(evaluation),
            "scores": [_score_as_dict(score) for score in evaluation.scores],
        }
        for evaluation in evaluations
    }


def scores_as_dicts(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Return every score of the evaluations with its interval, without the statistics of its items."""
    return [
        {
            "suite": evaluation.suite,
            **_fields_except(score, ("suite", "statistics")),
        }
        for evaluation in evaluations
        for score in evaluation.scores
    ]


def write_json(file: Path, value: Any, indent: int | None = None) -> None:
    """Write the value to the file, see `atomic_write`; numbers that are not finite become null."""
    text = json.dumps(json_safe(value), indent=indent, ensure_ascii=False, allow_nan=False)
    with atomic_write(file) as draft:
        # A model can write a lone surrogate: it becomes the escape that JSON has for it.
        draft.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def json_safe(value: Any) -> Any:
    """Return the value with string keys, lists for tuples, and None for numbers that are not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_safe(element) for key, element in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(element) for element in value]
    return value


def _groups_as_dict(evaluation: Evaluation) -> dict[str, Any]:
    groups = [item.group for item in evaluation.items]
    slices = [dict(item.slices) for item in evaluation.items]
    return {
        **({} if None in groups or not groups else {"groups": groups}),
        **({"slices": slices} if any(slices) else {}),
    }


def _score_as_dict(score: Score) -> dict[str, Any]:
    return _fields_except(score, ("stage", "suite"))


def _fields_except(score: Score, excluded: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a score; `asdict` would copy the statistics of every item."""
    return {field.name: getattr(score, field.name) for field in fields(score) if field.name not in excluded}
