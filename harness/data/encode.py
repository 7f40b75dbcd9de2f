"""Conversations → token ids and labels. Knows how spans become a mask, not how any format looks.

The rendered text is tokenised once, whole; the labels come from the rendering's spans by the offsets of the tokens.
A token is trained if and only if it begins inside a trained span: one that begins in a header is not.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from harness.contracts import Example, Message, Progress, Row, Span, Template, silent
from harness.data.markers import Tokens, markers, tokenise
from harness.data.rendering import Rendering
from harness.errors import HarnessError

BATCH = 512
"""Rows that are tokenised in one call: enough to keep the tokenizer's threads busy."""

STAND_IN = Message("assistant", "A")
"""A response that begins as most do: with a letter."""


@dataclass(frozen=True)
class Encoded:
    """A row and what its truncation cost. cut: tokens dropped at its right end.

    A row whose response was cut off wholly has `row.loss_tokens == 0`: it trains nothing.
    """

    row: Row
    cut: int = 0


def encode(
    example: Example, source: str, template: Template, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Row:
    """One example as a row of at most `max_length` tokens, truncated at the right. Raises as `encode_all` does."""
    return encode_all([example], source, template, tokenizer, max_length)[0].row


def encode_all(
    examples: Sequence[Example],
    source: str,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    progress: Progress = silent,
) -> list[Encoded]:
    """All examples as rows of at most `max_length` tokens, in order, each truncated at the right.

    The tokenizer's begin-of-sequence token stands first if it puts one there by itself, and never twice. Special tokens
    in the contents of messages are plain text.
    Raises HarnessError, with the row's place, when a conversation does not end with a response, when a response is
    empty, when the template refuses it or renders nothing trainable, or when the tokenizer cannot tell special tokens
    in a message from the template's.
    """
    done: list[Encoded] = []
    for begin in range(0, len(examples), BATCH):
        batch = examples[begin : begin + BATCH]
        renderings = [_rendered(example, template, tokenizer) for example in batch]
        tokens = tokenise(renderings, tokenizer, [example.place for example in batch])
        for example, rendering, found in zip(batch, renderings, tokens, strict=True):
            done.append(_row(example, source, template, rendering, found, tokenizer, max_length))
        progress("tokenise", len(done), len(examples), source, "rows")
    return done


def encode_prompt(
    example: Example, template: Template, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[int]:
    """The ids of a conversation up to its response's header, as training sees them: a prefix of `encode`'s.

    Longer than `max_length`, it is cut at the left; a begin-of-sequence token that the tokenizer puts first stays.
    Raises HarnessError, with the row's place, when the template refuses the conversation.
    """
    start, ids = prompt_tokens(example, example.messages[:-1], template, tokenizer)
    room = max_length - len(start)
    return [*start, *(ids if len(ids) <= room else ids[len(ids) - max(room, 0) :])][:max_length]


def prompt_tokens(
    example: Example, messages: Sequence[Message], template: Template, tokenizer: PreTrainedTokenizerBase
) -> tuple[tuple[int, ...], list[int]]:
    """What the tokenizer puts first, and the ids of `messages` with the header of the response to them.

    Many tokenizers read white space at the end of a text otherwise than before a word, so a prompt tokenised by itself
    would not be what training sees: it is tokenised with a stand-in for the response, which is then taken off.
    """
    prompt = Rendering.of(_spans(example, messages, template, tokenizer, open=True))
    ids = _before_response(prompt, example, messages, template, tokenizer)
    if ids is None:
        ((ids, _),) = tokenise([prompt], tokenizer, [example.place])
    start = markers(tokenizer).start
    return (start, ids[len(start) :]) if _begins(ids, start) else (start, ids)


def _before_response(
    prompt: Rendering,
    example: Example,
    messages: Sequence[Message],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
) -> list[int] | None:
    """The ids of the prompt when a response follows; None where the template or the tokenizer joins the two."""
    try:
        spans = template.render((*messages, STAND_IN), tokenizer)
    except HarnessError:
        return None  # The template can be prompted with this conversation, and not trained on it.
    whole = Rendering.of(spans)
    if not whole.text.startswith(prompt.text):
        return None
    ((ids, offsets),) = tokenise([whole], tokenizer, [example.place])
    count = bisect_left(offsets, (len(prompt.text),))
    return list(ids[:count]) if count and offsets[count - 1][1] <= len(prompt.text) else None


def fingerprint(template: Template, tokenizer: PreTrainedTokenizerBase) -> str:
    """The SHA-256, in hex, of what the template renders for conversations of every shape, masks included.

    A shape that the format has no place for counts as refused. Two templates that render alike have one fingerprint.
    """
    rendered: list[object] = []
    for messages in CANONICAL:
        for open, part in ((False, messages), (True, messages[:-1])):
            try:
                spans = template.render(part, tokenizer, open=open)
            except HarnessError:
                rendered.append("refused")
                continue
            found = Rendering.of(spans)
            # Nothing is trained on an open conversation, whatever its spans say.
            rendered.append([found.text, found.frames, [] if open else found.trained])
    return hashlib.sha256(json.dumps(rendered, ensure_ascii=False).encode()).hexdigest()


_USER, _ANSWER = Message("user", "Name a river."), Message("assistant", "The Elbe.\nIt is long.")
CANONICAL: tuple[tuple[Message, ...], ...] = (
    (_USER, _ANSWER),
    (Message("user", "Sum up.", input="Two lines\nof text."), _ANSWER),
    (Message("system", "Be brief."), _USER, _ANSWER),
    (_USER, _ANSWER, Message("user", " 再说一条河。"), Message("assistant", "长江。 ")),
    (Message("system", "Be brief."), _USER, _ANSWER, _USER, _ANSWER),
    (_USER, _USER, _ANSWER),
)
"""The conversations whose renderings make a template's fingerprint."""


def name_of(template: Template) -> str:
    """What a template is called in messages."""
    return str(getattr(template, "name", type(template).__name__))


def _rendered(example: Example, template: Template, tokenizer: PreTrainedTokenizerBase) -> Rendering:
    messages = example.messages
    if not messages or messages[-1].role != "assistant":
        raise HarnessError(example.place, "the conversation does not end with a response", "give it one or remove it")
    for number, message in enumerate(messages, 1):
        if message.role == "assistant" and not message.content.strip():
            what = f"the response (message {number} of {len(messages)}) is empty"
            raise HarnessError(example.place, what, "write a response or remove the row")
    rendering = Rendering.of(_spans(example, messages, template, tokenizer, open=False))
    if not rendering.trained:
        raise _nothing_trained(example, template)
    return rendering


def _spans(
    example: Example, messages: Sequence[Message], template: Template, tokenizer: PreTrainedTokenizerBase, *, open: bool
) -> Sequence[Span]:
    try:
        return template.render(messages, tokenizer, open=open)
    except HarnessError as error:
        raise HarnessError(example.place, f"{error.where}: {error.what}", error.hint) from error


def _row(
    example: Example,
    source: str,
    template: Template,
    rendering: Rendering,
    tokens: Tokens,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> Encoded:
    ids, offsets = tokens
    labels = [-100] * len(ids)
    for begin, end in rendering.trained:
        # Offsets ascend, so the tokens that begin in a stretch stand together.
        first, last = bisect_left(offsets, (begin,)), bisect_left(offsets, (end,))
        labels[first:last] = ids[first:last]
    if all(label == -100 for label in labels):
        raise _nothing_trained(example, template)
    start = markers(tokenizer).start
    if not _begins(ids, start):
        ids, labels = [*start, *ids], [-100] * len(start) + labels
    cut = max(len(ids) - max_length, 0)
    return Encoded(Row(example.id, source, tuple(ids[:max_length]), tuple(labels[:max_length])), cut)


def _begins(ids: Sequence[int], start: tuple[int, ...]) -> bool:
    return tuple(ids[: len(start)]) == start


def _nothing_trained(example: Example, template: Template) -> HarnessError:
    what = f"the template {name_of(template)} renders nothing trainable for this row"
    return HarnessError(example.place, what, "its spans must mark the response as trained; see `harness preview`")
