"""Prompts as in training: the tokens of a conversation up to and including the header of a response."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.data.tokenization.rendering import (
    Rendering,
    is_plain_text,
    render_messages,
    render_spans,
    template_name,
)
from harness.data.tokenization.special_tokens import special_token_guard, tokenize_with_offsets
from harness.errors import ComponentError, HarnessError
from harness.interfaces.template import Template
from harness.types import Example, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLACEHOLDER_RESPONSE = Message("assistant", "A")
"""A response that begins with a letter, as most do."""

PLACEHOLDER_TEXTS = ("Qwxzjq", "Vkqxzj")
"""Texts of a user and of a response that begin with a letter and occur in no template."""


def require_prompt(example: Example) -> None:
    """Require a conversation, which has a prompt.

    Raises:
        HarnessError: The row is a plain text.
    """
    if is_plain_text(example):
        what = "a plain text has no prompt, so no answer can be generated"
        raise HarnessError(example.location, what, "use metrics of its likelihood")


def encode_prompt(
    example: Example, template: Template, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[int]:
    """Return the ids of a conversation up to its response's header: a prefix of the row's training tokens.

    A prompt longer than `max_length` is truncated on the left; a begin-of-sequence token that the tokenizer adds stays.

    Raises:
        HarnessError: At the row's location, when the template refuses the conversation, and for a plain text.
    """
    require_prompt(example)
    prefix, ids = tokenize_prompt(example, example.messages[:-1], template, tokenizer)
    num_kept = max(max_length - len(prefix), 0)
    return [*prefix, *ids[max(len(ids) - num_kept, 0) :]][:max_length]


def tokenize_prompt(
    example: Example, messages: Sequence[Message], template: Template, tokenizer: PreTrainedTokenizerBase
) -> tuple[tuple[int, ...], list[int]]:
    """Return the tokens that the tokenizer puts first, and the ids of `messages` with the header of the response.

    Many tokenizers read white space at the end of a text differently from white space before a word. A prompt tokenized
    alone would then differ from training. So it is tokenized with a placeholder response, which is removed afterwards.
    """
    prompt = Rendering.from_spans(
        render_spans(example, messages, template, tokenizer, add_generation_prompt=True), template.control_tokens
    )
    ids = _tokenize_before_response(prompt, example, messages, template, tokenizer)
    if ids is None:
        ((ids, _),) = tokenize_with_offsets([prompt], tokenizer, [example.location])
    prefix = special_token_guard(tokenizer).bos_prefix
    return prefix, ids[len(prefix) :] if tuple(ids[: len(prefix)]) == prefix else ids


def _tokenize_before_response(
    prompt: Rendering,
    example: Example,
    messages: Sequence[Message],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
) -> list[int] | None:
    """Return the prompt's ids before a response; None where the template or a token joins prompt and response."""
    try:
        spans = render_messages(
            template, (*messages, PLACEHOLDER_RESPONSE), tokenizer, add_generation_prompt=False, tools=example.tools
        )
    except ComponentError:
        raise
    except HarnessError:
        return None  # The template can be prompted with this conversation, but not trained on it.
    rendering = Rendering.from_spans(spans, template.control_tokens)
    if not rendering.text.startswith(prompt.text):
        return None
    ((ids, offsets),) = tokenize_with_offsets([rendering], tokenizer, [example.location])
    num_tokens = bisect_left(offsets, (len(prompt.text),))
    return list(ids[:num_tokens]) if num_tokens and offsets[num_tokens - 1][1] <= len(prompt.text) else None


@dataclass(frozen=True)
class UserTurn:
    r"""How a template writes a user's turn.

    For a ChatML conversation, `#` is the user's text::

        <|im_start|>user\n#<|im_end|>\n<|im_start|>assistant\n
        [ header_ids     ) [ end    )

    Attributes:
        header_ids: The tokens of a conversation up to where the user's text begins, as in training.
        end: The text that ends the turn: a control token, else the first text of the template after the user's; empty
            if the template writes nothing there.
    """

    header_ids: tuple[int, ...]
    end: str


def encode_user_turn(template: Template, tokenizer: PreTrainedTokenizerBase) -> UserTurn:
    """Return how a template writes a user's turn, found by a conversation with known texts.

    Raises:
        HarnessError: The template writes nothing before a user's text, or omits the text.
    """
    user_text, response = PLACEHOLDER_TEXTS
    messages = (Message("user", user_text), Message("assistant", response))
    example = Example("", messages, "the header of a user's turn")
    spans = render_spans(example, messages, template, tokenizer, add_generation_prompt=False)
    rendering = Rendering.from_spans(spans, template.control_tokens)
    begin = rendering.text.find(user_text)
    ((ids, offsets),) = tokenize_with_offsets([rendering], tokenizer, [example.location])
    num_tokens = bisect_left(offsets, (begin,))
    if num_tokens and offsets[num_tokens - 1][1] > begin:
        num_tokens -= 1  # one token has the end of the header and the beginning of the text: the model writes it
    if begin < 0 or not num_tokens:
        what = f"the template {template_name(template)} writes nothing before a user's text"
        raise HarnessError(example.location, what, 'choose a chat template, or set prompts to "data"')
    prefix = special_token_guard(tokenizer).bos_prefix
    header = tuple(ids[:num_tokens])
    header_ids = header if header[: len(prefix)] == prefix else (*prefix, *header)
    between = rendering.text[begin + len(user_text) :].partition(response)[0]
    return UserTurn(header_ids, _first_end(between, tokenizer))


def _first_end(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what ends a user's text: the first added token of the text after it, or what is before that token."""
    tokens = [token for token in sorted(tokenizer.get_added_vocab(), key=len) if token.strip() and token in text]
    added = {text.find(token): token for token in tokens}
    first = min(added, default=len(text))
    return text[:first].strip() or added.get(first, "")
