"""Answers whose final number equals the number of the reference, as in GSM8K."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from harness import Component, ComponentExample, Item
from harness_metrics.base import MeanMetric

COMPONENTS: dict[str, Component] = {
    "numeric_match": Component(
        summary="Fraction of answers whose last number equals that of the reference, 0 to 1.",
        factory="harness_metrics.numeric_match:NumericMatch",
        options={
            "tolerance": {
                "type": "number",
                "minimum": 0,
                "default": 0,
                "description": "Largest difference that counts as equal, relative to the reference.",
            },
        },
        example=ComponentExample(better="no number here", worse="it is 4"),
    ),
}

MARKER = "####"
"""What stands before the final number in GSM8K."""

_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.])[-−+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s?/\s?\d+(?![\d,.]))?|[-−+]?(?<!\d)\.\d+"
)


class NumericMatch(MeanMetric):
    """Fraction of answers, 0 to 1, whose final number equals the final number of a reference.

    The final number is the one after the last `####`, else the last one of the text (Cobbe et al., 2021, GSM8K,
    arXiv:2110.14168; the second is lm-evaluation-harness's `flexible-extract`). Numbers are compared by value: `1,200`,
    `1200.0`, `$1200` and full-width digits are equal, and so are `1/2` and `0.5`. Percent signs and units are ignored.
    An answer without a number is unparsed and wrong, unless the reference has none either.
    """

    score_names = ("numeric_match",)
    citation = "Cobbe et al. (2021), https://arxiv.org/abs/2110.14168"

    def __init__(self, tolerance: float) -> None:
        """Create the metric.

        Args:
            tolerance: Largest difference that counts as equal, as a fraction of the reference.
        """
        self._tolerance = Decimal(str(tolerance))

    def signature(self) -> str:
        """Return tolerance and version."""
        return f"numeric_match|tolerance:{self._tolerance}|version:1"

    def is_parsed(self, item: Item) -> bool:
        """Return whether the answer has a number."""
        return final_number(item.answer or "") is not None

    def answer_statistics(self, answer: str, references: Sequence[str]) -> dict[str, tuple[float, ...]]:
        """Return whether the number of the answer equals that of one of the references."""
        number = final_number(answer)
        return {"numeric_match": (float(any(self._equals(number, final_number(one)) for one in references)), 1.0)}

    def _equals(self, number: Decimal | None, reference: Decimal | None) -> bool:
        if number is None or reference is None:
            return number is reference
        return abs(number - reference) <= self._tolerance * abs(reference)


def final_number(text: str) -> Decimal | None:
    """Return the number after the last `####` of a text, else its last number; None without any."""
    text = unicodedata.normalize("NFKC", text)
    if MARKER in text and (marked := _NUMBER.search(text.rpartition(MARKER)[2])):
        return _parse_number(marked.group())
    numbers = _NUMBER.findall(text)
    return _parse_number(numbers[-1]) if numbers else None


def _parse_number(text: str) -> Decimal | None:
    numerator, _, denominator = text.replace(",", "").replace("−", "-").replace(" ", "").partition("/")
    try:
        return Decimal(numerator) / Decimal(denominator or 1)
    except (InvalidOperation, ZeroDivisionError):
        return None
