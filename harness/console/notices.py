"""Warnings as a person needs them: each one once, however often it is raised, and with the arms that it concerns.

Knows texts and names of arms; prints nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

NAMED = 4
"""Arms that a warning names; of more it says how many they are."""

Say = Callable[[str, str, Sequence[str]], None]
"""(the arms that it concerns, empty for all; the text; the rows that it is about)."""


class Notices:
    """Passes warnings on, each distinct text once.

    Those that are heard while the arms of an experiment are prepared wait for the end of that, since only then it is
    known whether all arms have them.
    """

    def __init__(self, say: Say) -> None:
        self._say = say
        self._told: set[str] = set()
        self._waiting: dict[str, tuple[list[str], Sequence[str]]] = {}
        self._arms: list[str] = []

    def of_arm(self, name: str) -> None:
        """What is heard from here on, to the next `tell`, is of this arm."""
        self._arms.append(name)

    def hear(self, text: str, rows: Sequence[str] = ()) -> None:
        """A warning was raised."""
        if self._arms:
            arms, _ = self._waiting.setdefault(text, ([], rows))
            if self._arms[-1] not in arms:
                arms.append(self._arms[-1])
        elif text not in self._told:
            self._told.add(text)
            self._say("", text, rows)

    def tell(self) -> None:
        """Pass on what waits, in the order in which it was heard."""
        waiting, every = self._waiting, len(self._arms)
        self._waiting, self._arms = {}, []
        for text, (arms, rows) in waiting.items():
            if text not in self._told:
                self._told.add(text)
                self._say("" if len(arms) == every else _named(arms), text, rows)


def _named(arms: Sequence[str]) -> str:
    shown, more = arms[:NAMED], len(arms) - NAMED
    names = ", ".join(shown) + (f" and {more} more" if more > 0 else "")
    return f"{'arm' if len(arms) == 1 else 'arms'} {names}"
