"""Multiple choice by likelihood: the choice that the model holds likeliest is its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from harness import HarnessError, Item, Metric


class MultipleChoice(Metric):
    """Share of questions, from 0 to 1, whose right choice is the likeliest, as in lm-evaluation-harness.

    `acc` compares the summed log-likelihoods; `acc_norm` divides each by the choice's characters, `acc_bytes` by its
    bytes in UTF-8, so that a long choice is not held unlikely for its length. Of equals the first is taken.
    """

    requires: ClassVar[Literal["choices"]] = "choices"
    score_names = ("acc", "acc_norm", "acc_bytes")

    def signature(self) -> str:
        return "multiple_choice|by:likelihood|norm:none,characters,bytes|version:1"

    def statistics(self, item: Item) -> dict[str, tuple[float, ...]]:
        if item.choice_lls is None or item.gold is None:
            what = "has no likelihoods of choices"
            raise HarnessError(f"item {item.id}", what, "evaluate its suite, of multiple-choice rows, with this metric")
        lengths = {
            "acc": [1.0] * len(item.choices),
            "acc_norm": [float(len(choice)) for choice in item.choices],
            "acc_bytes": [float(len(choice.encode())) for choice in item.choices],
        }
        return {
            name: (float(_most_likely(item.choice_lls, lengths[name]) == item.gold), 1.0) for name in self.score_names
        }

    def aggregate(self, name: str, total: Sequence[float]) -> float:
        right, questions = total
        return right / questions if questions else float("nan")

    def is_ratio(self, name: str) -> bool:
        return True


def _most_likely(log_likelihoods: Sequence[float], lengths: Sequence[float]) -> int:
    each = [ll / max(length, 1.0) for ll, length in zip(log_likelihoods, lengths, strict=True)]
    return each.index(max(each))
