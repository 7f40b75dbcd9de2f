"""Load a finished run from its folder: its spec, and every score with the statistics of its items."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.statistics.intervals import Estimate
from harness.types import Evaluation, Item, Score
from harness.utils.json_depth import load_json
from harness.utils.shell_commands import resume_command


@dataclass(frozen=True)
class FinishedRun:
    """The spec and the scores of a finished run.

    Attributes:
        name: Name of the folder.
        folder: Folder of the run.
        spec: Its spec, with defaults filled in.
        stages: Names of the stages, `base` first.
        evaluations: One tuple per stage, the base first. Their items have ids only.
    """

    name: str
    folder: Path
    spec: Mapping[str, Any]
    stages: tuple[str, ...]
    evaluations: tuple[tuple[Evaluation, ...], ...]

    def last_evaluation(self, suite: str) -> Evaluation | None:
        """Return the suite's evaluation after the last stage that evaluated it."""
        evaluations = self._evaluations_of_suite(suite)
        return evaluations[-1] if evaluations else None

    def first_evaluation(self, suite: str) -> Evaluation | None:
        """Return the suite's first evaluation: of the base model, or of the start of a continued run."""
        evaluations = self._evaluations_of_suite(suite)
        return evaluations[0] if evaluations else None

    def _evaluations_of_suite(self, suite: str) -> list[Evaluation]:
        return [evaluation for stage in self.evaluations for evaluation in stage if evaluation.suite == suite]


