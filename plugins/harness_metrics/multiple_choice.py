"""Multiple choice by likelihood: the most likely choice is the model's answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from harness import Component, HarnessError, Item
from harness_metrics.base import RatioMetric

COMPONENTS: dict[str, Component] = {
    "multiple_choice": Component(
        summary="Accuracy of multiple choice by likelihood: acc, acc_norm and acc_bytes, 0 to 1.",
        factory="harness_metrics.multiple_choice:MultipleChoice",
    ),
}


class MultipleChoice(RatioMetric):
    """Fraction of questions, 0 to 1, whose right choice is the most likely one, as in lm-evaluation-harness.

    `acc` compares the summed log-likelihoods; `acc_norm` divides each by the choice's characters, `acc_bytes` by its
    UTF-8 bytes, so that long choices are not at a disadvantage. Of equal choices the first one counts.

    Statistics: right, 1.
    """

    requires: ClassVar[Literal["choices"]] = "choices"
    score_names = ("acc", "acc_norm", "acc_bytes")

    def signature(self) -> str:
        """Return criterion, normalizations and version."""
        return "multiple_choice|by:likelihood|norm:none,characters,bytes|version:1"

    def statistics(self, item: Item) -> dict[str, tuple[float, ...]]:
        """Return whether the most likely choice is right, under each normalization.

        Raises:
            HarnessError: The choices were not scored.
        """
        if item.choice_lls is None or item.gold is None:
            what = "has no likelihoods of choices"
            raise HarnessError(f"item {item.id}", what, "evaluate its suite, of multiple-choice rows, with this metric")
        lengths = {
            "acc": [1.0] * len(item.choices),
            "acc_norm": [float(len(choice)) for choice in item.choices],
            "acc_bytes": [float(len(choice.encode())) for choice in item.choices],
        }
        return {
            name: (float(_most_likely_choice(item.choice_lls, lengths[name]) == item.gold), 1.0)
            for name in self.score_names
        }


def _most_likely_choice(log_likelihoods: Sequence[float], lengths: Sequence[float]) -> int:
    """Return the index of the choice with the highest log-likelihood per unit of length."""
    normalized = [ll / max(length, 1.0) for ll, length in zip(log_likelihoods, lengths, strict=True)]
    return normalized.index(max(normalized))
