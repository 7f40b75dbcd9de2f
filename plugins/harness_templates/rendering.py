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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError

from harness import HarnessError, Message, Span
from harness_templates.conversation import is_trained, joined, refusal
from harness_templates.openai import Tools, as_openai, shape_of, tools_as_openai, with_names
from harness_templates.skeleton import Skeleton, Unlocated, bounds, build, no_end_of_turn, no_prompt

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
