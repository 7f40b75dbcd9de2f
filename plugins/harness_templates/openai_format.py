"""Conversations in the shape that Hugging Face's chat templates expect: OpenAI's, with arguments as a mapping."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from harness import Message, Span, ToolCall
from harness_templates.base import drop_empty_spans
from harness_templates.tool_calls import assign_call_ids, dump_json, to_openai_tool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

THINKING_BLOCK = re.compile(r"\s*<think>\n*(.*?)\n*</think>\n*", re.DOTALL)

ToolSchemas = tuple[Mapping[str, Any], ...]

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""The keys in which chat templates look for reasoning: Qwen3's, OpenRouter's and gpt-oss's."""


def to_openai_messages(messages: Sequence[Message], *, mistral_ids: bool = True) -> list[dict[str, Any]]:
    """Return the messages as dicts. A turn without calls has no key `tool_calls`: some templates test for the key only.

    Args:
        messages: The conversation.
        mistral_ids: See `assign_call_ids`.
    """
    dicts = []
    for message, ids in zip(messages, assign_call_ids(messages, mistral_ids=mistral_ids), strict=True):
        openai_message: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.reasoning is not None:
            openai_message |= dict.fromkeys(REASONING_KEYS, message.reasoning)
        if message.tool_calls:
            openai_message["tool_calls"] = [
                {"id": call_id, "type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
                for call, call_id in zip(message.tool_calls, ids, strict=True)
            ]
        if message.role == "tool":
            openai_message["tool_call_id"] = ids[0]
            if message.name is not None:
                openai_message["name"] = message.name
        dicts.append(openai_message)
    return dicts


def split_thinking_block(message: Message) -> Message:
    """Return a response whose content begins with `<think>…</think>` with that text as its reasoning.

    Not every template that writes reasoning looks for it in the content, and one that opens the block in its header
    would write `<think>` twice.
    """
    if message.role != "assistant" or message.reasoning is not None:
        return message
    match = THINKING_BLOCK.match(message.content)
    if match is None:
        return message
    return replace(message, reasoning=match[1] if match[1].strip() else None, content=message.content[match.end() :])


def to_openai_tools(tools: ToolSchemas) -> list[dict[str, Any]] | None:
    """Return the tools as dicts, or None without tools, for which templates test."""
    return [to_openai_tool(tool) for tool in tools] or None


@dataclass(frozen=True)
class ToolTextEscaper:
    """Replaces a tokenizer's tokens in calls and tools by placeholders while a template renders them.

    A template may write calls and tools anywhere and in any shape, so they count as markup. A special token inside
    them would then be read as one. It is replaced by letters and digits, and restored as plain text in the spans.

    Attributes:
        placeholders: Token as text -> its placeholder.
    """

    placeholders: Mapping[str, str]

    @classmethod
    def for_conversation(
        cls, messages: Sequence[Message], tools: ToolSchemas, tokenizer: PreTrainedTokenizerBase
    ) -> ToolTextEscaper:
        """Return the escaper of the tokenizer's tokens that occur in these calls and tools."""
        if not tools and not any(message.tool_calls or message.name for message in messages):
            return cls({})
        calls = [
            [m.name, m.tool_call_id, [[call.name, call.arguments, call.id] for call in m.tool_calls]] for m in messages
        ]
        tool_text = "\0".join(_iter_strings([calls, [dict(tool) for tool in tools]]))
        occurring = [
            token
            for token in tokenizer.added_tokens_encoder
            if token.strip() and token in tool_text and dump_json(token) == f'"{token}"'
        ]
        salt = 0
        while any(f"Qv{salt}v" in text for text in (tool_text, *(message.content for message in messages))):
            salt += 1
        longest_first = sorted(occurring, key=len, reverse=True)
        return cls({token: f"Qv{salt}v{index}Zk" for index, token in enumerate(longest_first)})

    def escape_messages(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """Return the messages with the tokens in their calls and tool names replaced."""
        if not self.placeholders:
            return tuple(messages)
        return tuple(
            replace(
                message,
                name=self._escape(message.name),
                tool_call_id=self._escape(message.tool_call_id),
                tool_calls=tuple(
                    ToolCall(*map(self._escape, (call.name, call.arguments, call.id))) for call in message.tool_calls
                ),
            )
            for message in messages
        )

    def escape_tools(self, tools: ToolSchemas) -> ToolSchemas:
        """Return the tools with the tokens in them replaced."""
        return tuple(self._escape(tool) for tool in tools) if self.placeholders else tools

    def unescape(self, spans: Iterable[Span]) -> tuple[Span, ...]:
        """Return the spans with each placeholder in markup replaced by its token, as plain text."""
        if not self.placeholders:
            return tuple(spans)
        tokens = {placeholder: token for token, placeholder in self.placeholders.items()}
        pattern = re.compile(f"({'|'.join(tokens)})")
        unescaped = []
        for span in spans:
            if not span.markup:
                unescaped.append(span)
                continue
            for piece in pattern.split(span.text):
                token = tokens.get(piece)
                unescaped.append(replace(span, text=piece) if token is None else Span(token, train=span.train))
        return drop_empty_spans(unescaped)

    def _escape(self, value: Any) -> Any:
        if isinstance(value, str):
            for token, placeholder in self.placeholders.items():
                value = value.replace(token, placeholder)
            return value
        if isinstance(value, Mapping):
            return {self._escape(key): self._escape(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self._escape(inner) for inner in value]
        return value


def with_probe_names(
    messages: Sequence[Message], tools: ToolSchemas
) -> tuple[tuple[Message, ...], ToolSchemas, list[str], list[str]]:
    """Give every call and every tool a unique name. A name that is missing from a rendering shows what is left out.

    Returns:
        The renamed messages, the renamed tools, the names of the calls and the names of the tools.
    """
    call_names: list[str] = []

    def rename(call: ToolCall) -> ToolCall:
        call_names.append(f"Qc{len(call_names)}Zk")
        return replace(call, name=call_names[-1])

    renamed = tuple(replace(message, tool_calls=tuple(map(rename, message.tool_calls))) for message in messages)
    tool_names = [f"Qt{index}Zk" for index in range(len(tools))]
    renamed_tools = tuple({**tool, "name": name} for tool, name in zip(tools, tool_names, strict=True))
    return renamed, renamed_tools, call_names, tool_names


def conversation_shape(messages: Sequence[Message], tools: ToolSchemas) -> str:
    """Return a key that is equal for conversations that differ only in their (not blank) contents."""
    shape = [
        [
            message.role,
            None if message.content.strip() else message.content,
            message.train,
            message.name,
            message.tool_call_id,
            [[call.name, call.arguments, call.id] for call in message.tool_calls],
        ]
        for message in messages
    ]
    return dump_json([shape, [dict(tool) for tool in tools]])


def _iter_strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _iter_strings(key)
            yield from _iter_strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _iter_strings(inner)
