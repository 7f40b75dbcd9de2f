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
from harness.gate import GateResult
from harness.report.arm_comparison import ArmScore
from harness.report.finished_run import load_run_json
from harness.report.intransigence import Intransigence
from harness.report.recommendation import ArmPoint, Recommendation
from harness.report.run_report import ExampleAnswers, ScoreChange
from harness.report.stage_suite_matrix import StageSuiteMatrix
from harness.report.weight_variants import WeightVariant, parse_variants
from harness.statistics.intervals import Estimate

NUMBER_TYPES = (int, float, type(None))


@dataclass(frozen=True)
class MidStageEvaluation:
    """One evaluation within a stage, after its update `step`. scores: `suite/score` -> value.

    combined: the weighted score that may end the stage early, None where nothing may. is_best: whether none before was
    better. weights_saved: whether its weights were put aside, so that those of the last one kept are the stage's
    result. should_stop: whether the stage was ended here, before its last update.
    """

    step: float
    scores: Mapping[str, float]
    combined: float | None
    is_best: bool
    weights_saved: bool
    should_stop: bool


def load_items_by_id(file: Path) -> dict[str, dict[str, Any]]:
    """Id -> what a file of predictions says of the item, by everything that its lines add up to; {} without a file."""
    found: dict[str, dict[str, Any]] = {}
    for line in _iter_json_lines(file):
        if isinstance(line, dict) and "id" in line:
            found.setdefault(str(line["id"]), {}).update(line)
    return found


def load_step_log(file: Path, unreadable: list[str]) -> tuple[Mapping[str, float], ...]:
    """The entries of a stage's log, by their update."""
    return tuple(
        {str(key): null_to_nan(one) for key, one in line.items() if isinstance(one, NUMBER_TYPES)}
        for line in _load_lines_by_step(file, unreadable)
    )


def load_mid_stage_evaluations(file: Path, unreadable: list[str]) -> tuple[MidStageEvaluation, ...]:
    """What was measured within a stage, by its update."""
    return tuple(
        MidStageEvaluation(
            float(line["step"]),
            {str(name): null_to_nan(one) for name, one in line["scores"].items() if isinstance(one, NUMBER_TYPES)},
            float(line["combined"]) if isinstance(line.get("combined"), int | float) else None,
            bool(line.get("best")),
            bool(line.get("kept")),
            bool(line.get("over")),
        )
        for line in _load_lines_by_step(file, unreadable, "scores")
    )


def null_to_nan(value: Any) -> float:
    """A number of a file; null is NaN."""
    return math.nan if value is None else float(value)


def _load_lines_by_step(file: Path, unreadable: list[str], required_key: str | None = None) -> list[dict[str, Any]]:
    """The lines that say a step, in the order of the steps; what cannot be read is counted and left out.

    required_key: a key that must hold an object too.
    """
    made: dict[float, dict[str, Any]] = {}
    lost = 0
    for line in _iter_json_lines(file):
        known = isinstance(line, dict) and isinstance(line.get("step"), int | float)
        if not known or (required_key is not None and not isinstance(line.get(required_key), dict)):
            lost += 1
            continue
        # A run that was gone on with does some updates again: the last of them counts.
        made[line["step"]] = line
    if lost:
        unreadable.append(f"{file.parent.name}/{file.name} has {lost} line(s) that cannot be read")
    return [made[step] for step in sorted(made)]


def _iter_json_lines(file: Path) -> Iterator[Any]:
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
class RunFiles:
    """A run as its folder tells it. step_logs: stage -> the entries of its log. mid_stage_evaluations: stage -> what
    was measured within it. stage_results: stage -> what it came to.

    spec, environment, data: {} where the file is missing. unreadable: what could not be read, each in a line.
    """

    folder: Path
    name: str
    seed: int
    run_info: Mapping[str, Any]
    stages: tuple[str, ...]
    changes: tuple[ScoreChange, ...]
    matrices: tuple[StageSuiteMatrix, ...]
    gate: tuple[GateResult, ...]
    answers: Mapping[str, Mapping[str, Mapping[str, int]]]
    examples: tuple[ExampleAnswers, ...]
    spec: Mapping[str, Any]
    environment: Mapping[str, Any]
    data: Mapping[str, Any]
    step_logs: Mapping[str, tuple[Mapping[str, float], ...]]
    mid_stage_evaluations: Mapping[str, tuple[MidStageEvaluation, ...]]
    stage_results: Mapping[str, Mapping[str, Any]]
    variants: tuple[WeightVariant, ...]
    unreadable: tuple[str, ...]


