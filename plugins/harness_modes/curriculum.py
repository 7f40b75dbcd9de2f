"""Mode `curriculum`: one stage that trains the rows of a domain in an order, e.g. short rows first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from harness import Component, HarnessError, Mode, Stage, StageSource
from harness.types import SourceRows
from harness.utils.rounding import round_up_count
from harness_modes.source_list import source_list_option

COMPONENTS: dict[str, Component] = {
    "curriculum": Component(
        summary="One stage that trains the rows of a domain in the order of their length or of a column.",
        factory="harness_modes.curriculum:CurriculumMode",
        options={
            "domain": source_list_option("Sources of the domain, whose rows are ordered."),
            "general": {
                **source_list_option(
                    "Sources of general conversations, in random order between the rows of the domain."
                ),
                "minItems": 0,
                "default": [],
            },
            "by": {
                "enum": ["tokens", "loss_tokens", "turns", "column"],
                "default": "tokens",
                "description": "What the rows are ordered by: their tokens, trained tokens, turns, or a column.",
            },
            "column": {
                "type": ["string", "null"],
                "minLength": 1,
                "default": None,
                "description": "For `by` column: a column of numbers that `keep` of the sources names.",
            },
            "descending": {
                "type": "boolean",
                "default": False,
                "description": "Train rows with high values first.",
            },
            "fraction": {
                "type": "number",
                "exclusiveMinimum": 0,
                "maximum": 1,
                "default": 1,
                "description": "Train only this fraction of the rows of each source: the first ones of the order.",
            },
        },
        required=("domain",),
    ),
}


class CurriculumMode(Mode):
    """One stage, named `curriculum`.

    Args:
        domain: Sources whose rows are ordered.
        general: Sources in random order.
        by: What the rows are ordered by.
        column: The column, for `by` column.
        descending: Whether high values come first.
        fraction: The fraction of the rows of each source of the domain that is trained, rounded up.
    """

    def __init__(
        self,
        *,
        domain: Sequence[str],
        general: Sequence[str],
        by: Literal["tokens", "loss_tokens", "turns", "column"],
        column: str | None,
        descending: bool,
        fraction: float,
    ) -> None:
        if by == "column" and column is None:
            raise HarnessError("mode.curriculum", "'by' is 'column', but no column is named", "set 'column'")
        self.domain, self.general = tuple(domain), tuple(general)
        self.by, self.column, self.descending, self.fraction = by, column, descending, fraction
        self._selected_keys: dict[tuple[str, str], list[float]] = {}  # (stage, source) -> keys, from select to order

    def stages(self) -> tuple[Stage, ...]:
        """Return the one stage."""
        domain = (StageSource(source, "domain") for source in self.domain)
        general = (StageSource(source, "general") for source in self.general)
        return (Stage("curriculum", (*domain, *general)),)

    def select(self, stage: Stage, rows: SourceRows) -> Sequence[bool] | None:
        """Select the first rows of the order."""
        if rows.source not in self.domain or self.fraction == 1:
            return None
        keys = self._keys(rows)
        count = round_up_count(self.fraction, len(keys))
        first = set(sorted(range(len(keys)), key=keys.__getitem__)[:count])
        self._selected_keys[stage.name, rows.source] = [keys[index] for index in sorted(first)]
        return [index in first for index in range(len(keys))]

    def order(self, stage: Stage, rows: SourceRows) -> Sequence[float] | None:
        """Order the rows of the domain; the conversations are not read again if `select` has just done so."""
        if rows.source not in self.domain:
            return None
        known = self._selected_keys.pop((stage.name, rows.source), None)
        return known if known is not None and len(known) == len(rows) else self._keys(rows)

    def _keys(self, rows: SourceRows) -> list[float]:
        sign = -1 if self.descending else 1
        return [sign * value for value in self._values(rows)]

    def _values(self, rows: SourceRows) -> Sequence[float]:
        if self.by == "tokens":
            return rows.tokens
        if self.by == "loss_tokens":
            return rows.loss_tokens
        if self.by == "turns":
            return [len(example.messages) for example in rows.examples]
        return [_number(example.data, self.column or "", example.location) for example in rows.examples]


def _number(data: Any, column: str, location: str) -> float:
    value = data.get(column)
    if isinstance(value, bool) or not isinstance(value, int | float):
        what = f"the column {column!r} is {value!r}, not a number"
        hint = f"add {column!r} to 'keep' of the source, and a number to each row"
        raise HarnessError(location, what, hint)
    return value