def load_finished_run(folder: str | Path) -> FinishedRun:
    """Load the run in a folder.

    Raises:
        HarnessError: The folder is not that of a run, or the run has no scores.
    """
    folder = Path(folder)
    spec = load_run_json(folder, "spec.json")
    scores = load_run_json(folder, "scores.json")
    try:
        stages = tuple(str(stage["name"]) for stage in scores["stages"])
        evaluations = tuple(
            _parse_evaluations(stage_index, stage["suites"]) for stage_index, stage in enumerate(scores["stages"])
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"is not a valid list of scores ({type(error).__name__}: {error})"
        raise HarnessError(str(folder / "scores.json"), what, "use the folder of a run") from error
    return FinishedRun(folder.name, folder, spec, stages, evaluations)


def load_evaluations_within_stage(run: FinishedRun, stage_index: int) -> dict[int, tuple[Evaluation, ...]]:
    """Load the evaluations that a run made while it trained a stage.

    Args:
        run: The run.
        stage_index: The stage, from 1.

    Returns:
        Step -> its evaluations, by step; {} if there are none. Their items have ids only.

    Raises:
        HarnessError: A file is damaged.
    """
    data = load_run_json(run.folder, "data.json") if (run.folder / "data.json").is_file() else {}
    own_name = match_own_stages(run.stages, data).get(run.stages[stage_index])
    if own_name is None:
        return {}  # of an earlier run, which has them itself
    evaluations = {}
    for file in (run.folder / "stages" / own_name / "evaluations").glob("*.json"):
        document = load_run_json(file.parent, file.name)
        try:
            evaluations[int(document["step"])] = _parse_evaluations(stage_index, document["suites"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"is not a valid list of scores ({type(error).__name__}: {error})"
            raise HarnessError(str(file), what, "delete it: the evaluation is then left out") from error
    return dict(sorted(evaluations.items()))


def match_own_stages(stages: Sequence[str], data: Mapping[str, Any]) -> dict[str, str]:
    """Return the stages that a run trained itself: name in its results -> name in its spec, which its folder has too.

    The two differ in a run that continues an earlier one with a stage of the same name.

    Args:
        stages: The stages in the run's results: the base, those of the earlier run, those of this run.
        data: The run's `data.json`; {} if it is missing.
    """
    own = data.get("stages")
    names = [str(name) for name in own] if isinstance(own, list) else list(stages[1:])
    return dict(zip(stages[max(1, len(stages) - len(names)) :], names, strict=False))


def load_run_json(folder: Path, name: str) -> dict[str, Any]:
    """Load a JSON object from a run's folder.

    Raises:
        HarnessError: The file does not exist or is not a JSON object.
    """
    file = folder / name
    try:
        document = load_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        what = f"has no {name}" if folder.is_dir() else "is not a folder"
        is_started = (folder / "spec.json").is_file()
        finish = f"finish the run first: {resume_command(folder)}"
        raise HarnessError(str(folder), what, finish if is_started else "use the folder of a finished run") from None
    except (OSError, ValueError) as error:
        raise HarnessError(str(file), f"cannot be read: {error}", "use the folder of a run") from error
    if not isinstance(document, dict):
        raise HarnessError(str(file), "is not a JSON object", "use the folder of a run")
    return document


def parse_estimate(values: Mapping[str, Any]) -> Estimate:
    """Return the estimate that a report has as JSON; null is NaN.

    Raises:
        KeyError: A key is missing.
        TypeError, ValueError: A value is not a number.
    """
    value, stderr, low, high = (_parse_number(values[key]) for key in ("value", "stderr", "low", "high"))
    return Estimate(value, stderr, low, high, int(values["n"]), str(values["method"]), _parse_groups(values))


def _parse_groups(values: Mapping[str, Any]) -> int | None:
    groups = values.get("groups")
    return None if groups is None else int(groups)


def _parse_number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _parse_evaluations(stage: int, suites: Mapping[str, Any]) -> tuple[Evaluation, ...]:
    return tuple(_parse_evaluation(stage, suite, values) for suite, values in suites.items())


def _parse_evaluation(stage: int, suite: str, values: Mapping[str, Any]) -> Evaluation:
    ids = values["items"]
    groups = [None] * len(ids) if values.get("groups") is None else list(map(str, values["groups"]))
    slices = values.get("slices") or [{}] * len(ids)
    items = tuple(
        Item(str(item_id), "", "", group=group, slices=tuple((str(key), str(value)) for key, value in of_item.items()))
        for item_id, group, of_item in zip(ids, groups, slices, strict=True)
    )
    scores = tuple(_parse_score(stage, suite, score) for score in values["scores"])
    for score in scores:
        if len(score.statistics) != len(items):
            raise ValueError(f"{suite}/{score.name} has {len(score.statistics)} statistics for {len(items)} items")
    return Evaluation(stage, suite, items, scores)


def _parse_score(stage: int, suite: str, values: Mapping[str, Any]) -> Score:
    return Score(
        stage=stage,
        suite=suite,
        metric=values["metric"],
        name=values["name"],
        n=int(values["n"]),
        higher_is_better=values["higher_is_better"],
        signature=values["signature"],
        statistics=tuple(tuple(map(_parse_number, vector)) for vector in values["statistics"]),
        value=_parse_number(values["value"]),
        stderr=_parse_number(values["stderr"]),
        low=_parse_number(values["low"]),
        high=_parse_number(values["high"]),
        method=str(values["method"]),
        groups=_parse_groups(values),
        counts={str(key): int(count) for key, count in values["counts"].items()},
        diagnostics={str(key): _parse_number(number) for key, number in values.get("diagnostics", {}).items()},
        unusable=str(values.get("unusable", "")),
    )


StageEvaluations = Sequence[tuple[Evaluation, ...]]


@dataclass(frozen=True)
class PreviousRun:
    """The part of an earlier run that a continued run measures in the same way.

    Attributes:
        folder: Folder of the earlier run.
        stage_names: Names of its stages, without the base.
        evaluations: One tuple per stage, the base first, of the suites that both runs share.
        taught_in_stage: Suite -> the stage of the earlier run, from 1, that teaches it.
    """

    folder: str
    stage_names: tuple[str, ...]
    evaluations: tuple[tuple[Evaluation, ...], ...]
    taught_in_stage: Mapping[str, int]

    def join_evaluations(self, run_evaluations: StageEvaluations) -> tuple[tuple[Evaluation, ...], ...]:
        """Return the evaluations of both runs in one sequence.

        The last stage of the earlier run is the start of this run, so the two are one entry. It has the earlier run's
        evaluations, and this run's for suites that only this run has.

        Args:
            run_evaluations: One tuple per stage of this run, its start first.
        """
        shared_suites = {evaluation.suite for evaluation in self.evaluations[-1]}
        new_suites = (evaluation for evaluation in run_evaluations[0] if evaluation.suite not in shared_suites)
        stages = [*self.evaluations[:-1], (*self.evaluations[-1], *new_suites), *run_evaluations[1:]]
        return tuple(
            tuple(_with_stage(evaluation, stage_index) for evaluation in stage)
            for stage_index, stage in enumerate(stages)
        )

    def join_stage_names(self, run_stage_names: Sequence[str]) -> tuple[str, ...]:
        """Return the names of all stages, the base first; a duplicate name gets a number.

        Args:
            run_stage_names: Names of this run's stages, without the base.
        """
        names = ["base", *self.stage_names]
        for name in run_stage_names:
            number = 2
            unique_name = name
            while unique_name in names:
                unique_name, number = f"{name}-{number}", number + 1
            names.append(unique_name)
        return tuple(names)

    def join_stage_of_suite(self, run_stage_of_suite: Mapping[str, int]) -> dict[str, int]:
        """Return suite -> the stage of both runs, from 1, that teaches it; the earlier run has precedence.

        Args:
            run_stage_of_suite: The same for this run's stages only.
        """
        return {
            **{suite: len(self.stage_names) + stage for suite, stage in run_stage_of_suite.items()},
            **self.taught_in_stage,
        }


def _with_stage(evaluation: Evaluation, stage: int) -> Evaluation:
    return replace(evaluation, stage=stage, scores=tuple(replace(score, stage=stage) for score in evaluation.scores))
