"""Parse the messages of one conversation as data sets write them: roles, contents, tool calls, training flags.

Handles the names that OpenAI, ShareGPT and similar formats use. `conversation` checks the order of the turns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from harness.data.reading.row_options import DEFAULT_KEYS, MessageKeys
from harness.data.reading.text_calls import parse_text_calls, split_text_results
from harness.data.reading.tool_calls import parse_call_id, parse_json_text, parse_tool_call, to_json_text, type_name
from harness.errors import InvalidRow
from harness.types import Message, ToolCall

ROLE_ALIASES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "ai", "bot", "chatbot", "chatgpt"), "assistant"),
    **dict.fromkeys(("bing", "bard", "claude", "gemini", "llm"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "tool"),
    **dict.fromkeys(("tool_response", "function_response", "tool_result", "tool_results"), "tool"),
    **dict.fromkeys(("function_call", "tool_call", "tool_calls"), "function_call"),
}
"""Lower-case role in the data -> role; `function_call` is a turn whose text is the assistant's call of a tool."""

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message that may hold its reasoning."""

FLAG_KEYS = ("train", "loss")
WEIGHT_KEYS = ("weight", "loss_weight")

CALL_KEYS = ("tool_calls", "function_call", "tool_call_id", "name")

READ_KEYS = frozenset((*CALL_KEYS, *FLAG_KEYS, *WEIGHT_KEYS, *REASONING_KEYS))
"""The keys of a message that are read, besides those of its role and its content."""


def parse_messages(
    value: Any, key: str, keys: MessageKeys = DEFAULT_KEYS, previous: Sequence[Message] = ()
) -> list[Message]:
    """Parse an array of messages.

    Args:
        value: An array of objects, or its JSON text.
        key: The key of the array in its row, for errors.
        keys: The names of messages in the data.
        previous: Earlier turns that the array continues.

    Returns:
        The previous and the parsed messages. Tool messages have the id and name of their call where the data has ids
        (see `resolve_tool_result`), and are in the order of the calls (see `order_tool_results`).

    Raises:
        InvalidRow: The value is not an array of messages.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parse_json_text(value, repr(key))
    if not isinstance(value, (list, tuple)):
        raise InvalidRow(
            f"has a {key!r} that is {type_name(value)}, not an array of messages",
            'write [{"role": "user", "content": …}, …], or name another column in \'columns\'',
        )
    messages = list(previous)
    for index, turn in enumerate(value):
        location = f"{key}[{index}]"
        role = _parse_role(turn, keys, location)
        content_key = next((name for name in keys.content_keys if name in turn), keys.content_keys[0])
        if role == "function_call":
            _append_tool_calls(messages, turn, content_key, location)
            continue
        calls: tuple[ToolCall, ...] = ()
        name = call_id = None
        if role == "assistant":
            calls = _parse_tool_calls(turn, location)
        elif turn.get("tool_calls") or turn.get("function_call"):
            raise InvalidRow(
                f"has a call in {location}, which is the {role}'s turn", "move the call to an assistant's turn"
            )
        results_in_text = False
        if role == "tool":
            if messages and messages[-1].role == "assistant" and not messages[-1].tool_calls:
                messages[-1] = parse_text_calls(messages[-1], location)
                results_in_text = bool(messages[-1].tool_calls)
            name, call_id = resolve_tool_result(turn, messages, location)
        content, reasoning = turn.get(content_key), None
        if not isinstance(content, str):
            content, reasoning = _parse_content(content, role, f"{location}.{content_key}")
        reasoning = _parse_reasoning(turn, role, reasoning, location) if keys.keep_reasoning else None
        train = _parse_trained_flag(turn, role, location)
        contents = split_text_results(content, messages[-1].tool_calls) if results_in_text else [content]
        messages += [Message(role, text, None, calls, name, train, call_id, reasoning) for text in contents]
    return order_tool_results(messages)


def _parse_role(turn: Any, keys: MessageKeys, location: str) -> str:
    if not isinstance(turn, Mapping):
        raise InvalidRow(f"has {type_name(turn)} in {location}, not a message", 'write {"role": …, "content": …}')
    key = next((name for name in keys.role_keys if turn.get(name) is not None), None)
    if key is None:
        found = ", ".join(repr(str(name)[:40]) for name in list(turn)[:5]) or "no keys"
        hint = """name the key of the role, e.g. "columns": {"role": "sender"}"""
        raise InvalidRow(f"has no {keys.role_keys[0]!r} in {location}, which has {found}", hint)
    alias = turn[key]
    if isinstance(alias, str):
        role = keys.roles.get(alias) or ROLE_ALIASES.get(alias.strip().lower())
        if role is not None:
            return role
    shown = str(alias)[:40]
    hint = (
        f"""say whose turn it is, e.g. "roles": {{"{shown}": "user"}}; system, user, assistant, tool are the choices"""
    )
    raise InvalidRow(f"has the unknown role {shown!r} in {location}", hint)


