"""The messages of one conversation as data sets write them: speakers, contents, tool calls, training flags.

Knows how OpenAI, ShareGPT and their kin name things; what order turns stand in, it does not check.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from harness.data.reading.conversation import InvalidRow
from harness.data.reading.tool_calls import parse_call_id, parse_json_text, parse_tool_call, to_json_text, type_name
from harness.types import Message, ToolCall


def resolve_tool_result(
    turn: Mapping[str, Any], messages: Sequence[Message], location: str
) -> tuple[str | None, str | None]:
    """The name of the tool that a turn answers for, and the id of its call, each where the data says it.

    messages: the turns before. An answer to an only call, or one that gives the call's id, has the call's name where
    it gives none itself. The id of an answer to an only call that has none says nothing, and is left out.
    Raises InvalidRow for an id that no call of the assistant's turn before has, that another answer has already, or
    that is of another tool's call.
    """
    name, answers = turn.get("name"), parse_call_id(turn.get("tool_call_id"), f"{location}.tool_call_id")
    if name is not None and not isinstance(name, str):
        raise InvalidRow(f"has {type_name(name)} in {location}.name, not text", "mend the row")
    name = name or None
    before = next((message for message in reversed(messages) if message.role != "tool"), None)
    calls = before.tool_calls if before is not None else ()
    if answers is None or (len(calls) == 1 and calls[0].id is None):
        return (calls[0].name if name is None and len(calls) == 1 else name), None
    called = next((call.name for call in calls if call.id == answers), None)
    if called is None:
        what = f"answers the call {answers[:40]!r} in {location}, and the turn before has no such call"
        raise InvalidRow(what, "a tool_call_id is the id of a call of the assistant's turn before")
    if any(message.tool_call_id == answers for message in _trailing_tool_messages(messages)):
        raise InvalidRow(
            f"answers the call {answers[:40]!r} a second time in {location}", "a call has one answer: mend the row"
        )
    if name not in (None, called):
        what = f"answers the call {answers[:40]!r} of {called[:40]!r} in {location}, and names the tool {name[:40]!r}"
        raise InvalidRow(what, "leave the name out, or mend one of the two")
    return called, answers


def order_tool_results(messages: Sequence[Message]) -> list[Message]:
    """The turns, with answers in the order of the calls where one of them names its call.

    Those beside it that name none stand for the calls that are left: the first one of their tool, or the first of all.
    """
    ordered: list[Message] = []
    for answers, group in groupby(messages, lambda message: message.role == "tool"):
        run = list(group)
        if answers and any(message.tool_call_id is not None for message in run):
            places = _call_positions(run, ordered[-1].tool_calls)
            run = [run[index] for index in sorted(range(len(run)), key=places.__getitem__)]
        ordered += run
    return ordered


def _call_positions(tool_messages: Sequence[Message], calls: Sequence[ToolCall]) -> list[int]:
    """For each answer the number of its call; behind them all for an answer that no call is left for."""
    named = {call.id: number for number, call in enumerate(calls) if call.id is not None}
    taken = {named[message.tool_call_id] for message in tool_messages if message.tool_call_id is not None}
    free = [number for number in range(len(calls)) if number not in taken]
    places = []
    for message in tool_messages:
        if message.tool_call_id is not None:
            places.append(named[message.tool_call_id])
        elif free:
            place = next((number for number in free if calls[number].name == message.name), free[0])
            free.remove(place)
            places.append(place)
        else:
            places.append(len(calls))
    return places


def _trailing_tool_messages(messages: Sequence[Message]) -> Iterator[Message]:
    """The tools' turns at the end, the last one first."""
    for message in reversed(messages):
        if message.role != "tool":
            return
        yield message


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
"""Speakers whose text is the assistant's call of a tool."""


def parse_messages(
    value: Any, key: str, role_key: str, content_key: str, previous: Sequence[Message] = ()
) -> list[Message]:
    """The messages of an array of objects with the keys `speaker` and `text`. key: where the array stands, for errors.

    before: turns that the array goes on from; the messages begin with them. What tools answer has its call's id and
    name, where the data has ids, and stands in the order of the calls: see `resolve_tool_result`.
    """
    if not isinstance(value, (list, tuple)):
        raise InvalidRow(f"has a {key!r} that is {type_name(value)}, not an array of messages", "mend the row")
    messages = list(previous)
    for index, turn in enumerate(value):
        if not isinstance(turn, Mapping) or turn.get(role_key) is None:
            other = isinstance(turn, Mapping) and {"from", "role"} & set(turn)
            hint = "its keys are those of the other form: see 'form' and 'columns'" if other else "mend the row"
            raise InvalidRow(f"has no {role_key!r} in {key}[{index}]", hint)
        said = turn[role_key]
        role = ROLE_ALIASES.get(said) if isinstance(said, str) else None
        if role is None and said in TOOL_CALL_ROLES:
            _append_tool_calls(messages, turn, content_key, f"{key}[{index}]")
            continue
        if role is None:
            what = f"has the unknown role {str(said)[:40]!r} in {key}[{index}]"
            raise InvalidRow(what, f"the roles are {', '.join([*ROLE_ALIASES, *TOOL_CALL_ROLES])}")
        calls: tuple[ToolCall, ...] = ()
        name = answers = None
        if role == "assistant":
            calls = _parse_tool_calls(turn, f"{key}[{index}]")
        elif turn.get("tool_calls") or turn.get("function_call"):
            raise InvalidRow(
                f"has a call in {key}[{index}], which is the {role}'s turn", "only the assistant calls tools"
            )
        if role == "tool":
            name, answers = resolve_tool_result(turn, messages, f"{key}[{index}]")
        content = turn.get(content_key)
        if not isinstance(content, str):
            content = _parse_content(content, role, f"{key}[{index}].{content_key}")
        trained = _parse_trained_flag(turn, role, f"{key}[{index}]")
        messages.append(Message(role, content, None, calls, name, trained, answers))
    return order_tool_results(messages)


