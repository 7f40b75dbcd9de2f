"""One conversation under one chat template: its text, and the spans that it is made of.

The spans come from renderings of the conversation's beginnings: what is written up to a trained response with
`add_generation_prompt` is its header, and each must be the beginning of the whole (see `TemplateLayout`). Responses
that are not trained may be rewritten as the conversation goes on, and many templates do so.
A template that treats some contents specially (reasoning, for one) has no skeleton for them; the trained spans are
then found all the same, everything counts as frame, and a content that holds a special token is refused.
Tools and calls always count as frame, but for the tokens in them (see `openai_format.ToolTextEscaper`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError

from harness import HarnessError, Message, Span
from harness_templates.base import drop_empty_spans, is_trained, unsupported_error
from harness_templates.openai_format import (
    ToolSchemas,
    conversation_shape,
    to_openai_messages,
    to_openai_tools,
    with_probe_names,
)
from harness_templates.tool_calls import dump_json

RenderText = Callable[[Sequence[Message], bool], str]
"""Messages, and whether to end with the header of a response → text."""

LayoutPosition = tuple[int, int]
"""A frame, by its index, and where in it."""

JSON_ESCAPED = re.compile(r'[\x00-\x1f"\\]')
"""What JSON writes otherwise than text does."""

HINT_OTHER_TEMPLATE = 'set the source\'s option train_on to "last", or choose another template'
HINT_VARIABLES = (
    "set its `variables` (such as enable_thinking) so that its prompt and its whole agree, or choose another template"
)


@dataclass(frozen=True)
class TemplateLayout:
    """The frames of conversations of one shape.

    markup: one more than there are contents: what stands before each, and after the last.
    trained_ranges: the trained stretches in order, each from after a response's header to the end of its end of turn.
    """

    markup: tuple[str, ...]
    trained_ranges: tuple[tuple[LayoutPosition, LayoutPosition], ...]

    def render_spans(self, contents: Sequence[str]) -> tuple[Span, ...]:
        """The rendering of conversations of this shape with these contents."""
        spans: list[Span] = []
        inside = False
        for index, text in enumerate(self.markup):
            place = 0
            for offset in [offset for stretch in self.trained_ranges for frame, offset in stretch if frame == index]:
                spans.append(Span(text[place:offset], train=inside, markup=True))
                place, inside = offset, not inside
            spans.append(Span(text[place:], train=inside, markup=True))
            if index < len(contents):
                spans.append(Span(contents[index], train=inside))
        return drop_empty_spans(spans)

    def match(self, text: str, contents: Sequence[str]) -> tuple[str, ...] | None:
        """The contents as they stand in `text`, where a template may have stripped them or written them as JSON; None
        when it is not theirs."""
        # place in the text -> the contents up to there; several only while white space can be told either way.
        paths: dict[int, tuple[str, ...]] = {0: ()}
        for frame, content in zip(self.markup, (*contents, ""), strict=True):
            after: dict[int, tuple[str, ...]] = {}
            for place, path in paths.items():
                if not text.startswith(frame, place):
                    continue
                start = place + len(frame)
                for variant in _content_variants(content):
                    if text.startswith(variant, start):
                        after.setdefault(start + len(variant), (*path, variant))
            paths = after
        found = paths.get(len(text))
        return None if found is None else found[:-1]


def build_layout(
    render: RenderText,
    messages: Sequence[Message],
    trained_indices: Sequence[int],
    add_generation_prompt: bool,
    template_name: str,
) -> TemplateLayout:
    """The skeleton of conversations of this shape; a blank content is part of it, and so is all but the contents.

    trained_indices: of the messages that are trained. Raises HarnessError when what the template writes up to a trained
    response, or up to its end, is not the beginning of what it writes for the whole conversation, or when it writes
    no end of turn, or leaves a message out; `ContentNotLocated` when contents stand twice or in another order.
    """
    located = [index for index, message in enumerate(messages) if message.content.strip()]
    probed = [replace(m, content=f"Qx{i}Zk{i}") if i in located else m for i, m in enumerate(messages)]
    whole = render(probed, add_generation_prompt)
    starts, ends, place = {}, {}, 0
    for index in located:
        probe = probed[index].content
        start = whole.find(probe, place)
        if probe not in whole:
            what = f"the chat template leaves out the content of message {index + 1} ({messages[index].role})"
            raise unsupported_error(template_name, what, "choose another template")
        if start < 0 or whole.count(probe) != 1:
            raise ContentNotLocated(template_name, "the chat template writes contents twice or in another order")
        starts[index], place = start, start + len(probe)
        ends[index] = place
    frames = list(zip([0, *ends.values()], [*starts.values(), len(whole)], strict=True))
    stretches = []
    for index in trained_indices:
        header, end = response_bounds(render, probed, whole, index, template_name)
        before = max((ends[other] for other in located if other < index), default=0)
        if not before <= header <= starts.get(index, end):
            raise prompt_mismatch_error(template_name, index)
        if end <= ends.get(index, header):
            raise no_end_of_turn_error(template_name)
        stretches.append((_markup_position(header, frames), _markup_position(end, frames)))
    return TemplateLayout(tuple(whole[begin:end] for begin, end in frames), tuple(stretches))


def response_bounds(
    render: RenderText, messages: Sequence[Message], full_text: str, index: int, template_name: str
) -> tuple[int, int]:
    """Where in `full_text` the response `messages[index]` begins, after its header, and where its end of turn ends.

    White space after the end of turn belongs to the frame. Raises HarnessError when earlier turns are rewritten.
    """
    header = render(messages[:index], True)
    upto = render(messages[: index + 1], False)
    if not (full_text.startswith(header) and upto.startswith(header)):
        what = f"what the chat template writes up to message {index + 1} is no beginning of the whole conversation"
        raise unsupported_error(
            template_name, what, HINT_OTHER_TEMPLATE if index + 1 < len(messages) else HINT_VARIABLES
        )
    if not full_text.startswith(upto):
        what = f"the chat template rewrites message {index + 1}, a response, once another follows"
        raise unsupported_error(template_name, what, HINT_OTHER_TEMPLATE)
    return len(header), len(upto.rstrip())


def prompt_mismatch_error(template_name: str, index: int) -> HarnessError:
    """The error of a template by whose prompt a model would not be asked what it was trained on."""
    what = f"the prompt that the chat template writes for message {index + 1} is not what stands before that message"
    return unsupported_error(template_name, what, HINT_VARIABLES)


def no_end_of_turn_error(template_name: str) -> HarnessError:
    """The error of a template after whose responses a model would never learn to stop."""
    what = "the chat template writes nothing but white space after a response: no end of turn to train"
    return unsupported_error(template_name, what, "let it write {{ eos_token }} there, or choose another template")


class ContentNotLocated(HarnessError):
    """The contents of messages cannot be told from what the template writes."""


def _markup_position(position: int, markup_ranges: Sequence[tuple[int, int]]) -> LayoutPosition:
    """The frame that holds a position of the whole, and where in it; of two that touch it, the later."""
    index = max(index for index, (begin, _) in enumerate(markup_ranges) if begin <= position)
    return index, position - markup_ranges[index][0]


def _content_variants(content: str) -> tuple[str, ...]:
    stripped = (content, content.strip(), content.lstrip(), content.rstrip())
    lines = (content.strip("\n"), content.lstrip("\n"), content.rstrip("\n"))
    written = (dump_json(content)[1:-1],) if JSON_ESCAPED.search(content) else ()
    return tuple(dict.fromkeys((*stripped, *lines, *written)))


MINIMAL_CONVERSATION = (Message("user", "question"), Message("assistant", "answer"))

MAX_CACHED_LAYOUTS = 512
"""Skeletons that are kept for a tokenizer. Rows that call tools seldom share one; plain ones nearly always do."""


@dataclass(frozen=True)
class ConversationRenderer:
    """A conversation to render. layouts: those known, by their shape."""

    template_name: str
    chat_template: str
    variables: Mapping[str, Any]
    tokenizer: Any
    layouts: dict[Any, TemplateLayout | None]
    messages: tuple[Message, ...]
    tools: ToolSchemas
    add_generation_prompt: bool

    def render_spans(self) -> tuple[Span, ...]:
        """The spans. Raises HarnessError as `ChatTemplate.render` does."""
        whole = self._render_text(self.messages, self.add_generation_prompt)
        skeleton = self._layout()
        if skeleton is not None:
            contents = [message.content for message in self.messages if message.content.strip()]
            fitting = skeleton.match(whole, contents)
            if fitting is not None:
                return skeleton.render_spans(fitting)
        return self._spans_without_layout(whole)

    def stop_strings(self) -> tuple[str, ...]:
        """The tokens that end a response, and the end-of-sequence token."""
        skeleton = self._minimal()._layout()
        ends = [] if skeleton is None else _stop_strings_in(skeleton.markup[-1], self.tokenizer)
        return tuple(dict.fromkeys(stop for stop in (*ends, self.tokenizer.eos_token) if stop))

    def _minimal(self) -> ConversationRenderer:
        return replace(self, messages=MINIMAL_CONVERSATION, tools=(), add_generation_prompt=False)

    def _render_text(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        """What the template writes: with the ids of the data's calls, or, where it refuses these for their shape as
        Mistral's does, with ids of nine letters and digits."""
        given = to_openai_messages(messages, mistral_ids=False)
        try:
            return self._apply_chat_template(given, add_generation_prompt)
        except HarnessError:
            other = to_openai_messages(messages)
            if other == given:
                raise
            return self._apply_chat_template(other, add_generation_prompt)

    def _apply_chat_template(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                tools=to_openai_tools(self.tools),
                chat_template=self.chat_template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **self.variables,
            )
        # What a template can do wrong is open-ended: it is a program of its own.
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            roles = ", ".join(message["role"] for message in messages)
            what = f"the chat template fails on a conversation of {roles}: {type(error).__name__}: {error}"
            raise unsupported_error(
                self.template_name, what, "mend the row or the template, or choose another template"
            ) from error
        return str(text)

    def _trained_indices(self) -> list[int]:
        if self.add_generation_prompt:
            return []
        written = [bool(message.content.strip() or message.tool_calls) for message in self.messages]
        return [i for i, message in enumerate(self.messages) if is_trained(message) and written[i]]

    def _layout(self) -> TemplateLayout | None:
        key = (self.chat_template, conversation_shape(self.messages, self.tools), self.add_generation_prompt)
        if key not in self.layouts:
            self._check_tools_are_written()
            try:
                found = build_layout(
                    self._render_text,
                    self.messages,
                    self._trained_indices(),
                    self.add_generation_prompt,
                    self.template_name,
                )
                self._check_calls_end(found)
            except ContentNotLocated:
                found = None
            if len(self.layouts) >= MAX_CACHED_LAYOUTS:
                del self.layouts[next(iter(self.layouts))]
            self.layouts[key] = found
        return self.layouts[key]

    def _check_tools_are_written(self) -> None:
        if not self.tools and not any(message.tool_calls for message in self.messages):
            return
        messages, tools, called, told = with_probe_names(self.messages, self.tools)
        text = replace(self, tools=tools)._render_text(messages, self.add_generation_prompt)
        for names, what in ((called, "calls of tools"), (told, "the tools that there are")):
            if any(name not in text for name in names):
                raise unsupported_error(
                    self.template_name, f"the chat template leaves out {what}", "choose another template"
                )

    def _check_calls_end(self, layout: TemplateLayout) -> None:
        """A call can be the whole of a response, and then no content tells where its end of turn begins."""
        calling = [bool(self.messages[index].tool_calls) for index in self._trained_indices()]
        if not any(calling):
            return
        ends = (*self.stop_strings(), *(token for token in self.tokenizer.added_tokens_encoder if token.strip()))
        for calls, (_, (frame, offset)) in zip(calling, layout.trained_ranges, strict=True):
            if calls and not layout.markup[frame][:offset].endswith(ends):
                raise no_end_of_turn_error(self.template_name)

    def _spans_without_layout(self, full_text: str) -> tuple[Span, ...]:
        written = self._minimal()._untrained_text()
        for token in self.tokenizer.added_tokens_decoder.values():
            own = token.special or (token.content in written and token.content.strip())
            if own and any(token.content in message.content for message in self.messages):
                what = f"a message holds {token.content}, and the chat template rewrites that message"
                raise unsupported_error(
                    self.template_name, what, "take the token out of the row, or choose another template"
                )
        spans, place = [], 0
        for index in self._trained_indices():
            self._check_prompt(index)
            start, end = response_bounds(self._render_text, self.messages, full_text, index, self.template_name)
            message = self.messages[index]
            if not message.tool_calls and full_text[start:end].endswith(message.content.strip()):
                raise no_end_of_turn_error(self.template_name)
            spans += [Span(full_text[place:start], markup=True), Span(full_text[start:end], train=True, markup=True)]
            place = end
        return drop_empty_spans((*spans, Span(full_text[place:], markup=True)))

    def _check_prompt(self, index: int) -> None:
        """The prompt must ask what stands before the response; without a skeleton, its text alone does not tell."""
        if index:
            asked = replace(self.messages[index - 1], content="Qp0Zk")
            if "Qp0Zk" not in self._render_text((*self.messages[: index - 1], asked), True):
                raise prompt_mismatch_error(self.template_name, index)

    def _untrained_text(self) -> str:
        """What the template writes itself and does not train."""
        skeleton = self._layout()
        spans = skeleton.render_spans(("", "")) if skeleton else ()
        return "".join(span.text for span in spans if not span.train)


def _stop_strings_in(end: str, tokenizer: Any) -> list[str]:
    """What ends a turn in an end of turn: each token of its own in it, and the text before the first, if any."""
    tokens = [re.escape(token.content) for token in tokenizer.added_tokens_decoder.values() if token.content in end]
    if not tokens:
        return [end.strip()]
    pattern = "|".join(sorted(tokens, key=len, reverse=True))
    return [re.split(pattern, end)[0].strip(), *re.findall(pattern, end)]
