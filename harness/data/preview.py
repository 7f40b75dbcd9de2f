"""A tokenised row for the eye: what is trained, what is not, and which tokens are control tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text
from transformers import PreTrainedTokenizerBase

from harness.contracts import Row
from harness.legible import printable

TRAINED, UNTRAINED, CONTROL = "bold green", "dim", "underline"
OPEN, CLOSE = "⟦", "⟧"


def preview(row: Row, tokenizer: PreTrainedTokenizerBase, *, plain: bool = False) -> Text:
    """The row's text, special tokens included: trained tokens bold green, the others dim, special tokens underlined.

    plain: no styles; trained stretches stand between ⟦ and ⟧ instead, for where there is no colour.
    """
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    text = Text()
    inside = False
    for piece, trained, control in _pieces(row, tokenizer, special):
        piece = printable(piece)  # a row's text is anybody's, and must not steer the terminal
        if plain:
            mark = "" if trained == inside else (OPEN if trained else CLOSE)
            text.append(mark + piece)
        else:
            text.append(piece, style=(TRAINED if trained else UNTRAINED) + (f" {CONTROL}" if control else ""))
        inside = trained
    if plain and inside:
        text.append(CLOSE)
    return text


def _pieces(row: Row, tokenizer: PreTrainedTokenizerBase, special: set[int]) -> Iterator[tuple[str, bool, bool]]:
    """(text, trained, special) of each stretch of tokens that are alike."""
    kinds = [(label != -100, token in special) for token, label in zip(row.input_ids, row.labels, strict=True)]
    begin, before = 0, ""
    for end in range(1, len(kinds) + 1):
        if end < len(kinds) and kinds[end] == kinds[begin]:
            continue
        # Decoded with what stands before it: by itself, a stretch would lose its leading space in some tokenizers.
        upto = _decoded(row.input_ids[:end], tokenizer)
        piece = upto[len(before) :] if upto.startswith(before) else _decoded(row.input_ids[begin:end], tokenizer)
        yield piece, *kinds[begin]
        begin, before = end, upto


def _decoded(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
