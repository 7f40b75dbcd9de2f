"""Render conversations to text: call the template and join its spans into one text with known positions.

The core renders a plain text itself, without the template: a plain text has no turns for a format to write.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from harness.errors import ComponentError, HarnessError
from harness.interfaces.template import Template
from harness.types import Example, Message, Span
from harness.utils.time_limit import cpu_time_limit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_RENDER_SECONDS = 5
"""CPU time that a template may take for one conversation."""

TEXT_ROLE = "text"
"""The role of the only message of a plain text."""

Interval = tuple[int, int]
"""Begin (included) and end (excluded) of a span, in characters, bytes or tokens."""


@dataclass(frozen=True, slots=True)
class Rendering:
    r"""The text that a template renders, with the position of each kind of span.

    For a ChatML conversation::

        text          <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n
        markup_spans  [------------------)  [---------------------------------)    [----------)
        trained_spans                                                         [---------------)

    Attributes:
        text: All spans joined.
        trained_spans: Intervals of `text` that are trained, in order. Adjacent intervals are merged.
        markup_spans: Intervals of `text` that the template wrote itself, in order. Adjacent intervals are merged.
        untrained_markup: The texts of the untrained markup spans, and the template's other control tokens.
    """

    text: str
    trained_spans: tuple[Interval, ...]
    markup_spans: tuple[Interval, ...]
    untrained_markup: tuple[str, ...]

    @classmethod
    def from_spans(cls, spans: Iterable[Span], controls: Sequence[str] = ()) -> Rendering:
        """Join spans to one rendering.

        Args:
            spans: The spans of a template, in order.
            controls: Texts that only the template may write, see `Template.control_tokens`.
        """
        texts: list[str] = []
        trained: list[Interval] = []
        markup: list[Interval] = []
        untrained_markup: list[str] = list(controls)
        begin = 0
        for span in spans:
            if not span.text:
                continue
            end = begin + len(span.text)
            texts.append(span.text)
            if span.train:
                append_interval(trained, begin, end)
            if span.markup:
                append_interval(markup, begin, end)
                if not span.train:
                    untrained_markup.append(span.text)
            begin = end
        return cls("".join(texts), tuple(trained), tuple(markup), tuple(untrained_markup))

    @classmethod
    def of_content(cls, text: str) -> Rendering:
        """Return a rendering of text without markup, of which nothing is trained."""
        return cls(text, (), (), ())


def append_interval(intervals: list[Interval], begin: int, end: int) -> None:
    """Append an interval in place; merge it with the last one where they touch, and ignore an empty one."""
    if begin == end:
        return
    if intervals and intervals[-1][1] == begin:
        intervals[-1] = (intervals[-1][0], end)
    else:
        intervals.append((begin, end))


def render_training_text(example: Example, template: Template, tokenizer: PreTrainedTokenizerBase) -> Rendering:
    """Render a row for training.

    Raises:
        HarnessError: At the row's location, when the conversation does not end with a response, a response is empty,
            no response is marked as trained, or the template refuses the row or renders nothing trainable.
    """
    if is_plain_text(example):
        return _render_plain_text(example, tokenizer)
    _require_trained_response(example)
    rendering = Rendering.from_spans(
        render_spans(example, example.messages, template, tokenizer, add_generation_prompt=False),
        template.control_tokens,
    )
    if not rendering.trained_spans:
        raise no_trained_tokens_error(example, template)
    return rendering


def _require_trained_response(example: Example) -> None:
    messages = example.messages
    if not messages or messages[-1].role != "assistant":
        raise HarnessError(
            example.location, "the conversation does not end with a response", "add a response or remove the row"
        )
    for position, message in enumerate(messages, 1):
        if message.role == "assistant" and not message.tool_calls and not message.content.strip():
            what = f"the response (message {position} of {len(messages)}) is empty"
            raise HarnessError(example.location, what, "write a response or remove the row")
    if not trained_message_indices(example):
        what = "none of its responses is marked for training"
        raise HarnessError(example.location, what, "mark at least one response, or remove the row")


def render_spans(
    example: Example,
    messages: Sequence[Message],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    add_generation_prompt: bool,
) -> Sequence[Span]:
    """Render some messages of a row with its tools.

    Raises:
        HarnessError: At the row's location, when the template refuses the messages or does not support tools.
    """
    try:
        return render_messages(
            template, messages, tokenizer, add_generation_prompt=add_generation_prompt, tools=example.tools
        )
    except ComponentError as error:
        raise ComponentError(error.where, f"{error.what} (row {example.location})") from error.__cause__
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
    """Call `template.render`, and pass `tools` only where there are any.

    Raises:
        HarnessError: When the template refuses the messages, takes too long, needs too much memory, or there are tools
            and it does not accept them.
    """
    where = f"template {template_name(template)}"
    if tools and not _accepts_tools(type(template).render):
        what = "the format does not support tools"
        raise HarnessError(where, what, "choose another template, or remove the tools from the rows")
    more: dict[str, Any] = {"tools": tools} if tools else {}
    with cpu_time_limit(MAX_RENDER_SECONDS, lambda: _too_slow_error(where)):
        try:
            return template.render(messages, tokenizer, add_generation_prompt=add_generation_prompt, **more)
        except MemoryError as error:
            raise HarnessError(where, "it needs more memory than there is", "fix the template") from error


def _too_slow_error(where: str) -> HarnessError:
    what = f"it renders one conversation for more than {MAX_RENDER_SECONDS} s"
    return HarnessError(where, what, "fix the template: a loop in it may not end")


def is_plain_text(example: Example) -> bool:
    """Return whether a row is a plain text instead of a conversation.

    Raises:
        HarnessError: When the row is a plain text with other messages or tools.
    """
    messages = example.messages
    if not messages or messages[0].role != TEXT_ROLE:
        return False
    if len(messages) > 1 or example.tools:
        what = "a plain text has other messages or tools in its row"
        raise HarnessError(example.location, what, "put the plain text into a row of its own")
    return True


def trained_message_indices(example: Example) -> list[int]:
    """Return the indices of the responses to train on."""
    return [index for index, message in enumerate(example.messages) if message.role == "assistant" and message.train]


def template_name(template: Template) -> str:
    """Return the name of a template for messages."""
    return str(getattr(template, "name", type(template).__name__))


def no_trained_tokens_error(example: Example, template: Template) -> HarnessError:
    """Return the error of a row in which the template trains nothing."""
    what = f"the template {template_name(template)} renders nothing trainable for this row"
    return HarnessError(example.location, what, "its spans must mark the response as trained; see `harness preview`")


def _render_plain_text(example: Example, tokenizer: PreTrainedTokenizerBase) -> Rendering:
    text, end = example.messages[0].content, tokenizer.eos_token
    if not text.strip():
        raise HarnessError(example.location, "the text is empty", "write a text or remove the row")
    if not end:
        what = "the tokenizer has no end-of-sequence token, so a model could not learn where a text ends"
        raise HarnessError(example.location, what, "set eos_token in tokenizer_config.json, or remove plain texts")
    num_characters = len(text) + len(end)
    return Rendering(text + end, ((0, num_characters),), ((len(text), num_characters),), ())


@lru_cache(maxsize=64)
def _accepts_tools(method: Callable[..., Any]) -> bool:
    parameters = inspect.signature(method).parameters.values()
    return any(parameter.name == "tools" or parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
