"""Parse the messages of one conversation as data sets write them: roles, contents, tool calls, training flags.

Handles the names that OpenAI, ShareGPT and similar formats use. `conversation` checks the order of the turns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from harness.data.reading.conversation import InvalidRow
from harness.data.reading.tool_calls import parse_call_id, parse_json_text, parse_tool_call, to_json_text, type_name
from harness.types import Message, ToolCall

ROLE_ALIASES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
}

TOOL_CALL_ROLES = ("function_call", "tool_call")
"""Roles of a turn whose text is the assistant's call of a tool."""


def parse_messages(
    value: Any, key: str, role_key: str, content_key: str, previous: Sequence[Message] = ()
) -> list[Message]:
    """Parse an array of messages.

    Args:
        value: An array of objects.
        key: The key of the array in its row, for errors.
        role_key: The key of a message's role.
        content_key: The key of a message's content.
        previous: Earlier turns that the array continues.

    Returns:
        The previous and the parsed messages. Tool messages have the id and name of their call where the data has ids
        (see `resolve_tool_result`), and are in the order of the calls (see `order_tool_results`).

    Raises:
        InvalidRow: The value is not an array of messages.
    """
    if not isinstance(value, (list, tuple)):
        raise InvalidRow(f"has a {key!r} that is {type_name(value)}, not an array of messages", "fix the row")
    messages = list(previous)
    for index, turn in enumerate(value):
        location = f"{key}[{index}]"
        if not isinstance(turn, Mapping) or turn.get(role_key) is None:
            is_other_format = isinstance(turn, Mapping) and {"from", "role"} & set(turn)
            hint = (
                "it has the keys of another row format: set 'form' and 'columns'" if is_other_format else "fix the row"
            )
            raise InvalidRow(f"has no {role_key!r} in {location}", hint)
        alias = turn[role_key]
        role = ROLE_ALIASES.get(alias) if isinstance(alias, str) else None
        if role is None and alias in TOOL_CALL_ROLES:
            _append_tool_calls(messages, turn, content_key, location)
            continue
        if role is None:
            what = f"has the unknown role {str(alias)[:40]!r} in {location}"
            raise InvalidRow(what, f"use one of the roles {', '.join([*ROLE_ALIASES, *TOOL_CALL_ROLES])}")
        calls: tuple[ToolCall, ...] = ()
        name = call_id = None
        if role == "assistant":
            calls = _parse_tool_calls(turn, location)
        elif turn.get("tool_calls") or turn.get("function_call"):
            raise InvalidRow(
                f"has a call in {location}, which is the {role}'s turn", "move the call to an assistant's turn"
            )
        if role == "tool":
            name, call_id = resolve_tool_result(turn, messages, location)
        content = turn.get(content_key)
        if not isinstance(content, str):
            content = _parse_content(content, role, f"{location}.{content_key}")
        train = _parse_trained_flag(turn, role, location)
        messages.append(Message(role, content, None, calls, name, train, call_id))
    return order_tool_results(messages)


def parse_text(value: Any, location: str) -> str:
    """Return a text; None becomes a blank text, which the validation of the conversation reports.

    Raises:
        InvalidRow: The value is neither text nor None.
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    raise InvalidRow(
        f"has {type_name(value)} in {location}, not text", "fix the row, or name another column in 'columns'"
    )


def _parse_content(value: Any, role: str, location: str) -> str:
    if isinstance(value, (list, tuple)) and value and role != "tool":
        parts = [part if isinstance(part, Mapping) else {} for part in value]
        invalid_part = next(
            (part for part in parts if part.get("type") != "text" or not isinstance(part.get("text"), str)), None
        )
        if invalid_part is None:
            return "".join(part["text"] for part in parts)
        part_type = invalid_part.get("type")
        if isinstance(part_type, str) and part_type != "text":
            raise InvalidRow(
                f"has a part of the type {part_type[:40]!r} in {location}", "remove the row: only text is supported"
            )
    if role == "tool" and isinstance(value, (Mapping, list, tuple)):
        return to_json_text(value, location)
    return parse_text(value, location)


# -- tool results -----------------------------------------------------------------------------------------------------


def resolve_tool_result(
    turn: Mapping[str, Any], messages: Sequence[Message], location: str
) -> tuple[str | None, str | None]:
    """Return the tool name and the call id of a tool's turn, each None where the data does not give it.

    If the turn before has one call, or the turn gives the id of a call, a missing name is taken from that call. An id
    is dropped if the only call has none.

    Args:
        turn: The tool's turn.
        messages: The turns before it.
        location: The key of the turn in its row, for errors.

    Raises:
        InvalidRow: The id is not the id of a call of the assistant's turn before, it belongs to a call of another tool,
            or another result has it already.
    """
    name, call_id = turn.get("name"), parse_call_id(turn.get("tool_call_id"), f"{location}.tool_call_id")
    if name is not None and not isinstance(name, str):
        raise InvalidRow(f"has {type_name(name)} in {location}.name, not text", "fix the row")
    name = name or None
    caller = next((message for message in reversed(messages) if message.role != "tool"), None)
    calls = caller.tool_calls if caller is not None else ()
    if call_id is None or (len(calls) == 1 and calls[0].id is None):
        return (calls[0].name if name is None and len(calls) == 1 else name), None
    called_name = next((call.name for call in calls if call.id == call_id), None)
    if called_name is None:
        what = f"answers the call {call_id[:40]!r} in {location}, and the turn before has no such call"
        raise InvalidRow(what, "set tool_call_id to the id of a call of the assistant's turn before")
    if any(message.tool_call_id == call_id for message in _trailing_tool_messages(messages)):
        raise InvalidRow(f"answers the call {call_id[:40]!r} a second time in {location}", "remove one of the results")
    if name not in (None, called_name):
        what = f"answers the call {call_id[:40]!r} of {called_name[:40]!r} in {location}, and names the tool "
        raise InvalidRow(f"{what}{name[:40]!r}", "remove the name, or fix one of the two")
    return called_name, call_id


def order_tool_results(messages: Sequence[Message]) -> list[Message]:
    """Return the turns with tool results in the order of their calls, where a result has the id of its call.

    A result without an id belongs to the first remaining call of its tool, or else to the first remaining call.
    """
    ordered: list[Message] = []
    for are_results, group in groupby(messages, lambda message: message.role == "tool"):
        turns = list(group)
        if are_results and any(message.tool_call_id is not None for message in turns):
            positions = _call_positions(turns, ordered[-1].tool_calls)
            turns = [turns[index] for index in sorted(range(len(turns)), key=positions.__getitem__)]
        ordered += turns
    return ordered


def _call_positions(tool_messages: Sequence[Message], calls: Sequence[ToolCall]) -> list[int]:
    """Return the index of each result's call; `len(calls)` for a result without a remaining call."""
    index_of_id = {call.id: index for index, call in enumerate(calls) if call.id is not None}
    answered = {index_of_id[message.tool_call_id] for message in tool_messages if message.tool_call_id is not None}
    remaining = [index for index in range(len(calls)) if index not in answered]
    positions = []
    for message in tool_messages:
        if message.tool_call_id is not None:
            positions.append(index_of_id[message.tool_call_id])
        elif remaining:
            position = next((index for index in remaining if calls[index].name == message.name), remaining[0])
            remaining.remove(position)
            positions.append(position)
        else:
            positions.append(len(calls))
    return positions


