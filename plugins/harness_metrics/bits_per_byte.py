"""How well the model foretells plain text."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import ClassVar, Literal

from harness import HarnessError, Item, Metric


class BitsPerByte(Metric):
    """Bits for each byte of plain texts, and their perplexity by byte and by word; lower is better.

    With L the summed NLL in nats over all texts: `bits_per_byte` = L / bytes / ln 2, `byte_perplexity` = exp(L /
    bytes), `word_perplexity` = exp(L / words), bytes in UTF-8, words cut at white space; as in lm-evaluation-harness.
    They compare models with different tokenizers, which a perplexity by token does not.

    Statistics: NLL in nats, bytes or words.
    """

    requires: ClassVar[Literal["text"]] = "text"
    higher_is_better = False
    score_names = ("bits_per_byte", "byte_perplexity", "word_perplexity")

    def signature(self) -> str:
        return "bits_per_byte|windows:rolling,context 1|prefix:bos,else eos|version:1"

    def statistics(self, item: Item) -> dict[str, tuple[float, ...]]:
        if item.text_nll is None:
            what = "has no likelihood as a text"
            raise HarnessError(f"item {item.id}", what, "evaluate its suite, of plain texts, with this metric")
        size = float(len(item.reference.encode()))
        words = float(len(re.split(r"\s+", item.reference)))
        lengths = {"bits_per_byte": size, "byte_perplexity": size, "word_perplexity": words}
        return {name: (item.text_nll, lengths[name]) for name in self.score_names}

    def aggregate(self, name: str, total: Sequence[float]) -> float:
        nll, length = total
        if not length:
            return math.nan
        if name == "bits_per_byte":
            return nll / length / math.log(2)
        try:
            return math.exp(nll / length)
        except OverflowError:  # a float holds no more than e^709
            return math.inf

    def is_ratio(self, name: str) -> bool:
        return name == "bits_per_byte"
