"""The files of a finished run or experiment → what a page shows of them.

Knows the files and how far each may be missing: the report must be there and whole; whatever else is not there, or
cannot be read, leaves its place in the page empty, and is named where it was expected.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from harness.errors import HarnessError
from harness.gate import Judged
from harness.report.arm_comparison import Compared
from harness.report.finished_run import document
from harness.report.intransigence import Intransigence
from harness.report.recommendation import Advice, Point
from harness.report.run_report import Change, Shown
from harness.report.stage_suite_matrix import Matrix
from harness.report.weight_variants import Variant, read
from harness.statistics.intervals import Estimate

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


T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """A run as its folder tells it. steps: stage -> the entries of its log. looks: stage -> what was measured within
    it. trained: stage -> what it came to.

    spec, environment, data: {} where the file is missing. unread: what could not be read, each in a line.
    """

    folder: Path
    name: str
    seed: int
    facts: Mapping[str, Any]
    stages: tuple[str, ...]
    changes: tuple[Change, ...]
    matrices: tuple[Matrix, ...]
    gate: tuple[Judged, ...]
    answers: Mapping[str, Mapping[str, Mapping[str, int]]]
    examples: tuple[Shown, ...]
    spec: Mapping[str, Any]
    environment: Mapping[str, Any]
    data: Mapping[str, Any]
    steps: Mapping[str, tuple[Mapping[str, float], ...]]
    looks: Mapping[str, tuple[Look, ...]]
    trained: Mapping[str, Mapping[str, Any]]
    variants: tuple[Variant, ...]
    unread: tuple[str, ...]


@dataclass(frozen=True)
class Arms:
    """An experiment as its folder tells it. specs: arm -> its filled spec, of those that have one. variants: by arm."""

    folder: Path
    name: str
    baseline: str
    arms: tuple[str, ...]
    scores: tuple[Compared, ...]
    gain: str
    forgetting: str
    points: tuple[Point, ...]
    missing: Mapping[str, str]
    notes: tuple[str, ...]
    advised: Advice
    joint: str | None
    intransigence: tuple[Intransigence, ...]
    specs: Mapping[str, Mapping[str, Any]]
    variants: Mapping[str, tuple[Variant, ...]]
    unread: tuple[str, ...]


def run(folder: str | Path) -> Run:
    """The run in a folder. Raises HarnessError when it is no folder of a run that came to its report."""
    place = Path(folder)
    given = document(place, "report.json")
    return _whole(place / "report.json", "run", lambda: _run(place, given))


def arms(folder: str | Path) -> Arms:
    """The experiment in a folder. Raises HarnessError when it is none, or its arms were not compared yet."""
    place = Path(folder)
    if not (place / "arms.json").is_file() and (place / "report.json").is_file():
        raise HarnessError(str(place), "is the folder of one run and not of an experiment", "it has a report.json")
    given = document(place, "arms.json")
    return _whole(place / "arms.json", "experiment", lambda: _arms(place, given))


def optional(file: Path, unread: list[str]) -> dict[str, Any]:
    """The JSON object in a file; {} where there is none, and a line in `unread` where it is damaged."""
    try:
        return document(file.parent, file.name)
    except HarnessError as error:
        if file.exists():
            unread.append(f"{file.name} {error.what}")
        return {}


def _whole(file: Path, what: str, make: Callable[[], T]) -> T:
    try:
        return make()
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        told = f"is no report of {what} that this version can show ({type(error).__name__}: {error})"
        raise HarnessError(str(file), told, "make it anew, or use the version that wrote it") from error


def _run(place: Path, given: Mapping[str, Any]) -> Run:
    unread: list[str] = []
    stages = tuple(map(str, given["stages"]))
    logs, within, trained = {}, {}, {}
    for name in stages[1:]:
        logs[name] = steps(place / "stages" / name / "steps.jsonl", unread)
        within[name] = looks(place / "stages" / name / "evaluations.jsonl", unread)
        trained[name] = optional(place / "stages" / name / "trained.json", unread)
    return Run(
        folder=place,
        name=str(given["name"]),
        seed=int(given["seed"]),
        facts=dict(given["run"]),
        stages=stages,
        changes=tuple(map(_change, given["changes"])),
        matrices=tuple(map(_matrix, given.get("forgetting", ()))),
        gate=tuple(
            _made(Judged, one, found=real(one["found"]), bound=real(one["bound"])) for one in given.get("gate", ())
        ),
        answers=given.get("answers", {}),
        examples=tuple(_made(Shown, one) for one in given.get("examples", ())),
        spec=optional(place / "spec.json", unread),
        environment=optional(place / "environment.json", unread),
        data=optional(place / "data.json", unread),
        steps=logs,
        looks=within,
        trained=trained,
        variants=_variants(place, unread),
        unread=tuple(unread),
    )


def _arms(place: Path, given: Mapping[str, Any]) -> Arms:
    unread: list[str] = []
    names = tuple(map(str, given["arms"]))
    return Arms(
        folder=place,
        name=str(given["name"]),
        baseline=str(given["baseline"]),
        arms=names,
        scores=tuple(map(_compared, given["scores"])),
        gain=str(given["gain"]),
        forgetting=str(given["forgetting"]),
        points=tuple(
            _made(Point, one, gain=estimate(one["gain"]), forgotten=estimate(one["forgotten"]))
            for one in given["points"]
        ),
        missing={str(arm): str(why) for arm, why in given["missing"].items()},
        notes=tuple(map(str, given.get("notes", ()))),
        advised=_advice(given),
        joint=given.get("joint"),
        intransigence=tuple(
            _made(Intransigence, one, suites=tuple(one["suites"]), value=estimate(one["value"]))
            for one in given.get("intransigence", ())
        ),
        specs={arm: optional(place / "arms" / arm / "spec.json", unread) for arm in names},
        variants={arm: _variants(place / "arms" / arm, unread) for arm in names},
        unread=tuple(unread),
    )


def _variants(place: Path, unread: list[str]) -> tuple[Variant, ...]:
    given = optional(place / "variants.json", unread)
    try:
        return read(given)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        unread.append(f"variants.json holds no variants of this version ({type(error).__name__}: {error})")
        return ()


def estimate(given: Mapping[str, Any]) -> Estimate:
    """An estimate out of a report; null is NaN."""
    known = {key: real(given[key]) for key in ("value", "stderr", "low", "high")}
    return _made(Estimate, {"n": int(given["n"]), **{k: v for k, v in given.items() if k == "method"}}, **known)


def _change(given: Mapping[str, Any]) -> Change:
    return _made(
        Change,
        given,
        before=estimate(given["before"]),
        after=estimate(given["after"]),
        difference=estimate(given["difference"]),
        needed=given.get("needed"),
        after_stages=tuple(None if one is None else estimate(one) for one in given["after_stages"]),
    )


def _matrix(given: Mapping[str, Any]) -> Matrix:
    return _made(
        Matrix,
        given,
        suites=tuple(given["suites"]),
        learned=tuple(given["learned"]),
        general=tuple(given["general"]),
        values=tuple(tuple(map(real, row)) for row in given["values"]),
        summaries={name: estimate(one) for name, one in given["summaries"].items()},
    )


def _compared(given: Mapping[str, Any]) -> Compared:
    known = {key: estimate(given[key]) for key in ("before", "after", "change")}
    against = given["against"]
    return _made(Compared, given, **known, against=None if against is None else estimate(against))


def _advice(given: Mapping[str, Any]) -> Advice:
    if "advised" not in given:  # of an earlier version, which wrote the sentences alone
        return Advice(str(given["advice"]))
    return _made(Advice, given["advised"], alike=tuple(given["advised"]["alike"]))


def _made(kind: type[T], given: Mapping[str, Any], **known: Any) -> T:
    """The dataclass from what a file says; what a later version added to the file is left aside."""
    names = [one.name for one in fields(kind)]  # type: ignore[arg-type]
    return kind(**{**{key: given[key] for key in names if key in given}, **known})
