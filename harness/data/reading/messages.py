"""The messages of one conversation as data sets write them: speakers, contents, tool calls, training flags.

Knows how OpenAI, ShareGPT and their kin name things; what order turns stand in, it does not check.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from harness.data.reading.conversation import BadRow
from harness.data.reading.tool_calls import as_json, as_text, call, identity, kind
from harness.types import Message, ToolCall


def answering(turn: Mapping[str, Any], messages: Sequence[Message], at: str) -> tuple[str | None, str | None]:
    """The name of the tool that a turn answers for, and the id of its call, each where the data says it.

    messages: the turns before. An answer to an only call, or one that gives the call's id, has the call's name where
    it gives none itself. The id of an answer to an only call that has none says nothing, and is left out.
    Raises BadRow for an id that no call of the assistant's turn before has, that another answer has already, or that
    is of another tool's call.
    """
    name, answers = turn.get("name"), identity(turn.get("tool_call_id"), f"{at}.tool_call_id")
    if name is not None and not isinstance(name, str):
        raise BadRow(f"has {kind(name)} in {at}.name, not text", "mend the row")
    name = name or None
    before = next((message for message in reversed(messages) if message.role != "tool"), None)
    calls = before.calls if before is not None else ()
    if answers is None or (len(calls) == 1 and calls[0].id is None):
        return (calls[0].name if name is None and len(calls) == 1 else name), None
    called = next((call.name for call in calls if call.id == answers), None)
    if called is None:
        what = f"answers the call {answers[:40]!r} in {at}, and the turn before has no such call"
        raise BadRow(what, "a tool_call_id is the id of a call of the assistant's turn before")
    if any(message.answers == answers for message in _run(messages)):
        raise BadRow(f"answers the call {answers[:40]!r} a second time in {at}", "a call has one answer: mend the row")
    if name not in (None, called):
        what = f"answers the call {answers[:40]!r} of {called[:40]!r} in {at}, and names the tool {name[:40]!r}"
        raise BadRow(what, "leave the name out, or mend one of the two")
    return called, answers


def in_order(messages: Sequence[Message]) -> list[Message]:
    """The turns, with answers in the order of the calls where one of them names its call.

    Those beside it that name none stand for the calls that are left: the first one of their tool, or the first of all.
    """
    ordered: list[Message] = []
    for answers, group in groupby(messages, lambda message: message.role == "tool"):
        run = list(group)
        if answers and any(message.answers is not None for message in run):
            places = _places(run, ordered[-1].calls)
            run = [run[index] for index in sorted(range(len(run)), key=places.__getitem__)]
        ordered += run
    return ordered


def _places(run: Sequence[Message], calls: Sequence[ToolCall]) -> list[int]:
    """For each answer the number of its call; behind them all for an answer that no call is left for."""
    named = {call.id: number for number, call in enumerate(calls) if call.id is not None}
    taken = {named[message.answers] for message in run if message.answers is not None}
    free = [number for number in range(len(calls)) if number not in taken]
    places = []
    for message in run:
        if message.answers is not None:
            places.append(named[message.answers])
        elif free:
            place = next((number for number in free if calls[number].name == message.name), free[0])
            free.remove(place)
            places.append(place)
        else:
            places.append(len(calls))
    return places


def _run(messages: Sequence[Message]) -> Iterator[Message]:
    """The tools' turns at the end, the last one first."""
    for message in reversed(messages):
        if message.role != "tool":
            return
        yield message


