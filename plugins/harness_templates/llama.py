"""Llama 3's format (arXiv:2407.21783): `<|start_header_id|>role<|end_header_id|>`, the content, `<|eot_id|>`.

Two versions of the chat templates that Meta published with the models:
  3.1  also of Llama 3.2 and 3.3. Every conversation begins with a system turn that tells the date. Tools stand in the
       first user turn, a call is one JSON object with `parameters`, and what a tool answers is the role `ipython`'s.
  3    of Llama 3: the turns alone, and no tools.
Contents are stripped, as published. Llama's built-in tools (`<|python_tag|>`) have no place here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness import Message, Span, Template
from harness_templates.base import (
    Turns,
    day_of,
    end_of_sequence,
    frame,
    is_trained,
    joined,
    refusal,
    take_apart,
    text_of,
)
from harness_templates.tool_calls import declared, dumps

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Llama2(Template):
    """Llama 2's chat format. With a tokenizer that has no begin-of-sequence token, none is written."""

    name = "llama2"

    def render(
        self,
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        *,
        open: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[Span, ...]:
        """The conversation as spans. Raises HarnessError where user and assistant do not alternate."""
        system, turns = take_apart(messages, open=open, template=self.name, tools=tools)
        end = end_of_sequence(tokenizer, self.name)
        spans: list[Span] = []
        for index, turn in enumerate(turns):
            spans.append(frame(f"{tokenizer.bos_token or ''}[INST] "))
            user = text_of(turn.user)
            if index == 0 and system is not None:
                # Stripped as one text in the original: only its end can change.
                spans += [frame("<<SYS>>\n"), Span(system), frame("\n<</SYS>>\n\n"), Span(user.rstrip())]
            else:
                spans.append(Span(user.strip()))
            spans.append(frame(" [/INST]"))
            if turn.response is not None:
                # The space goes with the answer: a prompt ends at [/INST], and most tokenizers join it to the word.
                trained = is_trained(turn.response)
                spans += [Span(f" {turn.response.content.strip()} ", trained=trained), frame(end, trained=trained)]
        return joined(spans)

    def stops(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """The end-of-sequence token."""
        return (end_of_sequence(tokenizer, self.name),)


START, STOP, END = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
GUIDE = (
    "Given the following functions, please respond with a JSON for a function call with its proper arguments that "
    'best answers the given prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of '
    "argument name and its value}.Do not use variables.\n\n"
)


class Llama3(Turns):
    """Llama 3's format. version: `3.1` or `3`. date: the day that 3.1 tells as today's, YYYY-MM-DD."""

    name = "llama3"
    tokens = (START, STOP, END)
    gap = ""

    def __init__(self, version: str, date: str) -> None:
        self.version = version
        self.takes_tools = version != "3"
        day = day_of(date, self.name)
        self.today = f"{day.day:02d} {MONTHS[day.month - 1]} {day.year}"

    def render(
        self,
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        *,
        open: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[Span, ...]:
        """The conversation as spans. Raises HarnessError when the tokenizer does not know the format's tokens, when a
        turn calls several tools or calls one beside its text, or when the version has no tools."""
        if self.version == "3":
            return super().render(messages, tokenizer, open=open, tools=tools)
        self.check(messages, tokenizer, open, tools)
        system = messages[0].content.strip() if messages[0].role == "system" else ""
        rest = messages[1:] if messages[0].role == "system" else messages
        spans = self.begin(tokenizer) + self.turn("system", [frame(self._preamble(tools)), Span(system)], tokenizer)
        for index, message in enumerate(rest):
            body = self.body(message)
            if tools and index == 0:
                if message.role != "user":
                    what = f"the tools stand in the first user turn, and the conversation begins with {message.role}"
                    raise refusal(self.name, what, "begin it with the user's message")
                body = [frame(GUIDE), *(s for t in tools for s in (Span(dumps(declared(t), 4)), frame("\n\n"))), *body]
            role = "ipython" if message.role == "tool" else message.role
            spans += self.turn(role, body, tokenizer, trained=is_trained(message))
        if open:
            spans.append(frame(self.header("assistant")))
        return joined(spans)

    def header(self, role: str) -> str:
        return f"{START}{role}{STOP}\n\n"

    def end(self, tokenizer: PreTrainedTokenizerBase) -> str:
        return END

    def begin(self, tokenizer: PreTrainedTokenizerBase) -> list[Span]:
        return [frame(tokenizer.bos_token or "")]

    def body(self, message: Message) -> list[Span]:
        """The content stripped, or the one call; what a tool answers as a JSON string, as published."""
        if message.role == "tool":
            return [Span(dumps(message.content))]
        if not message.calls:
            return [Span(text_of(message).strip(), trained=is_trained(message))]
        if len(message.calls) > 1 or message.content.strip():
            what = "a turn calls several tools" if len(message.calls) > 1 else "a turn calls a tool beside its text"
            raise refusal(self.name, f"{what}, and the format has one call or text", "split the turn, or choose qwen")
        (call,) = message.calls
        written = f'{{"name": {dumps(call.name)}, "parameters": {dumps(call.arguments)}}}'
        return [Span(written, trained=is_trained(message))]

    def _preamble(self, tools: Sequence[Mapping[str, Any]]) -> str:
        environment = "Environment: ipython\n" if tools else ""
        return f"{environment}Cutting Knowledge Date: December 2023\nToday Date: {self.today}\n\n"
