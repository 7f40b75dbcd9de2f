"""Likelihood of plain text, per byte and per word."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import ClassVar, Literal

from harness import Component, HarnessError, Item, Metric
from harness_metrics.base import exp_or_inf

COMPONENTS: dict[str, Component] = {
    "bits_per_byte": Component(
        summary="Bits per byte of plain texts, and their byte and word perplexity; lower is better.",
        factory="harness_metrics.bits_per_byte:BitsPerByte",
    ),
}


class BitsPerByte(Metric):
    """Bits per byte of plain texts, and their perplexity per byte and per word; lower is better.

    With L the summed NLL in nats over all texts: `bits_per_byte` = L / bytes / ln 2, `byte_perplexity` = exp(L /
    bytes), `word_perplexity` = exp(L / words). Bytes are UTF-8, words are separated by white space, as in
    lm-evaluation-harness. These scores compare models with different tokenizers; a perplexity per token does not.

    Statistics: NLL in nats, bytes or words.
    """

    requires: ClassVar[Literal["text"]] = "text"
    higher_is_better = False
    score_names = ("bits_per_byte", "byte_perplexity", "word_perplexity")

    def signature(self) -> str:
        """Return how a text is divided into windows, its first token, and the version."""
        return "bits_per_byte|windows:rolling,context 1|prefix:bos,else eos|version:1"

    def statistics(self, item: Item) -> dict[str, tuple[float, ...]]:
        """Return the text's NLL in nats with its length in bytes or words.

        Raises:
            HarnessError: The item was not scored as a text.
        """
        if item.text_nll is None:
            what = "has no likelihood as a text"
            raise HarnessError(f"item {item.id}", what, "evaluate its suite, of plain texts, with this metric")
        byte_count = float(len(item.reference.encode()))
        word_count = float(len(re.split(r"\s+", item.reference)))
        lengths = {"bits_per_byte": byte_count, "byte_perplexity": byte_count, "word_perplexity": word_count}
        return {name: (item.text_nll, lengths[name]) for name in self.score_names}

    def aggregate(self, name: str, total: Sequence[float]) -> float:
        """Return bits per byte, or a perplexity; NaN without text."""
        nll, length = total
        if not length:
            return math.nan
        if name == "bits_per_byte":
            return nll / length / math.log(2)
        return exp_or_inf(nll / length)

    def default_margin(self, name: str, base: float) -> float:
        """Return 0.02 bits per byte, the same as a share of the byte perplexity, or 5 % of the word perplexity."""
        return {"bits_per_byte": 0.02, "byte_perplexity": (2**0.02 - 1) * base}.get(name, 0.05 * base)

    def is_ratio(self, name: str) -> bool:
        """Return whether the score is `bits_per_byte`; the perplexities are not ratios."""
        return name == "bits_per_byte"

    def tested_as(self, name: str) -> str:
        """Return `bits_per_byte`: for the same texts all three scores increase with the summed NLL."""
        return "bits_per_byte"
