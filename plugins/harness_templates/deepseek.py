"""DeepSeek-V3's format (arXiv:2412.19437): `<｜User｜>`, the content, `<｜Assistant｜>`, the content, the end.

Calls stand after the response's text, each with its arguments as a block of JSON, and what tools answer stands between
tokens of its own, the response to it right behind. The published template forgets to open the second block of calls or
of answers in a conversation; here each is opened. It has no place to tell what tools there are. Reasoning in a
response is part of its text: the models that reason have other formats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness import Message, Span, Template
from harness_templates.base import check, check_alternation, frame, is_trained, joined, refusal, require, text_of
from harness_templates.tool_calls import dumps

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

USER, ASSISTANT, END = "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"
CALLS, AFTER_CALLS = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, NAME, AFTER_CALL = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
ANSWERS, AFTER_ANSWERS = "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>"
ANSWER, AFTER_ANSWER = "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"
OF_TOOLS = (CALLS, AFTER_CALLS, CALL, NAME, AFTER_CALL, ANSWERS, AFTER_ANSWERS, ANSWER, AFTER_ANSWER)


class DeepSeek(Template):
    """DeepSeek-V3's format."""

    name = "deepseek"
    controls = (USER, ASSISTANT, *OF_TOOLS)

    def render(
        self,
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        *,
        open: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[Span, ...]:
        """The conversation as spans. Raises HarnessError when the tokenizer does not know the format's tokens, where
        user and assistant do not alternate, or when there are tools to be told of."""
        if tools:
            hint = "describe them in the system message, or choose a template that has a place: qwen, llama3, mistral"
            raise refusal(self.name, "the format has no place to tell what tools there are", hint)
        check(messages, open=open, template=self.name, takes_tools=True)
        check_alternation(messages, self.name)
        tooled = any(message.calls for message in messages)
        require(tokenizer, (USER, ASSISTANT, END, *(OF_TOOLS if tooled else ())), self.name)
        spans, before = [frame(tokenizer.bos_token or "")], ""
        for message in messages:
            if message.role == "system":
                spans.append(Span(message.content))
            elif message.role == "user":
                spans += [frame(USER), Span(text_of(message))]
            elif message.role == "tool":
                spans += [frame("" if before == "tool" else ANSWERS), frame(ANSWER), Span(message.content)]
                spans.append(frame(AFTER_ANSWER))
            else:
                spans += [frame(_header(before)), *_response(message), frame(END, trained=is_trained(message))]
            before = message.role
        if open:
            spans.append(frame(_header(before)))
        return joined(spans)

    def stops(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """The end of a response, and the end-of-sequence token where that is another one."""
        return tuple(dict.fromkeys(stop for stop in (END, tokenizer.eos_token) if stop))


def _header(before: str) -> str:
    return AFTER_ANSWERS if before == "tool" else ASSISTANT


def _response(message: Message) -> Iterator[Span]:
    trained = is_trained(message)
    yield Span(text_of(message), trained=trained)
    for number, call in enumerate(message.calls):
        yield frame(("\n" if number else CALLS) + f"{CALL}function{NAME}", trained=trained)
        yield Span(call.name, trained=trained)
        yield frame("\n```json\n", trained=trained)
        yield Span(dumps(call.arguments), trained=trained)
        yield frame(f"\n```{AFTER_CALL}", trained=trained)
    if message.calls:
        yield frame(AFTER_CALLS, trained=trained)
