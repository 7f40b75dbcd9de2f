"""Whether answers are JSON, and JSON of the wanted shape."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness import HarnessError, Item
from harness_metrics.base import MeanMetric

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

_CODE_FENCE = re.compile(r"\s*```(?:json|JSON)?[ \t]*\n(.*?)\n?[ \t]*```\s*", re.DOTALL)


class JsonValid(MeanMetric):
    """Share of answers, from 0 to 1, that parse as JSON, and that fit a JSON Schema; the reference is not looked at.

    `json_valid` counts answers that are one JSON value and nothing else (RFC 8259: no NaN, no trailing comma).
    `schema_valid`, which is there when `schema` is given, counts those that fit it besides.
    fenced: also take an answer that is one Markdown code fence with JSON in it.
    An answer that does not parse is counted as unparsed.
    """

    citation = "Bray (2017), RFC 8259, https://www.rfc-editor.org/rfc/rfc8259"

    def __init__(self, schema: Mapping[str, Any] | None, fenced: bool) -> None:
        self._validator: Validator | None = None if schema is None else _build_validator(schema)
        self._fenced = fenced
        self.score_names = ("json_valid",) if schema is None else ("json_valid", "schema_valid")

    def signature(self) -> str:
        checked = "none" if self._validator is None else type(self._validator).__name__
        return f"json_valid|schema:{checked}|fenced:{'yes' if self._fenced else 'no'}|version:1"

    def is_parsed(self, item: Item) -> bool:
        return self._parse(item.answer or "") is not None

    def answer_statistics(self, answer: str, references: Sequence[str]) -> dict[str, tuple[float, ...]]:
        found = self._parse(answer)
        made: dict[str, tuple[float, ...]] = {"json_valid": (float(found is not None), 1.0)}
        if self._validator is not None:
            fits = found is not None and self._validator.is_valid(found[0])
            made["schema_valid"] = (float(fits), 1.0)
        return made

    def _parse(self, answer: str) -> tuple[Any] | None:
        fence = _CODE_FENCE.fullmatch(answer) if self._fenced else None
        try:
            return (json.loads(fence.group(1) if fence else answer, parse_constant=_reject_constant),)
        except (ValueError, RecursionError):
            return None


def _reject_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _build_validator(schema: Mapping[str, Any]) -> Validator:
    import jsonschema

    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(dict(schema))
    except jsonschema.SchemaError as error:
        place = ".".join(map(str, error.absolute_path)) or "schema"
        raise HarnessError(
            "metrics.json_valid.schema", f"is no JSON Schema: {place}: {error.message}", "mend it"
        ) from None
    return kind(dict(schema))
