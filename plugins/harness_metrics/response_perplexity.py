"""Likelihood of the reference responses, per token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

from harness import Component, HarnessError, Item, Metric
from harness_metrics.base import exp_or_inf

COMPONENTS: dict[str, Component] = {
    "response_perplexity": Component(
        summary="Perplexity of the reference responses' tokens and their mean NLL; lower is better.",
        factory="harness_metrics.response_perplexity:ResponsePerplexity",
    ),
}


class ResponsePerplexity(Metric):
    """Perplexity of the reference responses, and its logarithm in nats per response token; lower is better.

    `response_perplexity` is exp(sum of NLL / number of response tokens) over the whole suite, with the end of turn and
    without the prompt. It is neither a mean of the items' perplexities nor a perplexity per word or byte.
    `response_nll` is the exponent. Both are NaN where no item has a response token.

    Statistics: summed NLL in nats, tokens.
    """

    requires: ClassVar[Literal["answer", "likelihood"]] = "likelihood"
    higher_is_better = False
    score_names = ("response_perplexity", "response_nll")

    def signature(self) -> str:
        """Return unit, tokens, mean and version."""
        return "response_perplexity|unit:token|over:response+end-of-turn|mean:corpus|version:1"

    def statistics(self, item: Item) -> dict[str, tuple[float, ...]]:
        """Return the item's summed NLL in nats, and its response tokens.

        Raises:
            HarnessError: The item's likelihood was not measured.
        """
        if item.nll is None:
            raise HarnessError(f"item {item.id}", "has no likelihood", "evaluate its suite with this metric")
        return dict.fromkeys(self.score_names, (item.nll, float(item.tokens)))

    def default_margin(self, name: str, base: float) -> float:
        """Return 0.05 nats of the NLL, or 5 % of the base model's perplexity, which is about the same."""
        return 0.05 if name == "response_nll" else 0.05 * base

    def is_ratio(self, name: str) -> bool:
        """Return whether the score is `response_nll`; the perplexity is not a ratio."""
        return name == "response_nll"

    def tested_as(self, name: str) -> str:
        """Return `response_nll`: the perplexity is its exponential."""
        return "response_nll"

    def aggregate(self, name: str, total: Sequence[float]) -> float:
        """Return the mean NLL per token, or its exponential; NaN without tokens."""
        nll, tokens = total
        if not tokens:
            return math.nan
        return nll / tokens if name == "response_nll" else exp_or_inf(nll / tokens)
