"""Conversations in the shape that Hugging Face's chat templates take: OpenAI's, with arguments as a mapping."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from harness import Message, Span, ToolCall
from harness_templates.tool_calls import assign_call_ids, dump_json, to_openai_tool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ToolSchemas = tuple[Mapping[str, Any], ...]


def to_openai_messages(messages: Sequence[Message], *, mistral_ids: bool = True) -> list[dict[str, Any]]:
    """The messages as dicts. A turn without calls has no key `tool_calls`: some templates ask for the key alone.

    mistral_ids: see `assign_call_ids`.
    """
    dicts = []
    for message, ids in zip(messages, assign_call_ids(messages, mistral_ids=mistral_ids), strict=True):
        made: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            made["tool_calls"] = [
                {"id": identity, "type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
                for call, identity in zip(message.tool_calls, ids, strict=True)
            ]
        if message.role == "tool":
            made["tool_call_id"] = ids[0]
            if message.name is not None:
                made["name"] = message.name
        dicts.append(made)
    return dicts


def to_openai_tools(tools: ToolSchemas) -> list[dict[str, Any]] | None:
    """The tools as dicts; None where there are none, as templates ask for that."""
    return [to_openai_tool(tool) for tool in tools] or None


@dataclass(frozen=True)
class ToolTextEscaper:
    """Takes a tokenizer's tokens out of calls and tools, so that a template can write these into its frames.

    A template may write them anywhere and in any shape, so they cannot be told from its frames. A token that stands in
    them gets a stand-in of plain letters and digits, and is text again in the spans.
    placeholders: token as text -> what stands in for it.
    """

    placeholders: Mapping[str, str]

    @classmethod
    def for_conversation(
        cls, messages: Sequence[Message], tools: ToolSchemas, tokenizer: PreTrainedTokenizerBase
    ) -> ToolTextEscaper:
        """The veil over the tokenizer's own tokens that stand in these calls and tools."""
        if not tools and not any(message.tool_calls or message.name for message in messages):
            return cls({})
        calls = [
            [m.name, m.tool_call_id, [[call.name, call.arguments, call.id] for call in m.tool_calls]] for m in messages
        ]
        written = "\0".join(_iter_strings([calls, [dict(tool) for tool in tools]]))
        tokens = tokenizer.added_tokens_encoder
        found = [token for token in tokens if token.strip() and token in written and dump_json(token) == f'"{token}"']
        salt = 0
        while any(f"Qv{salt}v" in text for text in (written, *(message.content for message in messages))):
            salt += 1
        longest_first = sorted(found, key=len, reverse=True)
        return cls({token: f"Qv{salt}v{number}Zk" for number, token in enumerate(longest_first)})

    def escape_messages(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The messages, the tokens in their calls and in the names of tools replaced."""
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
        """The tools, the tokens in them replaced."""
        return tuple(self._escape(tool) for tool in tools) if self.placeholders else tools

    def unescape(self, spans: Iterable[Span]) -> tuple[Span, ...]:
        """The spans, each stand-in in a frame replaced by its token, as plain text."""
        if not self.placeholders:
            return tuple(spans)
        tokens = {stand_in: token for token, stand_in in self.placeholders.items()}
        pattern = re.compile(f"({'|'.join(tokens)})")
        lifted = []
        for span in spans:
            if not span.markup:
                lifted.append(span)
                continue
            for piece in pattern.split(span.text):
                text = tokens.get(piece)
                lifted.append(replace(span, text=piece) if text is None else Span(text, train=span.train))
        return tuple(span for span in lifted if span.text)

    def _escape(self, value: Any) -> Any:
        if isinstance(value, str):
            for token, stand_in in self.placeholders.items():
                value = value.replace(token, stand_in)
            return value
        if isinstance(value, Mapping):
            return {self._escape(key): self._escape(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self._escape(inner) for inner in value]
        return value


def with_probe_names(
    messages: Sequence[Message], tools: ToolSchemas
) -> tuple[tuple[Message, ...], ToolSchemas, list[str], list[str]]:
    """The conversation with names of its own for all that is called and for every tool, and the two lists of these.

    What a template leaves out is missing from its rendering of this.
    """
    called: list[str] = []

    def renamed(call: ToolCall) -> ToolCall:
        called.append(f"Qc{len(called)}Zk")
        return replace(call, name=called[-1])

    named = tuple(replace(message, tool_calls=tuple(map(renamed, message.tool_calls))) for message in messages)
    told = [f"Qt{number}Zk" for number in range(len(tools))]
    return named, tuple({**tool, "name": name} for tool, name in zip(tools, told, strict=True)), called, told


def conversation_shape(messages: Sequence[Message], tools: ToolSchemas) -> str:
    """What two conversations have in common that a chat template writes alike but for the contents."""
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
