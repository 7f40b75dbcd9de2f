"""A finished run read back from its folder: its spec, and every score with the statistics of its items.

Knows the files that a run leaves; not how they came to be, and no model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.types import Evaluation, Item, Score


@dataclass(frozen=True)
class Kept:
    """What a run's folder says of it. evaluations: one tuple a stage, the base first; their items have ids alone."""

    name: str
    folder: Path
    spec: Mapping[str, Any]
    stages: tuple[str, ...]
    evaluations: tuple[tuple[Evaluation, ...], ...]

    def last(self, suite: str) -> Evaluation | None:
        """The suite after the last stage that evaluated it."""
        found = [one for stage in self.evaluations for one in stage if one.suite == suite]
        return found[-1] if found else None


def read(folder: str | Path) -> Kept:
    """The run in a folder. Raises HarnessError when it is no run's, or the run did not come to scores."""
    place = Path(folder)
    spec = document(place, "spec.json")
    scores = document(place, "scores.json")
    try:
        stages = tuple(str(stage["name"]) for stage in scores["stages"])
        evaluations = tuple(
            tuple(_evaluation(number, suite, found) for suite, found in stage["suites"].items())
            for number, stage in enumerate(scores["stages"])
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"is no list of scores ({type(error).__name__}: {error})"
        raise HarnessError(str(place / "scores.json"), what, "name the folder of a run") from error
    return Kept(place.name, place, spec, stages, evaluations)


def document(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object out of a run's folder. Raises HarnessError when it is not there or is none."""
    file = folder / name
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        what = f"holds no {name}" if folder.is_dir() else "is no folder"
        raise HarnessError(str(folder), what, "name the folder of a run that has been evaluated") from None
    except (OSError, ValueError) as error:
        raise HarnessError(str(file), f"cannot be read: {error}", "name the folder of a run") from error
    if not isinstance(found, dict):
        raise HarnessError(str(file), "is no JSON object", "name the folder of a run")
    return found


def _evaluation(stage: int, suite: str, found: Mapping[str, Any]) -> Evaluation:
    items = tuple(Item(str(one), "", "") for one in found["items"])
    scores = tuple(_score(stage, suite, score) for score in found["scores"])
    for score in scores:
        if len(score.statistics) != len(items):
            raise ValueError(f"{suite}/{score.name} has {len(score.statistics)} statistics of {len(items)} items")
    return Evaluation(stage, suite, items, scores)


def _score(stage: int, suite: str, found: Mapping[str, Any]) -> Score:
    nan = float("nan")

    def number(key: str) -> float:
        return nan if found[key] is None else float(found[key])

    return Score(
        stage=stage,
        suite=suite,
        metric=found["metric"],
        name=found["name"],
        n=int(found["n"]),
        higher_is_better=found["higher_is_better"],
        signature=found["signature"],
        statistics=tuple(tuple(float(nan if one is None else one) for one in vector) for vector in found["statistics"]),
        value=number("value"),
        stderr=number("stderr"),
        low=number("low"),
        high=number("high"),
        method=str(found["method"]),
        counts={str(key): int(count) for key, count in found["counts"].items()},
    )


Stages = Sequence[tuple[Evaluation, ...]]


@dataclass(frozen=True)
class Earlier:
    """The base and the stages of an earlier run, as far as the run that goes on from it measures the same.

    run: its folder. stages: their names, without the base. evaluations: one tuple a stage, the base first, of the
    suites that are carried on. learned: suite -> the earlier stage, from 1, whose task it is.
    """

    run: str
    stages: tuple[str, ...]
    evaluations: tuple[tuple[Evaluation, ...], ...]
    learned: Mapping[str, int]

    def joined(self, own: Stages) -> tuple[tuple[Evaluation, ...], ...]:
        """Both runs as one. own: the run's own evaluations, its start first.

        The earlier run's last stage is where the run started, so that this stands there once: as the earlier run
        measured it, and for suites that are not carried on, which begin here, as the run did at its start.
        """
        carried = {one.suite for one in self.evaluations[-1]}
        begins = (*self.evaluations[-1], *(one for one in own[0] if one.suite not in carried))
        stages = [*self.evaluations[:-1], begins, *own[1:]]
        return tuple(tuple(_at(one, number) for one in stage) for number, stage in enumerate(stages))

    def named(self, own: Sequence[str]) -> tuple[str, ...]:
        """The names of all stages, the base first. own: of the run's stages; one that is taken gets a number."""
        names = ["base", *self.stages]
        for name in own:
            number = 2
            new = name
            while new in names:
                new, number = f"{name}-{number}", number + 1
            names.append(new)
        return tuple(names)

    def owners(self, own: Mapping[str, int]) -> dict[str, int]:
        """Suite -> the stage, from 1, that teaches it, over both runs; the earlier run's word counts first.

        own: the same of the run's own stages alone.
        """
        return {**{suite: len(self.stages) + stage for suite, stage in own.items()}, **self.learned}


def _at(one: Evaluation, stage: int) -> Evaluation:
    return replace(one, stage=stage, scores=tuple(replace(score, stage=stage) for score in one.scores))
