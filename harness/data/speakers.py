"""Where in a rendered conversation each turn begins: for the eye alone, no label is made of it.

A template gives spans, not turns. Contents are recognised by their text, and what the template writes between two of
them is divided where the first turn ends: after what is trained of it, else after its first control token when more of
them follow, which open the next turn.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from harness.contracts import Message, Span


def turns_of(spans: Sequence[Span], messages: Sequence[Message], controls: Collection[str]) -> list[tuple[str, int]]:
    """Who speaks in each turn and where in the joined text it begins, in characters; the first at 0.

    controls: the texts of control tokens. Messages that a template writes as one content are one turn, `system + user`.
    """
    found: list[tuple[str, int]] = []
    speaker, place = -1, 0
    gap, gap_begins, closed, trained = "", 0, 0, False
    for span in spans:
        place += len(span.text)
        if span.frame:
            if span.trained and trained and closed == len(gap):  # the end of a response, not the beginning of another
                closed += len(span.text)
            gap += span.text
            continue
        first, last = _speakers(span, messages, speaker)
        if last != speaker:
            begins = gap_begins + _division(gap, closed, controls) if found else 0
            found.append((" + ".join(map(_label, messages[first : last + 1])), begins))
            speaker = last
        gap, gap_begins, closed, trained = "", place, 0, span.trained
    return found or [(" + ".join(map(_label, messages)), 0)]


def _speakers(span: Span, messages: Sequence[Message], speaker: int) -> tuple[int, int]:
    """The first and the last message that a content holds; the current speaker where it is no other's."""
    said = span.text.strip()
    for first in range(speaker, len(messages)):
        if first < 0 or not _says(messages[first], said, span.trained):
            continue
        if first == speaker:
            return speaker, speaker
        last = first
        while last + 1 < len(messages) and said != messages[last].content.strip() and _holds(said, messages[last + 1]):
            last += 1
        return min(speaker + 1, first), last
    return speaker, speaker


def _says(message: Message, said: str, trained: bool) -> bool:
    if trained and message.role != "assistant":
        return False
    texts = [message.content.strip(), (message.input or "").strip()]
    if (
        trained or not message.trained
    ):  # else the name of a tool would be taken for its call wherever tools are described
        texts += [call.name for call in message.calls]
    return any(text and (said in text or text in said) for text in texts)


def _holds(said: str, message: Message) -> bool:
    return bool(message.content.strip()) and message.content.strip() in said


def _division(gap: str, closed: int, controls: Collection[str]) -> int:
    """Where in what stands between two contents the turn of the first one ends."""
    if not closed:
        at = [match for one in controls if one.strip() for match in re.finditer(re.escape(one), gap)]
        at.sort(key=lambda match: match.start())
        closed = at[0].end() if len(at) > 1 else 0
    return closed + len(gap[closed:]) - len(gap[closed:].lstrip("\n"))


def _label(message: Message) -> str:
    return f"{message.role} {message.name}" if message.name else message.role
