"""Which call each tool's turn answers: by the call's id where the row has it, else in the order of the calls.

Formats without ids tell an answer's call by its place alone. So answers that name their calls are put in the order of
the calls, whatever order the tools came back in; the row says the same as before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from harness.contracts import Message
from harness.data.conversation import BadRow
from harness.data.tools import identity, kind


def answering(turn: Mapping[str, Any], messages: Sequence[Message], at: str) -> tuple[str | None, str | None]:
    """The name of the tool that a turn answers for, and the id of its call, each where the data says it.

    messages: the turns before. An answer to an only call, or one that gives the call's id, has the call's name where
    it gives none itself. Raises BadRow for an id that no call of the assistant's turn before has, that another answer
    has already, or that is of another tool's call.
    """
    name, answers = turn.get("name"), identity(turn.get("tool_call_id"), f"{at}.tool_call_id")
    if name is not None and not isinstance(name, str):
        raise BadRow(f"has {kind(name)} in {at}.name, not text", "mend the row")
    name = name or None
    before = next((message for message in reversed(messages) if message.role != "tool"), None)
    calls = before.calls if before is not None else ()
    if answers is None:
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
    """The turns, with answers that all name their calls in the order of the calls."""
    ordered: list[Message] = []
    for answers, group in groupby(messages, lambda message: message.role == "tool"):
        run = list(group)
        if answers and len(run) > 1 and all(message.answers is not None for message in run):
            place = {call.id: number for number, call in enumerate(ordered[-1].calls)}
            run.sort(key=lambda message: place.get(message.answers, 0))
        ordered += run
    return ordered


def _run(messages: Sequence[Message]) -> Iterator[Message]:
    """The tools' turns at the end, the last one first."""
    for message in reversed(messages):
        if message.role != "tool":
            return
        yield message
