"""The spans of one conversation under one Jinja chat template.

Trained spans are derived from renderings of the conversation's beginnings. The text up to a trained response, rendered
with `add_generation_prompt`, ends with the response's header. Each such rendering must be the beginning of the full
text. Responses that are not trained may be rewritten in a longer conversation, and many templates do so.

    full text      <user>Hi<end><assistant>Hello<end><user>Bye<end> …
    header         <user>Hi<end><assistant>                             messages[:1], add_generation_prompt
    up to response <user>Hi<end><assistant>Hello<end>                   messages[:2]
    trained                                Hello<end>

A `TemplateLayout` keeps the markup of conversations of one shape. A template that treats some contents specially
has no layout for them, and neither has a conversation with reasoning. Its trained spans are derived in the same way,
but everything counts as markup, and a content with a special token is refused. Tools and calls always count as markup,
except for the tokens in them (see `openai_format.ToolTextEscaper`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness import HarnessError, Message, Span
from harness_templates.base import HINT_REASONING, drop_empty_spans, is_trained, unsupported_error
from harness_templates.openai_format import (
    ToolSchemas,
    conversation_shape,
    to_openai_messages,
    to_openai_tools,
    with_probe_names,
)
from harness_templates.tool_calls import dump_json

RenderText = Callable[[Sequence[Message], bool], str]
"""Messages, and whether to end with the header of a response -> text."""

LayoutPosition = tuple[int, int]
"""The index of a piece of markup, and the offset in it."""

JSON_ESCAPED = re.compile(r'[\x00-\x1f"\\]')
"""Characters that JSON escapes."""

HINT_CHOOSE_OTHER = "choose another template"
HINT_OTHER_TEMPLATE = f'set the source\'s option train_on to "each" or "last", or {HINT_CHOOSE_OTHER}'
HINT_VARIABLES = (
    f"set its `variables` (such as enable_thinking) so that prompt and full conversation agree, or {HINT_CHOOSE_OTHER}"
)

MINIMAL_CONVERSATION = (Message("user", "question"), Message("assistant", "answer"))

MAX_CACHED_LAYOUTS = 512
"""Layouts cached per tokenizer. Rows that call tools rarely share one; other rows nearly always do."""


class ContentNotLocated(HarnessError):
    """The contents of messages cannot be distinguished from the template's own text."""


@dataclass(frozen=True)
class TemplateLayout:
    """The markup of conversations of one shape.

    Attributes:
        markup: The text before each content and after the last: one more than there are contents.
        trained_ranges: The trained ranges in order, each from the end of a response's header to the end of its end of
            turn.
    """

    markup: tuple[str, ...]
    trained_ranges: tuple[tuple[LayoutPosition, LayoutPosition], ...]

    def render_spans(self, contents: Sequence[str]) -> tuple[Span, ...]:
        """Return the spans of a conversation of this shape with these contents."""
        spans: list[Span] = []
        trained = False
        boundaries = [position for trained_range in self.trained_ranges for position in trained_range]
        for index, text in enumerate(self.markup):
            start = 0
            for offset in [offset for markup_index, offset in boundaries if markup_index == index]:
                spans.append(Span(text[start:offset], train=trained, markup=True))
                start, trained = offset, not trained
            spans.append(Span(text[start:], train=trained, markup=True))
            if index < len(contents):
                spans.append(Span(contents[index], train=trained))
        return drop_empty_spans(spans)

    def match(self, text: str, contents: Sequence[str]) -> tuple[str, ...] | None:
        """Return the contents as written in `text`, or None if the text has another layout.

        A template may have stripped the contents, or written them as JSON.
        """
        # Position in the text -> the contents up to it. There are several only while white space is ambiguous.
        matches: dict[int, tuple[str, ...]] = {0: ()}
        for markup, content in zip(self.markup, (*contents, ""), strict=True):
            extended: dict[int, tuple[str, ...]] = {}
            for position, matched in matches.items():
                if not text.startswith(markup, position):
                    continue
                start = position + len(markup)
                for variant in _content_variants(content):
                    if text.startswith(variant, start):
                        extended.setdefault(start + len(variant), (*matched, variant))
            matches = extended
        written = matches.get(len(text))
        return None if written is None else written[:-1]


