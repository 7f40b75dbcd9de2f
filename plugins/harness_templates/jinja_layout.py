"""One conversation under one chat template: its text, and the spans that it is made of.

The spans come from renderings of the conversation's beginnings: what is written up to a trained response with
`add_generation_prompt` is its header, and each must be the beginning of the whole (see `skeleton`). Responses that are
not trained may be rewritten as the conversation goes on, and many templates do so.
A template that treats some contents specially (reasoning, for one) has no skeleton for them; the trained spans are
then found all the same, everything counts as frame, and a content that holds a special token is refused.
Tools and calls always count as frame, but for the tokens in them (see `openai.Veil`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError

from harness import HarnessError, Message, Span
from harness_templates.base import is_trained, joined, refusal
from harness_templates.openai_format import Tools, as_openai, shape_of, tools_as_openai, with_names
from harness_templates.tool_calls import dumps

Render = Callable[[Sequence[Message], bool], str]
"""Messages, and whether to end with the header of a response → text."""

Place = tuple[int, int]
"""A frame, by its index, and where in it."""

ESCAPED = re.compile(r'[\x00-\x1f"\\]')
"""What JSON writes otherwise than text does."""

ANOTHER = 'set the source\'s option train_on to "last", or choose another template'
UNFIT = (
    "set its `variables` (such as enable_thinking) so that its prompt and its whole agree, or choose another template"
)


@dataclass(frozen=True)
class Skeleton:
    """The frames of conversations of one shape.

    frames: one more than there are contents: what stands before each, and after the last.
    trained: the trained stretches in order, each from after a response's header to the end of its end of turn.
    """

    frames: tuple[str, ...]
    trained: tuple[tuple[Place, Place], ...]

    def spans(self, contents: Sequence[str]) -> tuple[Span, ...]:
        """The rendering of conversations of this shape with these contents."""
        spans: list[Span] = []
        inside = False
        for index, text in enumerate(self.frames):
            place = 0
            for offset in [offset for stretch in self.trained for frame, offset in stretch if frame == index]:
                spans.append(Span(text[place:offset], trained=inside, frame=True))
                place, inside = offset, not inside
            spans.append(Span(text[place:], trained=inside, frame=True))
            if index < len(contents):
                spans.append(Span(contents[index], trained=inside))
        return joined(spans)

    def fit(self, text: str, contents: Sequence[str]) -> tuple[str, ...] | None:
        """The contents as they stand in `text`, where a template may have stripped them or written them as JSON; None
        when it is not theirs."""
        # place in the text -> the contents up to there; several only while white space can be told either way.
        paths: dict[int, tuple[str, ...]] = {0: ()}
        for frame, content in zip(self.frames, (*contents, ""), strict=True):
            after: dict[int, tuple[str, ...]] = {}
            for place, path in paths.items():
                if not text.startswith(frame, place):
                    continue
                start = place + len(frame)
                for variant in _variants(content):
                    if text.startswith(variant, start):
                        after.setdefault(start + len(variant), (*path, variant))
            paths = after
        found = paths.get(len(text))
        return None if found is None else found[:-1]


def build(render: Render, messages: Sequence[Message], trained: Sequence[int], open: bool, name: str) -> Skeleton:
    """The skeleton of conversations of this shape; a blank content is part of it, and so is all but the contents.

    trained: indices of the messages that are trained. Raises HarnessError when what the template writes up to a trained
    response, or up to its end, is not the beginning of what it writes for the whole conversation, or when it writes
    no end of turn, or leaves a message out; `Unlocated` when contents stand twice or in another order.
    """
    located = [index for index, message in enumerate(messages) if message.content.strip()]
    probed = [replace(m, content=f"Qx{i}Zk{i}") if i in located else m for i, m in enumerate(messages)]
    whole = render(probed, open)
    starts, ends, place = {}, {}, 0
    for index in located:
        probe = probed[index].content
        start = whole.find(probe, place)
        if probe not in whole:
            what = f"the chat template leaves out the content of message {index + 1} ({messages[index].role})"
            raise refusal(name, what, "choose another template")
        if start < 0 or whole.count(probe) != 1:
            raise Unlocated(name, "the chat template writes contents twice or in another order")
        starts[index], place = start, start + len(probe)
        ends[index] = place
    frames = list(zip([0, *ends.values()], [*starts.values(), len(whole)], strict=True))
    stretches = []
    for index in trained:
        header, end = bounds(render, probed, whole, index, name)
        before = max((ends[other] for other in located if other < index), default=0)
        if not before <= header <= starts.get(index, end):
            raise no_prompt(name, index)
        if end <= ends.get(index, header):
            raise no_end_of_turn(name)
        stretches.append((_place(header, frames), _place(end, frames)))
    return Skeleton(tuple(whole[begin:end] for begin, end in frames), tuple(stretches))


def bounds(render: Render, messages: Sequence[Message], whole: str, index: int, name: str) -> tuple[int, int]:
    """Where in `whole` the response `messages[index]` begins, after its header, and where its end of turn ends.

    White space after the end of turn belongs to the frame. Raises HarnessError when earlier turns are rewritten.
    """
    header = render(messages[:index], True)
    upto = render(messages[: index + 1], False)
    if not (whole.startswith(header) and upto.startswith(header)):
        what = f"what the chat template writes up to message {index + 1} is no beginning of the whole conversation"
        raise refusal(name, what, ANOTHER if index + 1 < len(messages) else UNFIT)
    if not whole.startswith(upto):
        what = f"the chat template rewrites message {index + 1}, a response, once another follows"
        raise refusal(name, what, ANOTHER)
    return len(header), len(upto.rstrip())


def no_prompt(name: str, index: int) -> HarnessError:
    """The error of a template by whose prompt a model would not be asked what it was trained on."""
    what = f"the prompt that the chat template writes for message {index + 1} is not what stands before that message"
    return refusal(name, what, UNFIT)


def no_end_of_turn(name: str) -> HarnessError:
    """The error of a template after whose responses a model would never learn to stop."""
    what = "the chat template writes nothing but white space after a response: no end of turn to train"
    return refusal(name, what, "let it write {{ eos_token }} there, or choose another template")


class Unlocated(HarnessError):
    """The contents of messages cannot be told from what the template writes."""


def _place(position: int, frames: Sequence[tuple[int, int]]) -> Place:
    """The frame that holds a position of the whole, and where in it; of two that touch it, the later."""
    index = max(index for index, (begin, _) in enumerate(frames) if begin <= position)
    return index, position - frames[index][0]


def _variants(content: str) -> tuple[str, ...]:
    stripped = (content, content.strip(), content.lstrip(), content.rstrip())
    lines = (content.strip("\n"), content.lstrip("\n"), content.rstrip("\n"))
    written = (dumps(content)[1:-1],) if ESCAPED.search(content) else ()
    return tuple(dict.fromkeys((*stripped, *lines, *written)))


PLAINEST = (Message("user", "question"), Message("assistant", "answer"))

REMEMBERED = 512
"""Skeletons that are kept for a tokenizer. Rows that call tools seldom share one; plain ones nearly always do."""


@dataclass(frozen=True)
class Conversation:
    """A conversation to render. name: of the template. source: the chat template. known: skeletons by their shape."""

    name: str
    source: str
    variables: Mapping[str, Any]
    tokenizer: Any
    known: dict[Any, Skeleton | None]
    messages: tuple[Message, ...]
    tools: Tools
    open: bool

    def spans(self) -> tuple[Span, ...]:
        """The spans. Raises HarnessError as `ChatTemplate.render` does."""
        whole = self._text(self.messages, self.open)
        skeleton = self._skeleton()
        if skeleton is not None:
            contents = [message.content for message in self.messages if message.content.strip()]
            fitting = skeleton.fit(whole, contents)
            if fitting is not None:
                return skeleton.spans(fitting)
        return self._without_skeleton(whole)

    def stops(self) -> tuple[str, ...]:
        """The tokens that end a response, and the end-of-sequence token."""
        skeleton = self._plainest()._skeleton()
        ends = [] if skeleton is None else _stops_in(skeleton.frames[-1], self.tokenizer)
        return tuple(dict.fromkeys(stop for stop in (*ends, self.tokenizer.eos_token) if stop))

    def _plainest(self) -> Conversation:
        return replace(self, messages=PLAINEST, tools=(), open=False)

    def _text(self, messages: Sequence[Message], open: bool) -> str:
        """What the template writes: with the ids of the data's calls, or, where it refuses these for their shape as
        Mistral's does, with ids of nine letters and digits."""
        given = as_openai(messages, nine=False)
        try:
            return self._written_of(given, open)
        except HarnessError:
            other = as_openai(messages)
            if other == given:
                raise
            return self._written_of(other, open)

    def _written_of(self, messages: list[dict[str, Any]], open: bool) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                tools=tools_as_openai(self.tools),
                chat_template=self.source,
                tokenize=False,
                add_generation_prompt=open,
                **self.variables,
            )
        # What a template can do wrong is open-ended: it is a program of its own.
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            roles = ", ".join(message["role"] for message in messages)
            what = f"the chat template fails on a conversation of {roles}: {type(error).__name__}: {error}"
            raise refusal(self.name, what, "mend the row or the template, or choose another template") from error
        return str(text)

    def _trained(self) -> list[int]:
        if self.open:
            return []
        written = [bool(message.content.strip() or message.calls) for message in self.messages]
        return [i for i, message in enumerate(self.messages) if is_trained(message) and written[i]]

    def _skeleton(self) -> Skeleton | None:
        key = (self.source, shape_of(self.messages, self.tools), self.open)
        if key not in self.known:
            self._check_nothing_is_left_out()
            try:
                found = build(self._text, self.messages, self._trained(), self.open, self.name)
                self._check_calls_end(found)
            except Unlocated:
                found = None
            if len(self.known) >= REMEMBERED:
                del self.known[next(iter(self.known))]
            self.known[key] = found
        return self.known[key]

    def _check_nothing_is_left_out(self) -> None:
        if not self.tools and not any(message.calls for message in self.messages):
            return
        messages, tools, called, told = with_names(self.messages, self.tools)
        text = replace(self, tools=tools)._text(messages, self.open)
        for names, what in ((called, "calls of tools"), (told, "the tools that there are")):
            if any(name not in text for name in names):
                raise refusal(self.name, f"the chat template leaves out {what}", "choose another template")

    def _check_calls_end(self, skeleton: Skeleton) -> None:
        """A call can be the whole of a response, and then no content tells where its end of turn begins."""
        calling = [bool(self.messages[index].calls) for index in self._trained()]
        if not any(calling):
            return
        ends = (*self.stops(), *(token for token in self.tokenizer.added_tokens_encoder if token.strip()))
        for calls, (_, (frame, offset)) in zip(calling, skeleton.trained, strict=True):
            if calls and not skeleton.frames[frame][:offset].endswith(ends):
                raise no_end_of_turn(self.name)

    def _without_skeleton(self, whole: str) -> tuple[Span, ...]:
        written = self._plainest()._written()
        for token in self.tokenizer.added_tokens_decoder.values():
            own = token.special or (token.content in written and token.content.strip())
            if own and any(token.content in message.content for message in self.messages):
                what = f"a message holds {token.content}, and the chat template rewrites that message"
                raise refusal(self.name, what, "take the token out of the row, or choose another template")
        spans, place = [], 0
        for index in self._trained():
            self._check_prompt(index)
            start, end = bounds(self._text, self.messages, whole, index, self.name)
            message = self.messages[index]
            if not message.calls and whole[start:end].endswith(message.content.strip()):
                raise no_end_of_turn(self.name)
            spans += [Span(whole[place:start], frame=True), Span(whole[start:end], trained=True, frame=True)]
            place = end
        return joined((*spans, Span(whole[place:], frame=True)))

    def _check_prompt(self, index: int) -> None:
        """The prompt must ask what stands before the response; without a skeleton, its text alone does not tell."""
        if index:
            asked = replace(self.messages[index - 1], content="Qp0Zk")
            if "Qp0Zk" not in self._text((*self.messages[: index - 1], asked), True):
                raise no_prompt(self.name, index)

    def _written(self) -> str:
        """What the template writes itself and does not train."""
        skeleton = self._skeleton()
        spans = skeleton.spans(("", "")) if skeleton else ()
        return "".join(span.text for span in spans if not span.trained)


def _stops_in(end: str, tokenizer: Any) -> list[str]:
    """What ends a turn in an end of turn: each token of its own in it, and the text before the first, if any."""
    tokens = [re.escape(token.content) for token in tokenizer.added_tokens_decoder.values() if token.content in end]
    if not tokens:
        return [end.strip()]
    pattern = "|".join(sorted(tokens, key=len, reverse=True))
    return [re.split(pattern, end)[0].strip(), *re.findall(pattern, end)]
