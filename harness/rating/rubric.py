"""The rubric: the dimensions on which an answer is graded, with a written anchor for each level from 1 to 5.

The wheel has rubrics in English and Chinese. A file with the schema `rubrics/rubric.schema.json` replaces them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.utils.json_depth import load_json

RUBRICS_FOLDER = Path(__file__).with_name("rubrics")
RUBRIC_LANGUAGES = ("en", "zh")
"""The rubrics in the wheel."""
LEVELS = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Dimension:
    """One dimension.

    Attributes:
        key: Its name in files and metrics.
        name: The name that a rater sees.
        question: What it asks.
        levels: The anchor of each level: 1 is worst, 5 is best.
        not_applicable: When it does not apply; None: it always applies.
    """

    key: str
    name: str
    question: str
    levels: Mapping[int, str]
    not_applicable: str | None = None


@dataclass(frozen=True)
class Rubric:
    """The dimensions of a rating, and the question that compares two answers.

    Attributes:
        document: The rubric as JSON.
        language: The language of its texts.
        instructions: What a rater must know before the first item.
        dimensions: The dimensions, in order.
        comparison: The question that compares two answers; level 1 prefers the left one, 5 the right one.
    """

    document: Mapping[str, Any]
    language: str
    instructions: str
    dimensions: tuple[Dimension, ...]
    comparison: Dimension

    @property
    def digest(self) -> str:
        """Twelve digits of a digest of the texts."""
        return hashlib.sha256(json.dumps(self.document, sort_keys=True).encode()).hexdigest()[:12]


def load_rubric(name: str) -> Rubric:
    """Load a rubric.

    Args:
        name: `en`, `zh`, or the path of a JSON file.

    Raises:
        HarnessError: There is no such file, or it is not a rubric.
    """
    file = RUBRICS_FOLDER / f"{name}.json" if name in RUBRIC_LANGUAGES else Path(name)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise HarnessError(
            name, f"the rubric cannot be read: {reason}", "give en, zh or the path of a JSON file"
        ) from None
    try:
        document = load_json(text)
    except json.JSONDecodeError as error:
        where = f"{file}:{error.lineno}:{error.colno}"
        raise HarnessError(
            where, f"is not JSON: {error.msg}", f"begin with a copy of {RUBRICS_FOLDER / 'en.json'}"
        ) from None
    return parse_rubric(document, str(file))


def parse_rubric(document: Any, where: str) -> Rubric:
    """Return the rubric of a JSON value.

    Args:
        document: The value.
        where: Its location, for errors.

    Raises:
        HarnessError: It does not match the schema, or two dimensions have the same key.
    """
    import jsonschema

    schema = load_json((RUBRICS_FOLDER / "rubric.schema.json").read_text(encoding="utf-8"))
    error = jsonschema.exceptions.best_match(jsonschema.Draft7Validator(schema).iter_errors(document))
    if error is not None:
        place = ".".join(map(str, error.absolute_path)) or "the rubric"
        hint = f"see {RUBRICS_FOLDER / 'rubric.schema.json'}"
        raise HarnessError(f"{where} {place}", error.message.replace("\n", " ")[:200], hint)
    dimensions = tuple(
        Dimension(
            entry["key"],
            entry["name"],
            entry["question"],
            {int(level): anchor for level, anchor in entry["levels"].items()},
            entry.get("not_applicable"),
        )
        for entry in document["dimensions"]
    )
    keys = [dimension.key for dimension in dimensions]
    if len(set(keys)) < len(keys):
        raise HarnessError(f"{where} dimensions", "two dimensions have the same key", "give each its own key")
    entry = document["comparison"]
    levels = {int(level): text for level, text in entry["levels"].items()}
    comparison = Dimension(PREFERENCE, entry["name"], entry["question"], levels, entry["both_bad"])
    return Rubric(document, document["language"], document["instructions"], dimensions, comparison)


PREFERENCE = "preference"
"""The key of the question that compares two answers."""