def build_layout(
    render: RenderText,
    messages: Sequence[Message],
    trained_indices: Sequence[int],
    add_generation_prompt: bool,
    template_name: str,
) -> TemplateLayout:
    """Return the layout of conversations of this shape, from a rendering with a probe in place of each content.

    Blank contents belong to the markup.

    Args:
        render: The chat template.
        messages: A conversation of this shape.
        trained_indices: The indices of the trained messages.
        add_generation_prompt: Whether the conversation ends before a response.
        template_name: The template's name, for errors.

    Raises:
        HarnessError: The text up to a trained response, or up to its end, is not the beginning of the full text; or
            the template writes no end of turn, or omits a message.
        ContentNotLocated: Contents occur twice or in another order.
    """
    located = [index for index, message in enumerate(messages) if message.content.strip()]
    probed = [replace(m, content=f"Qx{i}Zk{i}") if i in located else m for i, m in enumerate(messages)]
    full_text = render(probed, add_generation_prompt)
    starts, ends, position = {}, {}, 0
    for index in located:
        probe = probed[index].content
        start = full_text.find(probe, position)
        if probe not in full_text:
            what = f"the chat template omits the content of message {index + 1} ({messages[index].role})"
            raise unsupported_error(template_name, what, HINT_CHOOSE_OTHER)
        if start < 0 or full_text.count(probe) != 1:
            raise ContentNotLocated(template_name, "the chat template writes contents twice or in another order")
        starts[index], position = start, start + len(probe)
        ends[index] = position
    markup_ranges = list(zip([0, *ends.values()], [*starts.values(), len(full_text)], strict=True))
    trained_ranges = []
    for index in trained_indices:
        header_end, turn_end = response_bounds(render, probed, full_text, index, template_name)
        previous_end = max((ends[other] for other in located if other < index), default=0)
        if not previous_end <= header_end <= starts.get(index, turn_end):
            raise prompt_mismatch_error(template_name, index)
        if turn_end <= ends.get(index, header_end):
            raise no_end_of_turn_error(template_name)
        trained_ranges.append((_markup_position(header_end, markup_ranges), _markup_position(turn_end, markup_ranges)))
    return TemplateLayout(tuple(full_text[begin:end] for begin, end in markup_ranges), tuple(trained_ranges))


def response_bounds(
    render: RenderText, messages: Sequence[Message], full_text: str, index: int, template_name: str
) -> tuple[int, int]:
    """Return the positions in `full_text` after the header and after the end of turn of the response `messages[index]`.

    White space after the end of turn belongs to the following markup.

    Args:
        render: The chat template.
        messages: The conversation.
        full_text: Its rendering.
        index: The index of the response.
        template_name: The template's name, for errors.

    Raises:
        HarnessError: Earlier turns are rewritten.
    """
    header = render(messages[:index], True)
    up_to_response = render(messages[: index + 1], False)
    if not (full_text.startswith(header) and up_to_response.startswith(header)):
        what = f"the chat template's text up to message {index + 1} is not the beginning of the full conversation"
        hint = HINT_OTHER_TEMPLATE if index + 1 < len(messages) else HINT_VARIABLES
        raise unsupported_error(template_name, what, hint)
    if not full_text.startswith(up_to_response):
        what = f"the chat template rewrites message {index + 1}, a response, once another follows"
        raise unsupported_error(template_name, what, HINT_OTHER_TEMPLATE)
    return len(header), len(up_to_response.rstrip())


def prompt_mismatch_error(template_name: str, index: int) -> HarnessError:
    """Return the error of a template whose prompt at inference differs from the trained one."""
    what = f"the chat template's prompt for message {index + 1} differs from the text before that message"
    return unsupported_error(template_name, what, HINT_VARIABLES)


def no_end_of_turn_error(template_name: str) -> HarnessError:
    """Return the error of a template that would never teach a model to stop."""
    what = "the chat template writes only white space after a response: there is no end of turn to train"
    return unsupported_error(template_name, what, f"write {{{{ eos_token }}}} there, or {HINT_CHOOSE_OTHER}")


