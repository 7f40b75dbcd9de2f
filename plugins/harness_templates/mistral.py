"""Mistral's instruction format, by its published reference (github.com/mistralai/mistral-common, tokenizers v3).

    <s>[INST] {user}[/INST] {answer}</s>[INST] {user}[/INST] {answer}</s>

Two versions, which differ in these spaces alone:
  v3         of the SentencePiece tokenizers: Mistral 7B v0.3, Mixtral 8x22B, Mistral Large 2407, Mistral Small 2409
  v3-tekken  of the Tekken tokenizers, without the spaces: Mistral Nemo, Ministral 8B, Pixtral 12B
A system message stands at the head of a user message, the tools before that message, and both move to the last one as
the conversation goes on. Earlier responses then stand after prompts that no model is ever given: see `system_turn`.
Ids of calls that are nine letters and digits are written as the data has them, as the reference demands; calls with
others, or none, are counted (see `tool_calls.assign_call_ids`).
In v1 `[INST]` is plain text, and v7 and later have a system turn of their own: for these take the tokenizer's template.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness import Message, Span, Template
from harness_templates.base import (
    drop_empty_spans,
    is_trained,
    markup_span,
    message_text,
    require_eos_token,
    require_tokens,
    unsupported_error,
    validate_alternation,
    validate_conversation,
)
from harness_templates.tool_calls import assign_call_ids, dump_json, to_openai_tool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INST_BEGIN, INST_END = "[INST]", "[/INST]"
TOOLS_BEGIN, TOOLS_END = "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"
TOOL_CALLS, TOOL_RESULTS_BEGIN, TOOL_RESULTS_END = "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"


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
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[Span, ...]:
        """The conversation as spans. Raises HarnessError when the tokenizer does not know the format's tokens, where
        user and assistant do not alternate, when a turn calls tools beside its text, or when a response is trained that
        stands before the system message or the tools."""
        validate_conversation(
            messages, add_generation_prompt=add_generation_prompt, template=self.name, tools=tools, supports_tools=True
        )
        validate_alternation(messages, self.name)
        tooled = bool(tools) or any(message.tool_calls for message in messages)
        of_tools = (TOOLS_BEGIN, TOOLS_END, TOOL_CALLS, TOOL_RESULTS_BEGIN, TOOL_RESULTS_END) if tooled else ()
        require_tokens(tokenizer, (INST_BEGIN, INST_END, *of_tools), self.name)
        end = require_eos_token(tokenizer, self.name)
        system = messages[0] if messages[0].role == "system" else None
        carrier = self._system_carrier_index(
            messages, moves_to_last=not add_generation_prompt and (bool(tools) or system is not None)
        )
        spans = [markup_span(tokenizer.bos_token or "")]
        for index, (message, ids) in enumerate(zip(messages, assign_call_ids(messages), strict=True)):
            if message.role == "user":
                carries = index == carrier
                spans += self._user_spans(message, system if carries else None, tools if carries else ())
            elif message.role == "tool":
                answer = {"content": _parse_json_or_text(message.content), "call_id": ids[0]}
                spans += [
                    markup_span(TOOL_RESULTS_BEGIN + self.space),
                    Span(dump_json(answer)),
                    markup_span(TOOL_RESULTS_END),
                ]
            elif message.role == "assistant":
                trained = is_trained(message)
                spans += [*self._response_spans(message, ids), markup_span(end, trained=trained)]
        return drop_empty_spans(spans)

    def stop_strings(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """The end-of-sequence token."""
        return (require_eos_token(tokenizer, self.name),)

    def _system_carrier_index(self, messages: Sequence[Message], *, moves_to_last: bool) -> int:
        users = [index for index, message in enumerate(messages) if message.role == "user"]
        if self.system_turn == "first":
            return users[0]
        if moves_to_last and any(is_trained(message) for message in messages[: users[-1]]):
            what = "the system message or the tools stand in the last user message, after a response that is trained"
            hint = 'set the source\'s option train_on to "last", or system_turn of the template to "first"'
            raise unsupported_error(self.name, what, hint)
        return users[-1]

    def _user_spans(self, message: Message, system: Message | None, tools: Sequence[Mapping[str, Any]]) -> list[Span]:
        spans = []
        if tools:
            written = dump_json([to_openai_tool(tool) for tool in tools])
            spans += [markup_span(TOOLS_BEGIN + self.space), Span(written), markup_span(TOOLS_END)]
        spans.append(markup_span(INST_BEGIN + self.space))
        if system is not None:
            spans += [Span(system.content), markup_span("\n\n")]
        return [*spans, Span(message_text(message)), markup_span(INST_END)]

    def _response_spans(self, message: Message, ids: Sequence[str]) -> list[Span]:
        trained = is_trained(message)
        if not message.tool_calls:
            # The space goes with the answer: a prompt ends at [/INST].
            return [markup_span(self.space, trained=trained), Span(message.content, train=trained)]
        if message.content.strip():
            what = "a turn calls tools beside its text, and the format has calls or text"
            raise unsupported_error(self.name, what, "split the turn, or choose qwen")
        calls = [
            {"name": call.name, "arguments": call.arguments, "id": identity}
            for call, identity in zip(message.tool_calls, ids, strict=True)
        ]
        return [markup_span(TOOL_CALLS + self.space, trained=trained), Span(dump_json(calls), train=trained)]


def _parse_json_or_text(text: str) -> Any:
    """What a tool answered, as JSON where it is JSON: so the reference writes it."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