def _trailing_tool_messages(messages: Sequence[Message]) -> Iterator[Message]:
    """Yield the tool messages at the end, the last one first."""
    for message in reversed(messages):
        if message.role != "tool":
            return
        yield message


# -- calls ------------------------------------------------------------------------------------------------------------


def _parse_tool_calls(turn: Mapping[str, Any], location: str) -> tuple[ToolCall, ...]:
    """Parse the calls of an assistant's turn. Raises InvalidRow when two have the same id."""
    value, function_call = turn.get("tool_calls"), turn.get("function_call")
    if value and function_call:
        raise InvalidRow(f"has 'tool_calls' and 'function_call' in {location}", "write all calls in 'tool_calls'")
    if not value:
        return (parse_tool_call(function_call, f"{location}.function_call"),) if function_call else ()
    if isinstance(value, str):
        value = parse_json_text(value, f"{location}.tool_calls")
    if not isinstance(value, (list, tuple)):
        raise InvalidRow(f"has {type_name(value)} in {location}.tool_calls, not an array of calls", "fix the row")
    return _require_distinct_ids(
        tuple(parse_tool_call(call, f"{location}.tool_calls[{index}]") for index, call in enumerate(value)), location
    )


def _append_tool_calls(messages: list[Message], turn: Mapping[str, Any], key: str, location: str) -> None:
    """Add a turn that consists of calls: to the assistant's turn just before, or else as a new turn."""
    value = turn.get(key)
    if isinstance(value, str):
        value = parse_json_text(value, f"{location}.{key}")
    call_values = value if isinstance(value, (list, tuple)) else [value]
    calls = tuple(parse_tool_call(call, f"{location}.{key}") for call in call_values)
    if not calls:
        raise InvalidRow(f"has no call in {location}.{key}", 'write {"name": …, "arguments": {…}}')
    train = _parse_trained_flag(turn, "assistant", location)
    if not messages or messages[-1].role != "assistant":
        messages.append(Message("assistant", "", tool_calls=_require_distinct_ids(calls, location), train=train))
        return
    last = messages.pop()
    if last.train != train:
        raise InvalidRow(f"trains only one of the turn and its call in {location}", "give both the same flag")
    calls = _require_distinct_ids(last.tool_calls + calls, location)
    messages.append(Message("assistant", last.content, tool_calls=calls, train=train))


def _require_distinct_ids(calls: tuple[ToolCall, ...], location: str) -> tuple[ToolCall, ...]:
    ids = [call.id for call in calls if call.id is not None]
    for call_id in ids:
        if ids.count(call_id) > 1:
            raise InvalidRow(f"has two calls with the id {call_id[:40]!r} in {location}", "give each call its own id")
    return calls


# -- training flags ---------------------------------------------------------------------------------------------------


def _parse_trained_flag(turn: Mapping[str, Any], role: str, location: str) -> bool:
    train, weight = turn.get("train"), turn.get("weight")
    if train is None and weight is None:
        return True
    if train is not None and not isinstance(train, bool):
        raise InvalidRow(f"has {type_name(train)} in {location}.train", "write true or false")
    if weight is not None and (
        isinstance(weight, bool) or not isinstance(weight, (int, float)) or weight not in (0, 1)
    ):
        raise InvalidRow(f"has {type_name(weight)} in {location}.weight", "write 1 for a trained turn, 0 for others")
    if None not in (train, weight) and train != bool(weight):
        raise InvalidRow(f"has 'train' and 'weight' in {location} that contradict each other", "remove one of them")
    is_trained = bool(weight) if train is None else train
    if role != "assistant":
        if is_trained:
            raise InvalidRow(
                f"flags the {role}'s turn in {location} as trained", "remove the flag: only the assistant is trained"
            )
        return True  # the default of every turn that is not a response: templates train none of them
    return is_trained
