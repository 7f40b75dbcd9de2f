"""Tokens → text, for proofs: what a decoder does to white space at the beginning of a text is kept away from it."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase


class Decoder:
    """Decodes stretches of tokens as they stand within a row.

    Many decoders drop the space that a text begins with, so each stretch is decoded behind a letter, taken off then.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._anchor = list(tokenizer("a", add_special_tokens=False).input_ids)
        self._before = self._backend.decode(self._anchor, skip_special_tokens=False)
        self._normalizer = self._backend.normalizer

    def texts(self, stretches: Sequence[Sequence[int]]) -> list[str]:
        """The text of each stretch, special tokens written out."""
        anchor, before = self._anchor, self._before
        texts = self._backend.decode_batch([anchor + list(ids) for ids in stretches], skip_special_tokens=False)
        return [
            text[len(before) :] if text.startswith(before) else self._backend.decode(list(ids), False)
            for text, ids in zip(texts, stretches, strict=True)
        ]

    def text(self, ids: Sequence[int]) -> str:
        """The text of one stretch."""
        return self.texts([ids])[0]

    def normal(self, text: str) -> str:
        """A text as its tokens will be decoded, as far as the tokenizer's normaliser tells, squashed."""
        return squashed(self._normalizer.normalize_str(text) if self._normalizer is not None else text)


def squashed(text: str) -> str:
    """The text without white space, and without the sign that some tokenizers write for it."""
    return "".join(text.replace("▁", " ").split())
