"""Qwen's format: ChatML with a system message by default, and tools as Hermes writes them (Qwen2.5, arXiv:2412.15115).

The tools stand in the system turn, one line of JSON each between <tools> and </tools>; a call is a line of JSON between
<tool_call> and </tool_call> in the assistant's turn; what tools answer stands in a user turn, each answer between
<tool_response> and </tool_response>.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from harness import Message, Span
from harness_templates.base import Turns, frame, is_trained, joined, text_of, with_system
from harness_templates.chatml import END, START
from harness_templates.tool_calls import declared, dumps

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
AFTER_TOOLS = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call>"
)


class Qwen(Turns):
    """Qwen's format. system: the system message of conversations that have none; None: none, as in Qwen3's template.

    A Qwen3 conversation without reasoning is the same with None (Qwen3-Instruct-2507).
    """

    name = "qwen"
    tokens = (START, END)
    takes_tools = True

    def __init__(self, system: str | None) -> None:
        self.system = system

    def render(
        self,
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        *,
        open: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[Span, ...]:
        """The conversation as spans. Raises HarnessError when the tokenizer does not know <|im_start|> or <|im_end|>,
        or when a tool answers a call that nobody made."""
        messages = with_system(messages, self.system)
        self.check(messages, tokenizer, open, tools)
        spans: list[Span] = []
        if tools:
            system = [Span(messages[0].content), frame("\n\n")] if messages[0].role == "system" else []
            spans += self.turn("system", [*system, *_declared(tools)], tokenizer)
            messages = messages[1:] if system else messages
        for answers, group in groupby(messages, lambda message: message.role == "tool"):
            if answers:
                spans += [frame(f"{START}user"), *(span for message in group for span in _answer(message))]
                spans += [frame(END), frame(self.gap)]
                continue
            for message in group:
                spans += self.turn(message.role, self.body(message), tokenizer, trained=is_trained(message))
        if open:
            spans.append(frame(self.header("assistant")))
        return joined(spans)

    def header(self, role: str) -> str:
        return f"{START}{role}\n"

    def end(self, tokenizer: PreTrainedTokenizerBase) -> str:
        return END

    def body(self, message: Message) -> list[Span]:
        """The content, and each call on lines of its own."""
        trained, text = is_trained(message), text_of(message)
        spans = [Span(text, trained=trained)]
        for number, call in enumerate(message.calls):
            line = "\n" if number or text else ""
            written = f'{{"name": {dumps(call.name)}, "arguments": {dumps(call.arguments)}}}'
            spans += [frame(f"{line}<tool_call>\n", trained=trained), Span(written, trained=trained)]
            spans.append(frame("\n</tool_call>", trained=trained))
        return spans


def _declared(tools: Sequence[Mapping[str, Any]]) -> Iterator[Span]:
    yield frame(TOOLS)
    for tool in tools:
        yield frame("\n")
        yield Span(dumps(declared(tool)))
    yield frame(AFTER_TOOLS)


def _answer(message: Message) -> tuple[Span, ...]:
    return frame("\n<tool_response>\n"), Span(message.content), frame("\n</tool_response>")
