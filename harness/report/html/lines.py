"""The JSON lines that a run appends as it goes → what a page shows of them: updates, evaluations, items.

Knows each kind of line, and that a crash may have cut the last one off.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NUMBERS = (int, float, type(None))


@dataclass(frozen=True)
class Look:
    """One evaluation within a stage, after its update `step`. scores: `suite/score` -> value.

    combined: the weighted score that may end the stage early, None where nothing may. best: whether none before was
    better. kept: whether its weights were put aside, so that those of the last one kept are the stage's result. over:
    whether the stage was ended here, before its last update.
    """

    step: float
    scores: Mapping[str, float]
    combined: float | None
    best: bool
    kept: bool
    over: bool


def items(file: Path) -> dict[str, dict[str, Any]]:
    """Id -> what a file of predictions says of the item, by everything that its lines add up to; {} without a file."""
    found: dict[str, dict[str, Any]] = {}
    for line in _lines(file):
        if isinstance(line, dict) and "id" in line:
            found.setdefault(str(line["id"]), {}).update(line)
    return found


def steps(file: Path, unread: list[str]) -> tuple[Mapping[str, float], ...]:
    """The entries of a stage's log, by their update."""
    return tuple(
        {str(key): real(one) for key, one in line.items() if isinstance(one, NUMBERS)}
        for line in _stepped(file, unread)
    )


def looks(file: Path, unread: list[str]) -> tuple[Look, ...]:
    """What was measured within a stage, by its update."""
    return tuple(
        Look(
            float(line["step"]),
            {str(name): real(one) for name, one in line["scores"].items() if isinstance(one, NUMBERS)},
            float(line["combined"]) if isinstance(line.get("combined"), int | float) else None,
            bool(line.get("best")),
            bool(line.get("kept")),
            bool(line.get("over")),
        )
        for line in _stepped(file, unread, "scores")
    )


def real(value: Any) -> float:
    """A number of a file; null is NaN."""
    return math.nan if value is None else float(value)


def _stepped(file: Path, unread: list[str], within: str | None = None) -> list[dict[str, Any]]:
    """The lines that say a step, in the order of the steps; what cannot be read is counted and left out.

    within: a key that must hold an object too.
    """
    made: dict[float, dict[str, Any]] = {}
    lost = 0
    for line in _lines(file):
        known = isinstance(line, dict) and isinstance(line.get("step"), int | float)
        if not known or (within is not None and not isinstance(line.get(within), dict)):
            lost += 1
            continue
        # A run that was gone on with does some updates again: the last of them counts.
        made[line["step"]] = line
    if lost:
        unread.append(f"{file.parent.name}/{file.name} has {lost} line(s) that cannot be read")
    return [made[step] for step in sorted(made)]


def _lines(file: Path) -> Iterator[Any]:
    """What each line of a file says; None for one that is no JSON. Nothing without a file."""
    if not file.is_file():
        return
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError:
                    yield None
