"""Mistral's instruction format, by its published reference (github.com/mistralai/mistral-common, tokenizers v3).

    <s>[INST] {user}[/INST] {answer}</s>[INST] {user}[/INST] {answer}</s>

There are two versions, which differ only in these spaces:

    v3         SentencePiece tokenizers: Mistral 7B v0.3, Mixtral 8x22B, Mistral Large 2407, Mistral Small 2409
    v3-tekken  Tekken tokenizers, without the spaces: Mistral Nemo, Ministral 8B, Pixtral 12B

A system message is written at the beginning of a user message, the tools before that message. Both move to the last
user message as the conversation grows, so earlier responses follow other prompts than at inference: see `system_turn`.
Call ids of nine letters and digits are written as in the data, as the reference requires. Calls with other ids, or
none, are numbered (see `tool_calls.assign_call_ids`).
In v1 `[INST]` is plain text, and v7 and later have a system turn: for these use the tokenizer's template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness import Component, Message, Span
from harness.utils.json_depth import load_json
from harness_templates.base import (
    EosTemplate,
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

COMPONENTS: dict[str, Component] = {
    "mistral": Component(
        summary="Mistral's [INST] format of the v3 tokenizers, with tools as [AVAILABLE_TOOLS] and [TOOL_CALLS].",
        factory="harness_templates.mistral:Mistral",
        options={
            "version": {
                "enum": ["v3", "v3-tekken"],
                "default": "v3",
                "description": "v3: SentencePiece tokenizers (Mistral 7B v0.3, Mixtral 8x22B). "
                "v3-tekken: Tekken tokenizers (Mistral Nemo, Ministral 8B), without spaces.",
            },
            "system_turn": {
                "enum": ["last", "first"],
                "default": "last",
                "description": "The user message that contains the system message and the tools. "
                "last: as published, but responses before it cannot be trained. first: every response can.",
            },
        },
    ),
}

INST_BEGIN, INST_END = "[INST]", "[/INST]"
TOOLS_BEGIN, TOOLS_END = "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"
TOOL_CALLS, TOOL_RESULTS_BEGIN, TOOL_RESULTS_END = "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"
TOOL_TOKENS = (TOOLS_BEGIN, TOOLS_END, TOOL_CALLS, TOOL_RESULTS_BEGIN, TOOL_RESULTS_END)


class Mistral(EosTemplate):
    """Mistral's format."""

    name = "mistral"

    def __init__(self, version: str, system_turn: str) -> None:
        """Create the template.

        Args:
            version: `v3` or `v3-tekken`.
            system_turn: The user message that contains the system message and the tools: the `last`, as published, or
                the `first`, so that every response can be trained.
        """
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
        """Render the conversation message by message.

        Raises:
            HarnessError: User and assistant do not alternate; a turn has text and tool calls; a trained response
                precedes the system message or the tools; or the tokenizer lacks one of the format's tokens.
        """
        validate_conversation(
            messages, add_generation_prompt=add_generation_prompt, template=self.name, tools=tools, supports_tools=True
        )
        validate_alternation(messages, self.name)
        uses_tools = bool(tools) or any(message.tool_calls for message in messages)
        require_tokens(tokenizer, (INST_BEGIN, INST_END, *(TOOL_TOKENS if uses_tools else ())), self.name)
        end = require_eos_token(tokenizer, self.name)
        system = messages[0] if messages[0].role == "system" else None
        carrier_index = self._system_carrier_index(
            messages, moves_to_last=not add_generation_prompt and (bool(tools) or system is not None)
        )
        spans = [markup_span(tokenizer.bos_token or "")]
        for index, (message, ids) in enumerate(zip(messages, assign_call_ids(messages), strict=True)):
            if message.role == "user":
                is_carrier = index == carrier_index
                spans += self._user_spans(message, system if is_carrier else None, tools if is_carrier else ())
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

    def _system_carrier_index(self, messages: Sequence[Message], *, moves_to_last: bool) -> int:
        """Return the index of the user message that contains the system message and the tools."""
        users = [index for index, message in enumerate(messages) if message.role == "user"]
        if self.system_turn == "first":
            return users[0]
        if moves_to_last and any(is_trained(message) for message in messages[: users[-1]]):
            what = "the system message or the tools are in the last user message, after a trained response"
            hint = 'set the source\'s option train_on to "each" or "last", or system_turn of the template to "first"'
            raise unsupported_error(self.name, what, hint)
        return users[-1]

    def _user_spans(self, message: Message, system: Message | None, tools: Sequence[Mapping[str, Any]]) -> list[Span]:
        spans = []
        if tools:
            tools_json = dump_json([to_openai_tool(tool) for tool in tools])
            spans += [markup_span(TOOLS_BEGIN + self.space), Span(tools_json), markup_span(TOOLS_END)]
        spans.append(markup_span(INST_BEGIN + self.space))
        if system is not None:
            spans += [Span(system.content), markup_span("\n\n")]
        return [*spans, Span(message_text(message)), markup_span(INST_END)]

    def _response_spans(self, message: Message, ids: Sequence[str]) -> list[Span]:
        trained = is_trained(message)
        if not message.tool_calls:
            # The space belongs to the answer: a prompt ends at [/INST].
            return [markup_span(self.space, trained=trained), Span(message.content, train=trained)]
        if message.content.strip():
            what = "a turn has text and tool calls, but the format supports either text or calls"
            raise unsupported_error(self.name, what, "split the turn, or choose qwen")
        calls = [
            {"name": call.name, "arguments": call.arguments, "id": call_id}
            for call, call_id in zip(message.tool_calls, ids, strict=True)
        ]
        return [markup_span(TOOL_CALLS + self.space, trained=trained), Span(dump_json(calls), train=trained)]


def _parse_json_or_text(text: str) -> Any:
    """Return a tool's answer as a JSON value if it is JSON, as the reference does, else as text."""
    try:
        return load_json(text)
    except ValueError:
        return text
