"""Mistral's instruction format, by its published reference (github.com/mistralai/mistral-common, tokenizers v3).

    <s>[INST] {user}[/INST] {answer}</s>[INST] {user}[/INST] {answer}</s>

Two versions, which differ in these spaces alone:
  v3         of the SentencePiece tokenizers: Mistral 7B v0.3, Mixtral 8x22B, Mistral Large 2407, Mistral Small 2409
  v3-tekken  of the Tekken tokenizers, without the spaces: Mistral Nemo, Ministral 8B, Pixtral 12B
A system message stands at the head of a user message, the tools before that message, and both move to the last one as
the conversation goes on. Earlier responses then stand after prompts that no model is ever given: see `system_turn`.
Ids of calls that are nine letters and digits are written as the data has them, as the reference demands; calls with
others, or none, are counted (see `tools.call_ids`).
In v1 `[INST]` is plain text, and v7 and later have a system turn of their own: for these take the tokenizer's template.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness import Message, Span, Template
from harness_templates.base import (
    check,
    check_alternation,
    end_of_sequence,
    frame,
    is_trained,
    joined,
    refusal,
    require,
    text_of,
)
from harness_templates.tool_calls import call_ids, declared, dumps

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INST, AFTER_INST = "[INST]", "[/INST]"
TOOLS, AFTER_TOOLS = "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"
CALLS, ANSWER, AFTER_ANSWER = "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"


class Mistral(Template):
    """Mistral's format. version: `v3` or `v3-tekken`.

    system_turn: which user message carries the system message and the tools: the `last`, as published, or the `first`,
    so that every response can be trained.
    """

    name = "mistral"

    def __init__(self, version: str, system_turn: str) -> None:
        self.space = "" if version == "v3-tekken" else " "
        self.system_turn = system_turn

    def render(
        self,
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        *,
        open: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[Span, ...]:
        """The conversation as spans. Raises HarnessError when the tokenizer does not know the format's tokens, where
        user and assistant do not alternate, when a turn calls tools beside its text, or when a response is trained that
        stands before the system message or the tools."""
        check(messages, open=open, template=self.name, tools=tools, takes_tools=True)
        check_alternation(messages, self.name)
        tooled = bool(tools) or any(message.calls for message in messages)
        of_tools = (TOOLS, AFTER_TOOLS, CALLS, ANSWER, AFTER_ANSWER) if tooled else ()
        require(tokenizer, (INST, AFTER_INST, *of_tools), self.name)
        end = end_of_sequence(tokenizer, self.name)
        system = messages[0] if messages[0].role == "system" else None
        carrier = self._carrier(messages, moves=not open and (bool(tools) or system is not None))
        spans = [frame(tokenizer.bos_token or "")]
        for index, (message, ids) in enumerate(zip(messages, call_ids(messages), strict=True)):
            if message.role == "user":
                carries = index == carrier
                spans += self._user(message, system if carries else None, tools if carries else ())
            elif message.role == "tool":
                answer = {"content": _parsed(message.content), "call_id": ids[0]}
                spans += [frame(ANSWER + self.space), Span(dumps(answer)), frame(AFTER_ANSWER)]
            elif message.role == "assistant":
                trained = is_trained(message)
                spans += [*self._response(message, ids), frame(end, trained=trained)]
        return joined(spans)

    def stops(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """The end-of-sequence token."""
        return (end_of_sequence(tokenizer, self.name),)

    def _carrier(self, messages: Sequence[Message], *, moves: bool) -> int:
        users = [index for index, message in enumerate(messages) if message.role == "user"]
        if self.system_turn == "first":
            return users[0]
        if moves and any(is_trained(message) for message in messages[: users[-1]]):
            what = "the system message or the tools stand in the last user message, after a response that is trained"
            hint = 'set the source\'s option train_on to "last", or system_turn of the template to "first"'
            raise refusal(self.name, what, hint)
        return users[-1]

    def _user(self, message: Message, system: Message | None, tools: Sequence[Mapping[str, Any]]) -> list[Span]:
        spans = []
        if tools:
            written = dumps([declared(tool) for tool in tools])
            spans += [frame(TOOLS + self.space), Span(written), frame(AFTER_TOOLS)]
        spans.append(frame(INST + self.space))
        if system is not None:
            spans += [Span(system.content), frame("\n\n")]
        return [*spans, Span(text_of(message)), frame(AFTER_INST)]

    def _response(self, message: Message, ids: Sequence[str]) -> list[Span]:
        trained = is_trained(message)
        if not message.calls:
            # The space goes with the answer: a prompt ends at [/INST].
            return [frame(self.space, trained=trained), Span(message.content, trained=trained)]
        if message.content.strip():
            what = "a turn calls tools beside its text, and the format has calls or text"
            raise refusal(self.name, what, "split the turn, or choose qwen")
        calls = [
            {"name": call.name, "arguments": call.arguments, "id": identity}
            for call, identity in zip(message.calls, ids, strict=True)
        ]
        return [frame(CALLS + self.space, trained=trained), Span(dumps(calls), trained=trained)]


def _parsed(text: str) -> Any:
    """What a tool answered, as JSON where it is JSON: so the reference writes it."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
