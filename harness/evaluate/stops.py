"""What ends an answer: tokens, and strings that the model may spell in many ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.contracts import Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Stops:
    """eos: the tokenizer's end of sequence, if it has one. tokens: other tokens that end an answer. texts: strings."""

    eos: int | None
    tokens: frozenset[int]
    texts: tuple[str, ...]


def find_stops(
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    more: Sequence[str] = (),
    *,
    template_stops: bool = True,
) -> Stops:
    """What ends an answer: the template's stops, `more`, and the tokenizer's end of sequence; nothing is implied.

    template_stops: False where prompts are not rendered by the template.

    A stop that is a token of its own (special, or added whole) is watched for as that token; any other as text,
    since ordinary text can be made up of tokens in several ways.
    """
    special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    whole = {**tokenizer.get_added_vocab(), **special}
    given = (*(template.stops(tokenizer) if template_stops else ()), *more)
    tokens = frozenset(whole[stop] for stop in given if stop in whole)
    texts = tuple(stop for stop in given if stop and stop not in whole)
    return Stops(tokenizer.eos_token_id, tokens - {tokenizer.eos_token_id}, texts)


def decode(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """The text of an answer's tokens, special ones left out, spaces as the model wrote them."""
    text = tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def holds_stop(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], texts: Sequence[str]) -> bool:
    """Whether the newest token completes one of the strings. Looks at the last tokens alone, whatever the length."""
    if not texts:
        return False
    # A token holds a byte or more; the slack is for special tokens between, and a first one that is half a character.
    reach = max(len(text.encode()) for text in texts) + 8
    tail = decode(tokenizer, tokens[-reach:])
    return any(text in tail for text in texts)


def cut(text: str, texts: Sequence[str]) -> str:
    """The text before the first of the strings."""
    found = [place for place in map(text.find, texts) if place >= 0]
    return text[: min(found)] if found else text
