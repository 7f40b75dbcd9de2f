"""How far the model has come from the base, on reference responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from harness import HarnessError, Item, Metric


class _BaseComparisonMetric(Metric):
    """A mean over the tokens of the reference responses; statistics: sum, tokens."""

    requires: ClassVar[Literal["base"]] = "base"

    def aggregate(self, name: str, total: Sequence[float]) -> float:
        found, tokens = total
        return found / tokens if tokens else float("nan")

    def is_ratio(self, name: str) -> bool:
        return True


class KlToBase(_BaseComparisonMetric):
    """Mean KL(base || model) a token, in nats: 0 for the base itself. Lower is nearer.

    Exact, over the whole vocabulary, at every token of the reference responses, end of turn included; the forward
    direction. On general prompts it ranks what training forgets better than their NLL does, which may even fall
    (Shenfeld et al., 2025, arXiv:2509.04259, take it on the new task).
    """

    score_names = ("kl_to_base",)
    higher_is_better = False

    def signature(self) -> str:
        return "kl_to_base|direction:base||model|unit:nat/token|over:response+end-of-turn|version:1"

    def statistics(self, item: Item) -> dict[str, tuple[float, ...]]:
        if item.kl is None:
            raise _not_compared_error(item)
        return {"kl_to_base": (item.kl, float(item.tokens))}


class AgreementWithBase(_BaseComparisonMetric):
    """Share of tokens of the reference responses, from 0 to 1, at which model and base hold the same one likeliest."""

    score_names = ("agreement_with_base",)

    def signature(self) -> str:
        return "agreement_with_base|top:1|over:response+end-of-turn|version:1"

    def statistics(self, item: Item) -> dict[str, tuple[float, ...]]:
        if item.agreed is None:
            raise _not_compared_error(item)
        return {"agreement_with_base": (float(item.agreed), float(item.tokens))}


def _not_compared_error(item: Item) -> HarnessError:
    return HarnessError(
        f"item {item.id}", "was not compared with the base model", "evaluate its suite with this metric"
    )
