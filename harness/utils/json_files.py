"""Scores and reports as JSON files: whole or not there, and without what JSON has no word for."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.types import Evaluation, Score
from harness.utils.json_depth import load_json, raw_decode_json


class StrictJsonDecoder:
    """Reads JSON texts. twice: a key that some object of the text read last names twice; None when there is none."""

    def __init__(self) -> None:
        self.duplicate_key: str | None = None
        self._decoder = json.JSONDecoder(object_pairs_hook=self._build_object)

    def decode(self, text: str) -> Any:
        """The value of a text. Raises what `load_json` raises."""
        self.duplicate_key = None
        return load_json(text, self._decoder)

    def raw_decode(self, text: str, at: int) -> tuple[Any, int]:
        """The value that begins at a place of a text, and where it ends. Raises what `raw_decode_json` raises."""
        self.duplicate_key = None
        return raw_decode_json(text, at, self._decoder)

    def _build_object(self, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            left = iter(made)  # in the order of the first time that each is named
            self.duplicate_key = next(name for name, _ in pairs if name != next(left, None))
        return made


def duplicate_key_error(key: str) -> tuple[str, str]:
    """What is wrong with an object that names a key twice, and the remedy."""
    return f"names the key {key[:40]!r} twice in one object", "name it once"


def write_scores(evaluations: Sequence[tuple[Evaluation, ...]], stages: Sequence[str], folder: str | Path) -> None:
    """Write every score with its signature and per-item statistics to `scores.json`, by stage and suite.

    The statistics stand in the order of `items`, the ids of the suite's items.
    """
    written = [
        {
            "stage": index,
            "name": name,
            "suites": {
                one.suite: {
                    "items": [item.id for item in one.items],
                    "scores": [_score_as_dict(score) for score in one.scores],
                }
                for one in stage
            },
        }
        for index, (name, stage) in enumerate(zip(stages, evaluations, strict=False))
    ]
    write_json(Path(folder) / "scores.json", {"stages": written})


def scores_as_dicts(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Every score of some evaluations with its interval, without the statistics of its items."""
    return [
        {
            "suite": one.suite,
            **{key: value for key, value in asdict(score).items() if key not in ("suite", "statistics")},
        }
        for one in evaluations
        for score in one.scores
    ]


def write_json(file: Path, value: Any, indent: int | None = None) -> None:
    """Write the value to the file; what is no finite number becomes null.

    A crash or a full disk in the middle leaves the old file, or none, and never half of one.
    """
    text = json.dumps(json_safe(value), indent=indent, ensure_ascii=False, allow_nan=False)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        # A lone surrogate, which a model can write, becomes the escape that JSON has for it.
        draft.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read the complete lines of a JSONL file.

    The last line may be incomplete, because the writer was interrupted: it is ignored, like every line that is not a
    JSON object.
    """
    records = []
    for line in path.read_bytes().decode("utf-8", errors="replace").split("\n")[:-1]:
        try:
            record = load_json(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def json_safe(value: Any) -> Any:
    """The value for JSON: mappings, lists, and None for what is no finite number."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_safe(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(one) for one in value]
    return value


def _score_as_dict(score: Score) -> dict[str, Any]:
    return {key: value for key, value in asdict(score).items() if key not in ("stage", "suite")}
