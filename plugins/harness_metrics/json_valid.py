"""Answers that are valid JSON, optionally of a given schema."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness import Component, ComponentExample, HarnessError, Item
from harness.utils.json_depth import load_json
from harness_metrics.base import MeanMetric

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

COMPONENTS: dict[str, Component] = {
    "json_valid": Component(
        summary="Fraction of answers that parse as JSON, and that match a JSON Schema, 0 to 1.",
        factory="harness_metrics.json_valid:JsonValid",
        options={
            "schema": {
                "type": ["object", "null"],
                "default": None,
                "description": "A JSON Schema; adds the score schema_valid. null: only json_valid.",
            },
            "fenced": {
                "type": "boolean",
                "default": False,
                "description": "Also accept an answer that is one Markdown code fence with JSON in it.",
            },
        },
        example=ComponentExample(better="[1]", worse="[1"),
    ),
}

_CODE_FENCE = re.compile(r"\s*```(?:json|JSON)?[ \t]*\n(.*?)\n?[ \t]*```\s*", re.DOTALL)


class JsonValid(MeanMetric):
    """Fraction of answers, 0 to 1, that parse as JSON, and that match a JSON Schema; the reference is not used.

    `json_valid` counts answers that are one JSON value and nothing else (RFC 8259: no NaN, no trailing comma).
    `schema_valid`, which exists if `schema` is set, counts those that also match the schema. An answer that does not
    parse is counted as unparsed.
    """

    citation = "Bray (2017), RFC 8259, https://www.rfc-editor.org/rfc/rfc8259"

    def __init__(self, schema: Mapping[str, Any] | None, fenced: bool) -> None:
        """Create the metric.

        Args:
            schema: A JSON Schema; None: only the syntax is checked.
            fenced: Also accept an answer that is one Markdown code fence with JSON in it.

        Raises:
            HarnessError: `schema` is not a JSON Schema.
        """
        self._validator: Validator | None = None if schema is None else _build_validator(schema)
        self._fenced = fenced
        self.score_names = ("json_valid",) if schema is None else ("json_valid", "schema_valid")

    def signature(self) -> str:
        """Return schema draft, fences and version."""
        draft = "none" if self._validator is None else type(self._validator).__name__
        return f"json_valid|schema:{draft}|fenced:{'yes' if self._fenced else 'no'}|version:1"

    def is_parsed(self, item: Item) -> bool:
        """Return whether the answer is JSON."""
        return self._parse(item.answer or "") is not None

    def answer_statistics(self, answer: str, references: Sequence[str]) -> dict[str, tuple[float, ...]]:
        """Return whether the answer is JSON, and whether it matches the schema."""
        parsed = self._parse(answer)
        statistics: dict[str, tuple[float, ...]] = {"json_valid": (float(parsed is not None), 1.0)}
        if self._validator is not None:
            matches = parsed is not None and self._validator.is_valid(parsed[0])
            statistics["schema_valid"] = (float(matches), 1.0)
        return statistics

    def _parse(self, answer: str) -> tuple[Any] | None:
        """Return the JSON value in a tuple of one (it may be null), or None for an answer that is not JSON."""
        fence = _CODE_FENCE.fullmatch(answer) if self._fenced else None
        try:
            return (load_json(fence.group(1) if fence else answer, _DECODER),)
        except ValueError:
            return None


def _reject_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_reject_constant)


def _build_validator(schema: Mapping[str, Any]) -> Validator:
    import jsonschema

    validator_class = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        validator_class.check_schema(dict(schema))
    except jsonschema.SchemaError as error:
        location = ".".join(map(str, error.absolute_path)) or "schema"
        what = f"is not a JSON Schema: {location}: {error.message}"
        raise HarnessError("metrics.json_valid.schema", what, "fix it") from None
    return validator_class(dict(schema))
