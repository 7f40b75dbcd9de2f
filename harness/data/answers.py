"""Which call each tool's turn answers: by the call's id where the row has it, else in the order of the calls.

Formats without ids tell an answer's call by its place alone. So where answers name their calls they are put in the
order of the calls, whatever order the tools came back in; the row says the same as before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from harness.contracts import Message, ToolCall
from harness.data.conversation import BadRow
from harness.data.tools import identity, kind


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