def parse_text(value: Any, location: str) -> str:
    """A text; None is as good as a blank one, and told as such by the check of the conversation."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    raise InvalidRow(
        f"has {type_name(value)} in {location}, not text", "mend the row, or name another column in 'columns'"
    )


def _parse_content(value: Any, role: str, location: str) -> str:
    if isinstance(value, (list, tuple)) and value and role != "tool":
        parts = [part if isinstance(part, Mapping) else {} for part in value]
        other = next(
            (part for part in parts if part.get("type") != "text" or not isinstance(part.get("text"), str)), None
        )
        if other is None:
            return "".join(part["text"] for part in parts)
        if isinstance(other.get("type"), str) and other["type"] != "text":
            raise InvalidRow(
                f"has a part of the type {other['type'][:40]!r} in {location}", "only text is read; leave the row out"
            )
    if role == "tool" and isinstance(value, (Mapping, list, tuple)):
        return to_json_text(value, location)
    return parse_text(value, location)


# -- calls ------------------------------------------------------------------------------------------------------------


def _parse_tool_calls(turn: Mapping[str, Any], location: str) -> tuple[ToolCall, ...]:
    """The calls of an assistant's turn. Raises InvalidRow when two have one id."""
    given, legacy = turn.get("tool_calls"), turn.get("function_call")
    if given and legacy:
        raise InvalidRow(f"has 'tool_calls' and 'function_call' in {location}", "give all calls in 'tool_calls'")
    if not given:
        return (parse_tool_call(legacy, f"{location}.function_call"),) if legacy else ()
    if isinstance(given, str):
        given = parse_json_text(given, f"{location}.tool_calls")
    if not isinstance(given, (list, tuple)):
        raise InvalidRow(f"has {type_name(given)} in {location}.tool_calls, not an array of calls", "mend the row")
    return _require_distinct_ids(
        tuple(parse_tool_call(one, f"{location}.tool_calls[{index}]") for index, one in enumerate(given)), location
    )


def _append_tool_calls(messages: list[Message], turn: Mapping[str, Any], key: str, location: str) -> None:
    """Take in a turn that is nothing but calls: the assistant's own, or added to its turn just before."""
    value = turn.get(key)
    if isinstance(value, str):
        value = parse_json_text(value, f"{location}.{key}")
    given = value if isinstance(value, (list, tuple)) else [value]
    calls = tuple(parse_tool_call(one, f"{location}.{key}") for one in given)
    if not calls:
        raise InvalidRow(f"has no call in {location}.{key}", 'write {"name": …, "arguments": {…}}')
    trained = _parse_trained_flag(turn, "assistant", location)
    if not messages or messages[-1].role != "assistant":
        messages.append(Message("assistant", "", tool_calls=_require_distinct_ids(calls, location), train=trained))
        return
    last = messages.pop()
    if last.train != trained:
        raise InvalidRow(f"trains one of the turn and its call in {location} and not the other", "flag both alike")
    messages.append(
        Message(
            "assistant",
            last.content,
            tool_calls=_require_distinct_ids(last.tool_calls + calls, location),
            train=trained,
        )
    )


def _require_distinct_ids(calls: tuple[ToolCall, ...], location: str) -> tuple[ToolCall, ...]:
    ids = [one.id for one in calls if one.id is not None]
    for call_id in ids:
        if ids.count(call_id) > 1:
            raise InvalidRow(
                f"has two calls with the id {call_id[:40]!r} in {location}", "an id is of one call: mend the row"
            )
    return calls


# -- what is trained --------------------------------------------------------------------------------------------------


def _parse_trained_flag(turn: Mapping[str, Any], role: str, location: str) -> bool:
    train, weight = turn.get("train"), turn.get("weight")
    if train is None and weight is None:
        return True
    if train is not None and not isinstance(train, bool):
        raise InvalidRow(f"has {type_name(train)} in {location}.train", "it is true or false")
    if weight is not None and (
        isinstance(weight, bool) or not isinstance(weight, (int, float)) or weight not in (0, 1)
    ):
        raise InvalidRow(
            f"has {type_name(weight)} in {location}.weight", "a weight is 0 or 1: a turn is trained or it is not"
        )
    if None not in (train, weight) and train != bool(weight):
        raise InvalidRow(f"has 'train' and 'weight' in {location} that say opposite things", "give one of them")
    trained = bool(weight) if train is None else train
    if role != "assistant":
        if trained:
            raise InvalidRow(
                f"flags the {role}'s turn in {location} as trained", "only the assistant's turns are trained"
            )
        return True  # as every turn that is no response: templates train none of them
    return trained