def _markup_position(position: int, markup_ranges: Sequence[tuple[int, int]]) -> LayoutPosition:
    """Return a position of the full text as index of markup and offset; at a boundary, the later piece of markup."""
    index = max(index for index, (begin, _) in enumerate(markup_ranges) if begin <= position)
    return index, position - markup_ranges[index][0]


def _content_variants(content: str) -> tuple[str, ...]:
    stripped = (content, content.strip(), content.lstrip(), content.rstrip())
    without_line_breaks = (content.strip("\n"), content.lstrip("\n"), content.rstrip("\n"))
    as_json = (dump_json(content)[1:-1],) if JSON_ESCAPED.search(content) else ()
    return tuple(dict.fromkeys((*stripped, *without_line_breaks, *as_json)))


@dataclass(frozen=True)
class ConversationRenderer:
    """A conversation to render.

    Attributes:
        template_name: The template's name, for errors.
        chat_template: The Jinja text.
        variables: Its further variables.
        tokenizer: The tokenizer that renders it.
        layouts: The cached layouts by shape; None for a shape without one.
        messages: The conversation.
        tools: The tools of the row.
        add_generation_prompt: Whether the conversation ends before a response.
    """

    template_name: str
    chat_template: str
    variables: Mapping[str, Any]
    tokenizer: Any
    layouts: dict[Any, TemplateLayout | None]
    messages: tuple[Message, ...]
    tools: ToolSchemas
    add_generation_prompt: bool

    def render_spans(self) -> tuple[Span, ...]:
        """Return the spans.

        Raises:
            HarnessError: See `ChatTemplate.render`.
        """
        full_text = self._render_text(self.messages, self.add_generation_prompt)
        has_reasoning = any(message.reasoning is not None for message in self.messages)
        layout = None if has_reasoning else self._layout()
        if layout is not None:
            contents = [message.content for message in self.messages if message.content.strip()]
            written_contents = layout.match(full_text, contents)
            if written_contents is not None:
                return layout.render_spans(written_contents)
        return self._spans_without_layout(full_text)

    def stop_strings(self) -> tuple[str, ...]:
        """Return the tokens that end a response, and the end-of-sequence token."""
        answer = MINIMAL_CONVERSATION[-1].content
        _, _, end_of_turn = self._minimal()._render_text(MINIMAL_CONVERSATION, False).rpartition(answer)
        ends = _stop_strings_in(end_of_turn, self.tokenizer)
        return tuple(dict.fromkeys(stop for stop in (*ends, self.tokenizer.eos_token) if stop))

    def _minimal(self) -> ConversationRenderer:
        return replace(self, messages=MINIMAL_CONVERSATION, tools=(), add_generation_prompt=False)

    def _render_text(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        """Render with the data's call ids, or with ids of nine letters and digits if the template refuses those.

        Mistral's templates refuse ids of another form.
        """
        openai_messages = to_openai_messages(messages, mistral_ids=False)
        try:
            return self._apply_chat_template(openai_messages, add_generation_prompt)
        except HarnessError:
            with_mistral_ids = to_openai_messages(messages)
            if with_mistral_ids == openai_messages:
                raise
            return self._apply_chat_template(with_mistral_ids, add_generation_prompt)

    def _apply_chat_template(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                tools=to_openai_tools(self.tools),
                chat_template=self.chat_template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **self.variables,
            )
        # A template is a program: it can fail in any of these ways.
        except (RecursionError, MemoryError) as error:
            what = f"the chat template ended with {type(error).__name__}"
            raise unsupported_error(
                self.template_name, what, "fix the template: it nests or repeats without end"
            ) from error
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            roles = ", ".join(message["role"] for message in messages)
            what = f"the chat template fails on a conversation of {roles}: {type(error).__name__}: {error}"
            hint = f"fix the row or the template, or {HINT_CHOOSE_OTHER}"
            raise unsupported_error(self.template_name, what, hint) from error
        return str(text)

    def _trained_indices(self) -> list[int]:
        if self.add_generation_prompt:
            return []
        has_text = [bool(message.content.strip() or message.tool_calls) for message in self.messages]
        return [i for i, message in enumerate(self.messages) if is_trained(message) and has_text[i]]

    def _layout(self) -> TemplateLayout | None:
        """Return the layout of this conversation's shape, from the cache if it is there."""
        key = (self.chat_template, conversation_shape(self.messages, self.tools), self.add_generation_prompt)
        if key not in self.layouts:
            self._check_tools_are_written()
            layout: TemplateLayout | None
            try:
                layout = build_layout(
                    self._render_text,
                    self.messages,
                    self._trained_indices(),
                    self.add_generation_prompt,
                    self.template_name,
                )
                self._check_calls_end(layout)
            except ContentNotLocated:
                layout = None
            if len(self.layouts) >= MAX_CACHED_LAYOUTS:
                del self.layouts[next(iter(self.layouts))]
            self.layouts[key] = layout
        return self.layouts[key]

    def _check_tools_are_written(self) -> None:
        if not self.tools and not any(message.tool_calls for message in self.messages):
            return
        messages, tools, call_names, tool_names = with_probe_names(self.messages, self.tools)
        text = replace(self, tools=tools)._render_text(messages, self.add_generation_prompt)
        for names, part in ((call_names, "the tool calls"), (tool_names, "the list of tools")):
            if any(name not in text for name in names):
                raise unsupported_error(self.template_name, f"the chat template omits {part}", HINT_CHOOSE_OTHER)

    def _check_calls_end(self, layout: TemplateLayout) -> None:
        """Check that a trained response with calls ends with a token: its contents may not show where it ends."""
        has_calls = [bool(self.messages[index].tool_calls) for index in self._trained_indices()]
        if not any(has_calls):
            return
        ends = (*self.stop_strings(), *(token for token in self.tokenizer.added_tokens_encoder if token.strip()))
        for calls, (_, (markup_index, offset)) in zip(has_calls, layout.trained_ranges, strict=True):
            if calls and not layout.markup[markup_index][:offset].endswith(ends):
                raise no_end_of_turn_error(self.template_name)

    def _spans_without_layout(self, full_text: str) -> tuple[Span, ...]:
        markup = self._minimal()._untrained_text()
        for token in self.tokenizer.added_tokens_decoder.values():
            is_markup = token.special or (token.content in markup and token.content.strip())
            texts = [text for message in self.messages for text in (message.content, message.reasoning or "")]
            if is_markup and any(token.content in text for text in texts):
                what = f"a message contains {token.content}, and the chat template rewrites that message"
                hint = f"remove the token from the row, or {HINT_CHOOSE_OTHER}"
                raise unsupported_error(self.template_name, what, hint)
        spans, position = [], 0
        for index in self._trained_indices():
            self._check_prompt(index)
            start, end = response_bounds(self._render_text, self.messages, full_text, index, self.template_name)
            message = self.messages[index]
            if message.reasoning is not None and message.reasoning.strip() not in full_text[start:end]:
                what = f"the chat template omits the reasoning of message {index + 1}, which is trained"
                raise unsupported_error(self.template_name, what, HINT_REASONING)
            if not message.tool_calls and full_text[start:end].endswith(message.content.strip()):
                raise no_end_of_turn_error(self.template_name)
            spans += [Span(full_text[position:start], markup=True), Span(full_text[start:end], train=True, markup=True)]
            position = end
        return drop_empty_spans((*spans, Span(full_text[position:], markup=True)))

    def _check_prompt(self, index: int) -> None:
        """Check that the prompt contains the message before the response; without a layout its text cannot show it."""
        if index:
            probe = replace(self.messages[index - 1], content="Qp0Zk")
            if "Qp0Zk" not in self._render_text((*self.messages[: index - 1], probe), True):
                raise prompt_mismatch_error(self.template_name, index)

    def _untrained_text(self) -> str:
        """Return the template's own text that is not trained."""
        return self._render_text(MINIMAL_CONVERSATION[:1], True)


def _stop_strings_in(end_of_turn: str, tokenizer: Any) -> list[str]:
    """Return the stop strings in an end of turn: the text before its first token, if any, and each of its tokens."""
    tokens = [
        re.escape(token.content) for token in tokenizer.added_tokens_decoder.values() if token.content in end_of_turn
    ]
    if not tokens:
        return [end_of_turn.strip()]
    pattern = "|".join(sorted(tokens, key=len, reverse=True))
    return [re.split(pattern, end_of_turn)[0].strip(), *re.findall(pattern, end_of_turn)]
