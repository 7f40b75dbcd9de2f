"""A finished run read back from its folder: its spec, and every score with the statistics of its items.

Knows the files that a run leaves; not how they came to be, and no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.types import Evaluation, Item, Score
from harness.utils.json_depth import load_json


@dataclass(frozen=True)
class FinishedRun:
    """What a run's folder says of it. evaluations: one tuple a stage, the base first; their items have ids alone."""

    name: str
    folder: Path
    spec: Mapping[str, Any]
    stages: tuple[str, ...]
    evaluations: tuple[tuple[Evaluation, ...], ...]

    def last_evaluation(self, suite: str) -> Evaluation | None:
        """The suite after the last stage that evaluated it."""
        found = [one for stage in self.evaluations for one in stage if one.suite == suite]
        return found[-1] if found else None


def load_finished_run(folder: str | Path) -> FinishedRun:
    """The run in a folder. Raises HarnessError when it is no run's, or the run did not come to scores."""
    place = Path(folder)
    spec = load_run_json(place, "spec.json")
    scores = load_run_json(place, "scores.json")
    try:
        stages = tuple(str(stage["name"]) for stage in scores["stages"])
        evaluations = tuple(
            tuple(_parse_evaluation(number, suite, found) for suite, found in stage["suites"].items())
            for number, stage in enumerate(scores["stages"])
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"is no list of scores ({type(error).__name__}: {error})"
        raise HarnessError(str(place / "scores.json"), what, "name the folder of a run") from error
    return FinishedRun(place.name, place, spec, stages, evaluations)


def load_run_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object out of a run's folder. Raises HarnessError when it is not there or is none."""
    file = folder / name
    try:
        found = load_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        what = f"holds no {name}" if folder.is_dir() else "is no folder"
        raise HarnessError(str(folder), what, "name the folder of a run that has been evaluated") from None
    except (OSError, ValueError) as error:
        raise HarnessError(str(file), f"cannot be read: {error}", "name the folder of a run") from error
    if not isinstance(found, dict):
        raise HarnessError(str(file), "is no JSON object", "name the folder of a run")
    return found


def _parse_evaluation(stage: int, suite: str, values: Mapping[str, Any]) -> Evaluation:
    items = tuple(Item(str(one), "", "") for one in values["items"])
    scores = tuple(_parse_score(stage, suite, score) for score in values["scores"])
    for score in scores:
        if len(score.statistics) != len(items):
            raise ValueError(f"{suite}/{score.name} has {len(score.statistics)} statistics of {len(items)} items")
    return Evaluation(stage, suite, items, scores)


def _parse_score(stage: int, suite: str, values: Mapping[str, Any]) -> Score:
    nan = float("nan")

    def number(key: str) -> float:
        return nan if values[key] is None else float(values[key])

    return Score(
        stage=stage,
        suite=suite,
        metric=values["metric"],
        name=values["name"],
        n=int(values["n"]),
        higher_is_better=values["higher_is_better"],
        signature=values["signature"],
        statistics=tuple(
            tuple(float(nan if one is None else one) for one in vector) for vector in values["statistics"]
        ),
        value=number("value"),
        stderr=number("stderr"),
        low=number("low"),
        high=number("high"),
        method=str(values["method"]),
        counts={str(key): int(count) for key, count in values["counts"].items()},
    )


StageEvaluations = Sequence[tuple[Evaluation, ...]]


@dataclass(frozen=True)
class PreviousRun:
    """The base and the stages of an earlier run, as far as the run that goes on from it measures the same.

    folder: its folder. stage_names: their names, without the base. evaluations: one tuple a stage, the base first, of
    the suites that are carried on. taught_in_stage: suite -> the earlier stage, from 1, whose task it is.
    """

    folder: str
    stage_names: tuple[str, ...]
    evaluations: tuple[tuple[Evaluation, ...], ...]
    taught_in_stage: Mapping[str, int]

    def join_evaluations(self, run_evaluations: StageEvaluations) -> tuple[tuple[Evaluation, ...], ...]:
        """Both runs as one. run_evaluations: the run's own evaluations, its start first.

        The earlier run's last stage is where the run started, so that this stands there once: as the earlier run
        measured it, and for suites that are not carried on, which begin here, as the run did at its start.
        """
        carried = {one.suite for one in self.evaluations[-1]}
        begins = (*self.evaluations[-1], *(one for one in run_evaluations[0] if one.suite not in carried))
        stages = [*self.evaluations[:-1], begins, *run_evaluations[1:]]
        return tuple(tuple(_with_stage(one, number) for one in stage) for number, stage in enumerate(stages))

    def join_stage_names(self, run_stage_names: Sequence[str]) -> tuple[str, ...]:
        """The names of all stages, the base first. run_stage_names: of the run's stages; one that is taken gets a
        number."""
        names = ["base", *self.stage_names]
        for name in run_stage_names:
            number = 2
            new = name
            while new in names:
                new, number = f"{name}-{number}", number + 1
            names.append(new)
        return tuple(names)

    def join_stage_of_suite(self, run_stage_of_suite: Mapping[str, int]) -> dict[str, int]:
        """Suite -> the stage, from 1, that teaches it, over both runs; the earlier run's word counts first.

        run_stage_of_suite: the same of the run's own stages alone.
        """
        return {
            **{suite: len(self.stage_names) + stage for suite, stage in run_stage_of_suite.items()},
            **self.taught_in_stage,
        }


def _with_stage(evaluation: Evaluation, stage: int) -> Evaluation:
    return replace(evaluation, stage=stage, scores=tuple(replace(score, stage=stage) for score in evaluation.scores))
