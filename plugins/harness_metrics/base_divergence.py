"""Divergence of the model from the base model on reference responses."""

from __future__ import annotations

from typing import ClassVar, Literal

from harness import Component, HarnessError, Item
from harness_metrics.base import RatioMetric

COMPONENTS: dict[str, Component] = {
    "kl_to_base": Component(
        summary="Mean KL divergence from the base model per response token, in nats; 0 for the base model itself.",
        factory="harness_metrics.base_divergence:KlToBase",
    ),
    "agreement_with_base": Component(
        summary="Fraction of response tokens at which model and base have the same most likely token, 0 to 1.",
        factory="harness_metrics.base_divergence:AgreementWithBase",
    ),
}


class _BaseComparisonMetric(RatioMetric):
    """A mean over the tokens of the reference responses. Statistics: sum, tokens."""

    requires: ClassVar[Literal["base"]] = "base"
    higher_is_better = None  # the distance from the base model is neither good nor bad


class KlToBase(_BaseComparisonMetric):
    """Mean KL(base || model) per token, in nats: 0 for the base itself; lower is closer.

    It is exact: over the whole vocabulary, at every token of the reference responses, end of turn included, in the
    forward direction. On general prompts it ranks what training forgets better than their NLL, which may even fall.
    Shenfeld et al. (2025, arXiv:2509.04259) measure it on the new task.
    """

    score_names = ("kl_to_base",)

    def signature(self) -> str:
        """Return direction, unit, tokens and version."""
        return "kl_to_base|direction:base||model|unit:nat/token|over:response+end-of-turn|version:1"

    def statistics(self, item: Item) -> dict[str, tuple[float, ...]]:
        """Return the item's summed KL divergence in nats, and its tokens."""
        if item.kl is None:
            raise _not_compared_error(item)
        return {"kl_to_base": (item.kl, float(item.tokens))}


class AgreementWithBase(_BaseComparisonMetric):
    """Fraction of tokens of the reference responses, 0 to 1, with the same most likely token in model and base."""

    score_names = ("agreement_with_base",)

    def signature(self) -> str:
        """Return rank, tokens and version."""
        return "agreement_with_base|top:1|over:response+end-of-turn|version:1"

    def statistics(self, item: Item) -> dict[str, tuple[float, ...]]:
        """Return the item's tokens on which the two models agree, and its tokens."""
        if item.agreed is None:
            raise _not_compared_error(item)
        return {"agreement_with_base": (float(item.agreed), float(item.tokens))}


def _not_compared_error(item: Item) -> HarnessError:
    return HarnessError(
        f"item {item.id}", "was not compared with the base model", "evaluate its suite with this metric"
    )