def parse_text(value: Any, location: str) -> str:
    """Return a text; None becomes a blank text, which the validation of the conversation reports.

    Raises:
        InvalidRow: The value is neither text nor None.
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, float) and math.isnan(value):
        hint = "drop such rows before they are written (pandas: df.dropna())"
        raise InvalidRow(f"has an empty cell in {location}: the value is NaN", hint)
    raise InvalidRow(
        f"has {type_name(value)} in {location}, not text", "fix the row, or name another column in 'columns'"
    )


def _parse_content(value: Any, role: str, location: str) -> tuple[str, str | None]:
    """Return the text of a content that is not text itself, and the reasoning in its parts."""
    if isinstance(value, (list, tuple)) and value:
        texts: list[str] = []
        reasoning: list[str] = []
        for part in value:
            part_type, text = _parse_part(part)
            if text is not None and part_type == "text":
                texts.append(text)
            elif text is not None and part_type in ("reasoning", "thinking") and role == "assistant":
                reasoning.append(text)
            elif role == "tool":  # an answer may be any JSON
                break
            elif isinstance(part_type, str) and part_type != "text":
                raise InvalidRow(
                    f"has a part of the type {part_type[:40]!r} in {location}", "remove the row: only text is supported"
                )
            else:
                hint = 'write parts as {"type": "text", "text": …}'
                raise InvalidRow(f"has a part that is not text in {location}", hint)
        else:
            return "".join(texts), "".join(reasoning) or None
    if role == "tool" and isinstance(value, (Mapping, list, tuple)):
        return to_json_text(value, location), None
    return parse_text(value, location), None


def _parse_part(part: Any) -> tuple[Any, str | None]:
    """Return the type and the text of a part of a content; the text is None if the part has none."""
    if isinstance(part, str):
        return "text", part
    if not isinstance(part, Mapping):
        return None, None
    part_type = part.get("type")
    # OpenAI's key, LLaMA-Factory's, and that of a part of reasoning.
    keys = ("text", "value", part_type) if isinstance(part_type, str) else ()
    return part_type, next((part[key] for key in keys if isinstance(part.get(key), str)), None)


def _parse_reasoning(turn: Mapping[str, Any], role: str, from_parts: str | None, location: str) -> str | None:
    """Return the reasoning of a turn as it is written; None if there is none, or only white space.

    Raises:
        InvalidRow: It is not text, is in a turn of another role, or two keys have different reasoning.
    """
    found = {} if from_parts is None else {"content": from_parts}
    for key in REASONING_KEYS:
        if turn.get(key) is not None:
            text = parse_text(turn[key], f"{location}.{key}")
            found |= {key: text} if text.strip() else {}
    if not found:
        return None
    if role != "assistant":
        what = f"has reasoning in {location}, which is the {role}'s turn"
        raise InvalidRow(what, 'remove it, or ignore all reasoning: "reasoning": "drop"')
    if len(set(found.values())) > 1:
        what = f"has different reasoning in {' and '.join(map(repr, found))} of {location}"
        raise InvalidRow(what, "remove one of them")
    return next(iter(found.values()))


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
    messages.append(replace(last, tool_calls=calls))


def _require_distinct_ids(calls: tuple[ToolCall, ...], location: str) -> tuple[ToolCall, ...]:
    ids = [call.id for call in calls if call.id is not None]
    for call_id in ids:
        if ids.count(call_id) > 1:
            raise InvalidRow(f"has two calls with the id {call_id[:40]!r} in {location}", "give each call its own id")
    return calls


# -- training flags ---------------------------------------------------------------------------------------------------


def _parse_trained_flag(turn: Mapping[str, Any], role: str, location: str) -> bool:
    """Return whether a turn is trained, by its flags; True without a flag, and for every turn of another role.

    Raises:
        InvalidRow: A flag has another value than true and false, or 0 and 1; two flags contradict each other; or a turn
            of another role is flagged as trained.
    """
    flags: dict[str, bool] = {}
    for key in FLAG_KEYS:
        if turn.get(key) is not None:
            if not isinstance(turn[key], bool):
                raise InvalidRow(f"has {type_name(turn[key])} in {location}.{key}", "write true or false")
            flags[key] = turn[key]
    for key in WEIGHT_KEYS:
        weight = turn.get(key)
        if weight is not None:
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or weight not in (0, 1):
                hint = "write 1 for a trained turn, 0 for others"
                raise InvalidRow(f"has {type_name(weight)} in {location}.{key}", hint)
            flags[key] = bool(weight)
    if not flags:
        return True
    if len(set(flags.values())) > 1:
        names = " and ".join(map(repr, flags))
        raise InvalidRow(f"has {names} in {location} that contradict each other", "remove one of them")
    is_trained = next(iter(flags.values()))
    if role != "assistant":
        if is_trained:
            raise InvalidRow(
                f"flags the {role}'s turn in {location} as trained", "remove the flag: only the assistant is trained"
            )
        return True  # the default of every turn that is not a response: templates train none of them
    return is_trained
