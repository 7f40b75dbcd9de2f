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

TEXT = "text"
"""The role of the only message of a plain text."""


@dataclass(frozen=True, slots=True)
class Rendering:
    """What a template renders, joined.

    trained, frames: stretches of `text`, (begin, end), in order; stretches that touch are one.
    untrained_frames: the texts of the frames that are not trained, and what only the template may write besides.
    """

    text: str
    trained: tuple[tuple[int, int], ...]
    frames: tuple[tuple[int, int], ...]
    untrained_frames: tuple[str, ...]

    @classmethod
    def of(cls, spans: Iterable[Span], controls: Sequence[str] = ()) -> Rendering:
        """The spans, joined. controls: see `Template.controls`."""
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
            if span.trained:
                _extend(trained, place, end)
            if span.frame:
                _extend(frames, place, end)
                if not span.trained:
                    headers.append(text)
            place = end
        return cls("".join(parts), tuple(trained), tuple(frames), tuple(headers))


def _extend(stretches: list[tuple[int, int]], begin: int, end: int) -> None:
    if stretches and stretches[-1][1] == begin:
        stretches[-1] = (stretches[-1][0], end)
    else:
        stretches.append((begin, end))


def rendered(example: Example, template: Template, tokenizer: PreTrainedTokenizerBase) -> Rendering:
    """The rendering of a row that is to be trained on.

    Raises HarnessError, with the row's place, when the conversation does not end with a response, when a response is
    empty, when no response is marked as trained, or when the template refuses it or renders nothing trainable.
    """
    messages = example.messages
    if is_text(example):
        return _plain(example, tokenizer)
    if not messages or messages[-1].role != "assistant":
        raise HarnessError(example.place, "the conversation does not end with a response", "give it one or remove it")
    trained = False
    for number, message in enumerate(messages, 1):
        if message.role != "assistant":
            continue
        trained = trained or message.trained
        if not message.calls and not message.content.strip():
            what = f"the response (message {number} of {len(messages)}) is empty"
            raise HarnessError(example.place, what, "write a response or remove the row")
    if not trained:
        what = "none of its responses is marked as one to train on"
        raise HarnessError(example.place, what, "mark one of them, or remove the row")
    rendering = Rendering.of(spans(example, messages, template, tokenizer, open=False), template.controls)
    if not rendering.trained:
        raise nothing_trained(example, template)
    return rendering


def spans(
    example: Example, messages: Sequence[Message], template: Template, tokenizer: PreTrainedTokenizerBase, *, open: bool
) -> Sequence[Span]:
    """What the template makes of some messages of a row. A template is told of tools only where the row has some.

    Raises HarnessError, with the row's place, when the template refuses them, and for a template that takes no tools.
    """
    try:
        return render(template, messages, tokenizer, open=open, tools=example.tools)
    except HarnessError as error:
        raise HarnessError(example.place, f"{error.where}: {error.what}", error.hint) from error


def render(
    template: Template,
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    *,
    open: bool,
    tools: Sequence[Mapping[str, Any]],
) -> Sequence[Span]:
    """`template.render`, with tools only where there are some. Raises HarnessError as the template does."""
    if not tools:
        return template.render(messages, tokenizer, open=open)
    if not _takes_tools(type(template).render):
        what = "the format has no place for tools"
        raise HarnessError(f"template {name_of(template)}", what, "choose another template, or take them out")
    return template.render(messages, tokenizer, open=open, tools=tools)


def is_text(example: Example) -> bool:
    """Whether a row is a plain text and no conversation. Raises HarnessError when it is a text and more."""
    messages = example.messages
    if not messages or messages[0].role != TEXT:
        return False
    if len(messages) > 1 or example.tools:
        what = "a plain text stands with other messages or with tools"
        raise HarnessError(example.place, what, "give it a row of its own")
    return True


def trained_messages(example: Example) -> list[int]:
    """The indices of the responses of a conversation that are to be trained on."""
    return [i for i, message in enumerate(example.messages) if message.role == "assistant" and message.trained]


def name_of(template: Template) -> str:
    """What a template is called in messages."""
    return str(getattr(template, "name", type(template).__name__))


def nothing_trained(example: Example, template: Template) -> HarnessError:
    """The error of a row of which the template has nothing trained."""
    what = f"the template {name_of(template)} renders nothing trainable for this row"
    return HarnessError(example.place, what, "its spans must mark the response as trained; see `harness preview`")


def _plain(example: Example, tokenizer: PreTrainedTokenizerBase) -> Rendering:
    text, end = example.messages[0].content, tokenizer.eos_token
    if not text.strip():
        raise HarnessError(example.place, "the text is empty", "write one or remove the row")
    if not end:
        what = "the tokenizer has no end-of-sequence token, so nothing would tell a model that a text is over"
        raise HarnessError(example.place, what, "set one, or leave plain texts out")
    whole = len(text) + len(end)
    return Rendering(text + end, ((0, whole),), ((len(text), whole),), ())


@lru_cache(maxsize=64)
def _takes_tools(method: Callable[..., Any]) -> bool:
    parameters = inspect.signature(method).parameters.values()
    return any(one.name == "tools" or one.kind is one.VAR_KEYWORD for one in parameters)