@dataclass(frozen=True)
class ExperimentFiles:
    """An experiment as its folder tells it. specs: arm -> its filled spec, of those that have one. variants: by arm."""

    folder: Path
    name: str
    baseline: str
    arms: tuple[str, ...]
    scores: tuple[ArmScore, ...]
    gain: str
    forgetting: str
    points: tuple[ArmPoint, ...]
    missing: Mapping[str, str]
    notes: tuple[str, ...]
    recommendation: Recommendation
    joint: str | None
    intransigence: tuple[Intransigence, ...]
    specs: Mapping[str, Mapping[str, Any]]
    variants: Mapping[str, tuple[WeightVariant, ...]]
    unreadable: tuple[str, ...]


def load_run_files(folder: str | Path) -> RunFiles:
    """The run in a folder. Raises HarnessError when it is no folder of a run that came to its report."""
    place = Path(folder)
    given = load_run_json(place, "report.json")
    return _parse_or_fail(place / "report.json", "run", lambda: _parse_run(place, given))


def load_experiment_files(folder: str | Path) -> ExperimentFiles:
    """The experiment in a folder. Raises HarnessError when it is none, or its arms were not compared yet."""
    place = Path(folder)
    if not (place / "arms.json").is_file() and (place / "report.json").is_file():
        raise HarnessError(str(place), "is the folder of one run and not of an experiment", "it has a report.json")
    given = load_run_json(place, "arms.json")
    return _parse_or_fail(place / "arms.json", "experiment", lambda: _parse_experiment(place, given))


def load_optional_json(file: Path, unreadable: list[str]) -> dict[str, Any]:
    """The JSON object in a file; {} where there is none, and a line in `unreadable` where it is damaged."""
    try:
        return load_run_json(file.parent, file.name)
    except HarnessError as error:
        if file.exists():
            unreadable.append(f"{file.name} {error.what}")
        return {}


def _parse_or_fail(file: Path, what: str, parse: Callable[[], T]) -> T:
    try:
        return parse()
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        told = f"is no report of {what} that this version can show ({type(error).__name__}: {error})"
        raise HarnessError(str(file), told, "make it anew, or use the version that wrote it") from error


def _parse_run(folder: Path, report_json: Mapping[str, Any]) -> RunFiles:
    unread: list[str] = []
    stages = tuple(map(str, report_json["stages"]))
    logs, within, trained = {}, {}, {}
    for name in stages[1:]:
        logs[name] = load_step_log(folder / "stages" / name / "steps.jsonl", unread)
        within[name] = load_mid_stage_evaluations(folder / "stages" / name / "evaluations.jsonl", unread)
        trained[name] = load_optional_json(folder / "stages" / name / "trained.json", unread)
    return RunFiles(
        folder=folder,
        name=str(report_json["name"]),
        seed=int(report_json["seed"]),
        run_info=dict(report_json["run"]),
        stages=stages,
        changes=tuple(map(_parse_score_change, report_json["changes"])),
        matrices=tuple(map(_parse_matrix, report_json.get("forgetting", ()))),
        gate=tuple(
            _from_dict(GateResult, one, found=null_to_nan(one["found"]), bound=null_to_nan(one["bound"]))
            for one in report_json.get("gate", ())
        ),
        answers=report_json.get("answers", {}),
        examples=tuple(_from_dict(ExampleAnswers, one) for one in report_json.get("examples", ())),
        spec=load_optional_json(folder / "spec.json", unread),
        environment=load_optional_json(folder / "environment.json", unread),
        data=load_optional_json(folder / "data.json", unread),
        step_logs=logs,
        mid_stage_evaluations=within,
        stage_results=trained,
        variants=_load_variants(folder, unread),
        unreadable=tuple(unread),
    )