SPEAKERS = {
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

CALLERS = ("function_call", "tool_call")
"""Speakers whose text is the assistant's call of a tool."""


def turns(value: Any, key: str, speaker: str, text: str, before: Sequence[Message] = ()) -> list[Message]:
    """The messages of an array of objects with the keys `speaker` and `text`. key: where the array stands, for errors.

    before: turns that the array goes on from; the messages begin with them. What tools answer has its call's id and
    name, where the data has ids, and stands in the order of the calls: see `answers`.
    """
    if not isinstance(value, (list, tuple)):
        raise BadRow(f"has a {key!r} that is {kind(value)}, not an array of messages", "mend the row")
    messages = list(before)
    for index, turn in enumerate(value):
        if not isinstance(turn, Mapping) or turn.get(speaker) is None:
            other = isinstance(turn, Mapping) and {"from", "role"} & set(turn)
            hint = "its keys are those of the other form: see 'form' and 'columns'" if other else "mend the row"
            raise BadRow(f"has no {speaker!r} in {key}[{index}]", hint)
        said = turn[speaker]
        role = SPEAKERS.get(said) if isinstance(said, str) else None
        if role is None and said in CALLERS:
            _add_calls(messages, turn, text, f"{key}[{index}]")
            continue
        if role is None:
            what = f"has the unknown role {str(said)[:40]!r} in {key}[{index}]"
            raise BadRow(what, f"the roles are {', '.join([*SPEAKERS, *CALLERS])}")
        calls: tuple[ToolCall, ...] = ()
        name = answers = None
        if role == "assistant":
            calls = _calls_of(turn, f"{key}[{index}]")
        elif turn.get("tool_calls") or turn.get("function_call"):
            raise BadRow(f"has a call in {key}[{index}], which is the {role}'s turn", "only the assistant calls tools")
        if role == "tool":
            name, answers = answering(turn, messages, f"{key}[{index}]")
        content = turn.get(text)
        if not isinstance(content, str):
            content = _content(content, role, f"{key}[{index}].{text}")
        trained = _trained(turn, role, f"{key}[{index}]")
        messages.append(Message(role, content, None, calls, name, trained, answers))
    return in_order(messages)


def text(value: Any, what: str) -> str:
    """A text; None is as good as a blank one, and told as such by the check of the conversation."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    raise BadRow(f"has {kind(value)} in {what}, not text", "mend the row, or name another column in 'columns'")


def _content(value: Any, role: str, at: str) -> str:
    if isinstance(value, (list, tuple)) and value and role != "tool":
        parts = [part if isinstance(part, Mapping) else {} for part in value]
        other = next(
            (part for part in parts if part.get("type") != "text" or not isinstance(part.get("text"), str)), None
        )
        if other is None:
            return "".join(part["text"] for part in parts)
        if isinstance(other.get("type"), str) and other["type"] != "text":
            raise BadRow(
                f"has a part of the type {other['type'][:40]!r} in {at}", "only text is read; leave the row out"
            )
    if role == "tool" and isinstance(value, (Mapping, list, tuple)):
        return as_text(value, at)
    return text(value, at)


# -- calls ------------------------------------------------------------------------------------------------------------


def _calls_of(turn: Mapping[str, Any], at: str) -> tuple[ToolCall, ...]:
    """The calls of an assistant's turn. Raises BadRow when two have one id."""
    given, legacy = turn.get("tool_calls"), turn.get("function_call")
    if given and legacy:
        raise BadRow(f"has 'tool_calls' and 'function_call' in {at}", "give all calls in 'tool_calls'")
    if not given:
        return (call(legacy, f"{at}.function_call"),) if legacy else ()
    if isinstance(given, str):
        given = as_json(given, f"{at}.tool_calls")
    if not isinstance(given, (list, tuple)):
        raise BadRow(f"has {kind(given)} in {at}.tool_calls, not an array of calls", "mend the row")
    return _distinct(tuple(call(one, f"{at}.tool_calls[{index}]") for index, one in enumerate(given)), at)


def _add_calls(messages: list[Message], turn: Mapping[str, Any], key: str, at: str) -> None:
    """Take in a turn that is nothing but calls: the assistant's own, or added to its turn just before."""
    value = turn.get(key)
    if isinstance(value, str):
        value = as_json(value, f"{at}.{key}")
    given = value if isinstance(value, (list, tuple)) else [value]
    calls = tuple(call(one, f"{at}.{key}") for one in given)
    if not calls:
        raise BadRow(f"has no call in {at}.{key}", 'write {"name": …, "arguments": {…}}')
    trained = _trained(turn, "assistant", at)
    if not messages or messages[-1].role != "assistant":
        messages.append(Message("assistant", "", calls=_distinct(calls, at), trained=trained))
        return
    last = messages.pop()
    if last.trained != trained:
        raise BadRow(f"trains one of the turn and its call in {at} and not the other", "flag both alike")
    messages.append(Message("assistant", last.content, calls=_distinct(last.calls + calls, at), trained=trained))


def _distinct(calls: tuple[ToolCall, ...], at: str) -> tuple[ToolCall, ...]:
    ids = [one.id for one in calls if one.id is not None]
    for call_id in ids:
        if ids.count(call_id) > 1:
            raise BadRow(f"has two calls with the id {call_id[:40]!r} in {at}", "an id is of one call: mend the row")
    return calls


# -- what is trained --------------------------------------------------------------------------------------------------


def _trained(turn: Mapping[str, Any], role: str, at: str) -> bool:
    train, weight = turn.get("train"), turn.get("weight")
    if train is None and weight is None:
        return True
    if train is not None and not isinstance(train, bool):
        raise BadRow(f"has {kind(train)} in {at}.train", "it is true or false")
    if weight is not None and (
        isinstance(weight, bool) or not isinstance(weight, (int, float)) or weight not in (0, 1)
    ):
        raise BadRow(f"has {kind(weight)} in {at}.weight", "a weight is 0 or 1: a turn is trained or it is not")
    if None not in (train, weight) and train != bool(weight):
        raise BadRow(f"has 'train' and 'weight' in {at} that say opposite things", "give one of them")
    trained = bool(weight) if train is None else train
    if role != "assistant":
        if trained:
            raise BadRow(f"flags the {role}'s turn in {at} as trained", "only the assistant's turns are trained")
        return True  # as every turn that is no response: templates train none of them
    return trained
