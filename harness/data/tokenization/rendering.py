"""Conversations → text: calls the template, and joins its spans into one text that knows what stands where in it.

A plain text is rendered here, by the core, and not by the template: it has no turns for a format to write.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from harness.errors import HarnessError
from harness.interfaces.template import Template
from harness.types import Example, Message, Span

TEXT_ROLE = "text"
"""The role of the only message of a plain text."""


@dataclass(frozen=True, slots=True)
class Rendering:
    """What a template renders, joined.

    trained, frames: stretches of `text`, (begin, end), in order; stretches that touch are one.
    untrained_frames: the texts of the frames that are not trained, and what only the template may write besides.
    """

    text: str
    trained_spans: tuple[tuple[int, int], ...]
    markup_spans: tuple[tuple[int, int], ...]
    untrained_markup: tuple[str, ...]

    @classmethod
    def from_spans(cls, spans: Iterable[Span], controls: Sequence[str] = ()) -> Rendering:
        """The spans, joined. controls: see `Template.control_tokens`."""
        parts: list[str] = []
        trained: list[tuple[int, int]] = []
        frames: list[tuple[int, int]] = []
        headers: list[str] = list(controls)
        place = 0
        for span in spans:
            text = span.text
            if not text:
                continue
            end = place + len(text)
            parts.append(text)
            if span.train:
                _append_span(trained, place, end)
            if span.markup:
                _append_span(frames, place, end)
                if not span.train:
                    headers.append(text)
            place = end
        return cls("".join(parts), tuple(trained), tuple(frames), tuple(headers))


def _append_span(spans: list[tuple[int, int]], begin: int, end: int) -> None:
    if spans and spans[-1][1] == begin:
        spans[-1] = (spans[-1][0], end)
    else:
        spans.append((begin, end))


def render_training_text(example: Example, template: Template, tokenizer: PreTrainedTokenizerBase) -> Rendering:
    """The rendering of a row that is to be trained on.

    Raises HarnessError, with the row's place, when the conversation does not end with a response, when a response is
    empty, when no response is marked as trained, or when the template refuses it or renders nothing trainable.
    """
    messages = example.messages
    if is_plain_text(example):
        return _render_plain_text(example, tokenizer)
    if not messages or messages[-1].role != "assistant":
        raise HarnessError(
            example.location, "the conversation does not end with a response", "give it one or remove it"
        )
    trained = False
    for number, message in enumerate(messages, 1):
        if message.role != "assistant":
            continue
        trained = trained or message.train
        if not message.tool_calls and not message.content.strip():
            what = f"the response (message {number} of {len(messages)}) is empty"
            raise HarnessError(example.location, what, "write a response or remove the row")
    if not trained:
        what = "none of its responses is marked as one to train on"
        raise HarnessError(example.location, what, "mark one of them, or remove the row")
    rendering = Rendering.from_spans(
        render_spans(example, messages, template, tokenizer, add_generation_prompt=False), template.control_tokens
    )
    if not rendering.trained_spans:
        raise no_trained_tokens_error(example, template)
    return rendering


def render_spans(
    example: Example,
    messages: Sequence[Message],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    add_generation_prompt: bool,
) -> Sequence[Span]:
    """What the template makes of some messages of a row. A template is told of tools only where the row has some.

    Raises HarnessError, with the row's place, when the template refuses them, and for a template that takes no tools.
    """
    try:
        return render_messages(
            template, messages, tokenizer, add_generation_prompt=add_generation_prompt, tools=example.tools
        )
    except HarnessError as error:
        raise HarnessError(example.location, f"{error.where}: {error.what}", error.hint) from error


def render_messages(
    template: Template,
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    *,
    add_generation_prompt: bool,
    tools: Sequence[Mapping[str, Any]],
) -> Sequence[Span]:
    """`template.render`, with tools only where there are some. Raises HarnessError as the template does."""
    if not tools:
        return template.render(messages, tokenizer, add_generation_prompt=add_generation_prompt)
    if not _accepts_tools(type(template).render):
        what = "the format has no place for tools"
        raise HarnessError(f"template {template_name(template)}", what, "choose another template, or take them out")
    return template.render(messages, tokenizer, add_generation_prompt=add_generation_prompt, tools=tools)


def is_plain_text(example: Example) -> bool:
    """Whether a row is a plain text and no conversation. Raises HarnessError when it is a text and more."""
    messages = example.messages
    if not messages or messages[0].role != TEXT_ROLE:
        return False
    if len(messages) > 1 or example.tools:
        what = "a plain text stands with other messages or with tools"
        raise HarnessError(example.location, what, "give it a row of its own")
    return True


def trained_message_indices(example: Example) -> list[int]:
    """The indices of the responses of a conversation that are to be trained on."""
    return [i for i, message in enumerate(example.messages) if message.role == "assistant" and message.train]


def template_name(template: Template) -> str:
    """What a template is called in messages."""
    return str(getattr(template, "name", type(template).__name__))


def no_trained_tokens_error(example: Example, template: Template) -> HarnessError:
    """The error of a row of which the template has nothing trained."""
    what = f"the template {template_name(template)} renders nothing trainable for this row"
    return HarnessError(example.location, what, "its spans must mark the response as trained; see `harness preview`")


def _render_plain_text(example: Example, tokenizer: PreTrainedTokenizerBase) -> Rendering:
    text, end = example.messages[0].content, tokenizer.eos_token
    if not text.strip():
        raise HarnessError(example.location, "the text is empty", "write one or remove the row")
    if not end:
        what = "the tokenizer has no end-of-sequence token, so nothing would tell a model that a text is over"
        raise HarnessError(example.location, what, "set one, or leave plain texts out")
    whole = len(text) + len(end)
    return Rendering(text + end, ((0, whole),), ((len(text), whole),), ())


@lru_cache(maxsize=64)
def _accepts_tools(method: Callable[..., Any]) -> bool:
    parameters = inspect.signature(method).parameters.values()
    return any(one.name == "tools" or one.kind is one.VAR_KEYWORD for one in parameters)