def _parse_experiment(folder: Path, arms_json: Mapping[str, Any]) -> ExperimentFiles:
    unread: list[str] = []
    names = tuple(map(str, arms_json["arms"]))
    return ExperimentFiles(
        folder=folder,
        name=str(arms_json["name"]),
        baseline=str(arms_json["baseline"]),
        arms=names,
        scores=tuple(map(_parse_arm_score, arms_json["scores"])),
        gain=str(arms_json["gain"]),
        forgetting=str(arms_json["forgetting"]),
        points=tuple(
            _from_dict(ArmPoint, one, gain=parse_estimate(one["gain"]), forgotten=parse_estimate(one["forgotten"]))
            for one in arms_json["points"]
        ),
        missing={str(arm): str(why) for arm, why in arms_json["missing"].items()},
        notes=tuple(map(str, arms_json.get("notes", ()))),
        recommendation=_parse_recommendation(arms_json),
        joint=arms_json.get("joint"),
        intransigence=tuple(
            _from_dict(Intransigence, one, suites=tuple(one["suites"]), value=parse_estimate(one["value"]))
            for one in arms_json.get("intransigence", ())
        ),
        specs={arm: load_optional_json(folder / "arms" / arm / "spec.json", unread) for arm in names},
        variants={arm: _load_variants(folder / "arms" / arm, unread) for arm in names},
        unreadable=tuple(unread),
    )


def _load_variants(folder: Path, unreadable: list[str]) -> tuple[WeightVariant, ...]:
    given = load_optional_json(folder / "variants.json", unreadable)
    try:
        return parse_variants(given)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        unreadable.append(f"variants.json holds no variants of this version ({type(error).__name__}: {error})")
        return ()


def parse_estimate(values: Mapping[str, Any]) -> Estimate:
    """An estimate out of a report; null is NaN."""
    known = {key: null_to_nan(values[key]) for key in ("value", "stderr", "low", "high")}
    return _from_dict(Estimate, {"n": int(values["n"]), **{k: v for k, v in values.items() if k == "method"}}, **known)


def _parse_score_change(given: Mapping[str, Any]) -> ScoreChange:
    return _from_dict(
        ScoreChange,
        given,
        before=parse_estimate(given["before"]),
        after=parse_estimate(given["after"]),
        difference=parse_estimate(given["difference"]),
        needed=given.get("needed"),
        after_stages=tuple(None if one is None else parse_estimate(one) for one in given["after_stages"]),
    )


def _parse_matrix(given: Mapping[str, Any]) -> StageSuiteMatrix:
    return _from_dict(
        StageSuiteMatrix,
        given,
        suites=tuple(given["suites"]),
        learned=tuple(given["learned"]),
        general=tuple(given["general"]),
        values=tuple(tuple(map(null_to_nan, row)) for row in given["values"]),
        summaries={name: parse_estimate(one) for name, one in given["summaries"].items()},
    )


def _parse_arm_score(given: Mapping[str, Any]) -> ArmScore:
    known = {key: parse_estimate(given[key]) for key in ("before", "after", "change")}
    against = given["against"]
    return _from_dict(ArmScore, given, **known, against=None if against is None else parse_estimate(against))


def _parse_recommendation(arms_json: Mapping[str, Any]) -> Recommendation:
    if "advised" not in arms_json:  # of an earlier version, which wrote the sentences alone
        return Recommendation(str(arms_json["advice"]))
    return _from_dict(Recommendation, arms_json["advised"], alike=tuple(arms_json["advised"]["alike"]))


def _from_dict(dataclass_type: type[T], document: Mapping[str, Any], **overrides: Any) -> T:
    """The dataclass from what a file says; what a later version added to the file is left aside."""
    names = [one.name for one in fields(dataclass_type)]  # type: ignore[arg-type]
    return dataclass_type(**{**{key: document[key] for key in names if key in document}, **overrides})
