"""How well the model foretells the reference response."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

from harness import HarnessError, Item, Metric


class ResponsePerplexity(Metric):
    """Perplexity of the reference responses, and its logarithm: nats a response token. Lower is better.

    `response_perplexity` is exp(sum of NLL / number of response tokens) over the whole suite, end of turn included,
    the prompt not: neither a mean of the items' perplexities nor one of words or bytes. `response_nll` is the
    exponent. Both are NaN where no item has a response token.

    Statistics: summed NLL in nats, tokens.
    """

    requires: ClassVar[Literal["answer", "likelihood"]] = "likelihood"
    higher_is_better = False
    score_names = ("response_perplexity", "response_nll")

    def signature(self) -> str:
        return "response_perplexity|unit:token|over:response+end-of-turn|mean:corpus|version:1"

    def statistics(self, item: Item) -> dict[str, tuple[float, ...]]:
        if item.nll is None:
            raise HarnessError(f"item {item.id}", "has no likelihood", "evaluate its suite with this metric")
        return dict.fromkeys(self.score_names, (item.nll, float(item.tokens)))

    def is_ratio(self, name: str) -> bool:
        return name == "response_nll"

    def aggregate(self, name: str, total: Sequence[float]) -> float:
        nll, tokens = total
        if not tokens:
            return math.nan
        if name == "response_nll":
            return nll / tokens
        try:
            return math.exp(nll / tokens)
        except OverflowError:  # a float holds no more than e^709
            return math.inf
