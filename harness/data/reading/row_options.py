"""The options of a source that decide how its rows are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ROLE_KEYS = ("role", "from", "speaker", "author")
CONTENT_KEYS = ("content", "value", "text", "message")


@dataclass(frozen=True)
class MessageKeys:
    """The names that a message has in the data.

    Attributes:
        role_keys: Keys that may hold the role; the first one that a message has is read.
        content_keys: The same for the content.
        roles: Role in the data -> `system`, `user`, `assistant`, `tool` or `function_call`; before the known roles.
        keep_reasoning: Whether a message's reasoning is read.
    """

    role_keys: tuple[str, ...] = ROLE_KEYS
    content_keys: tuple[str, ...] = CONTENT_KEYS
    roles: Mapping[str, str] = field(default_factory=dict)
    keep_reasoning: bool = True


DEFAULT_KEYS = MessageKeys()


@dataclass(frozen=True)
class RowOptions:
    """How rows become conversations; `spec_keys.data.SOURCE_KEYS` describes the options.

    Attributes:
        message_keys: The names of messages in the data.
        train_on: `all`, `last` or `each`.
        incomplete: `error` or `drop`.
        first_assistant: `error`, `context` or `drop`.
        merge_turns: Whether successive turns of one role are joined.
        keep_system: Whether system messages are part of the conversation.
    """

    message_keys: MessageKeys = DEFAULT_KEYS
    train_on: str = "all"
    incomplete: str = "error"
    first_assistant: str = "error"
    merge_turns: bool = False
    keep_system: bool = True

    @classmethod
    def from_source_options(cls, options: Mapping[str, Any]) -> RowOptions:
        """Return the options of a source, with the defaults of the core filled in."""
        columns = options["columns"]
        keys = MessageKeys(
            role_keys=(columns["role"],) if "role" in columns else ROLE_KEYS,
            content_keys=(columns["content"],) if "content" in columns else CONTENT_KEYS,
            roles=options["roles"],
            keep_reasoning=options["reasoning"] == "keep",
        )
        names = ("train_on", "incomplete", "first_assistant", "merge_turns")
        return cls(keys, **{name: options[name] for name in names}, keep_system=options["system"] == "keep")


DEFAULT_OPTIONS = RowOptions()
