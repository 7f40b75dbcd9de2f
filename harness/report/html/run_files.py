"""Load the files of a finished run or experiment for its page.

`report.json` (`arms.json` of an experiment) must exist and be valid. Every other file may be missing or damaged: its
section of the page is then empty, and a damaged file is named on the page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from harness.errors import HarnessError
from harness.gate import GateResult
from harness.report.arm_gate import ArmGate
from harness.report.arm_score import ArmScore
from harness.report.best_control import BestControl
from harness.report.domain_leakage import LeakedWord
from harness.report.equal_gain import EqualGain, parse_equal_gain
from harness.report.finished_run import load_run_json, match_own_stages, parse_estimate
from harness.report.flips import ItemAnswer, MovedItem, SuiteFlips
from harness.report.intransigence import Intransigence
from harness.report.recommendation import ArmPoint, Recommendation
from harness.report.run_report import ExampleAnswers
from harness.report.score_change import ScoreChange
from harness.report.slices import SliceChange
from harness.report.stage_suite_matrix import StageSuiteMatrix, parse_matrix
from harness.report.weight_variants import WeightVariant, parse_variants
from harness.statistics.seeds import SeedSpread
from harness.utils.json_dataclass import build_dataclass
from harness.utils.json_files import read_json_lines

T = TypeVar("T")

NUMBER_TYPES = (int, float, type(None))
"""Types of a number in JSON; null is NaN."""


@dataclass(frozen=True)
class MidStageEvaluation:
    """One evaluation within a stage.

    Attributes:
        step: Optimizer step after which it ran.
        scores: `suite/score` -> value.
        combined: Weighted score of early stopping; None without early stopping.
        is_best: Whether it was the best evaluation of the stage so far.
        weights_saved: Whether the weights were saved. The last saved weights are the result of the stage.
        should_stop: Whether early stopping ended the stage here.
        mitigations: `<mitigation>/<key>` -> what a mitigation measured or changed after it.
    """

    step: float
    scores: Mapping[str, float]
    combined: float | None
    is_best: bool
    weights_saved: bool
    should_stop: bool
    mitigations: Mapping[str, float]


@dataclass(frozen=True)
class RunFiles:
    """The contents of a run's folder.

    Attributes:
        own_stages: Those of `stages` that this run trained, and not an earlier run that it continues.
        spec: The filled spec; like `environment` and `data` {} if the file is missing.
        step_logs: Stage -> the entries of its training log, by step.
        mid_stage_evaluations: Stage -> the evaluations within it, by step.
        stage_results: Stage -> the contents of its `trained.json`.
        unreadable: One line for each file that could not be read.
    """

    folder: Path
    name: str
    seed: int
    run_info: Mapping[str, Any]
    stages: tuple[str, ...]
    own_stages: tuple[str, ...]
    changes: tuple[ScoreChange, ...]
    matrices: tuple[StageSuiteMatrix, ...]
    gate: tuple[GateResult, ...]
    answers: Mapping[str, Mapping[str, Mapping[str, int]]]
    flips: tuple[SuiteFlips, ...]
    slices: tuple[SliceChange, ...]
    leaked_words: tuple[LeakedWord, ...]
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
    """The contents of an experiment's folder.

    Attributes:
        runs: Arm -> seed -> name of the run's folder below `arms/`.
        specs: Arm -> its filled spec, with its first seed; {} if the file is missing.
        variants: Run -> the weight variants that its mitigations offered.
        unreadable: One line for each file that could not be read.
    """

    folder: Path
    name: str
    baseline: str
    arms: tuple[str, ...]
    runs: Mapping[str, Mapping[str, str]]
    scores: tuple[ArmScore, ...]
    gain: str
    forgetting: str
    points: tuple[ArmPoint, ...]
    missing: Mapping[str, str]
    notes: tuple[str, ...]
    recommendation: Recommendation
    controls: tuple[str, ...]
    best_control: tuple[BestControl, ...]
    gate: ArmGate | None
    joint: str | None
    intransigence: tuple[Intransigence, ...]
    specs: Mapping[str, Mapping[str, Any]]
    variants: Mapping[str, tuple[WeightVariant, ...]]
    unreadable: tuple[str, ...]
    equal_gain: EqualGain | None = None


def load_run_files(folder: str | Path) -> RunFiles:
    """Load the run in a folder.

    Raises:
        HarnessError: If the folder has no valid `report.json`.
    """
    path = Path(folder)
    report_json = load_run_json(path, "report.json")
    return _parse_or_fail(path / "report.json", "run", lambda: _parse_run(path, report_json))


def load_experiment_files(folder: str | Path) -> ExperimentFiles:
    """Load the experiment in a folder.

    Raises:
        HarnessError: If the folder has no valid `arms.json`, for example because it is that of a single run.
    """
    path = Path(folder)
    if not (path / "arms.json").is_file() and (path / "report.json").is_file():
        raise HarnessError(str(path), "is the folder of one run and not of an experiment", "it has a report.json")
    arms_json = load_run_json(path, "arms.json")
    return _parse_or_fail(path / "arms.json", "experiment", lambda: _parse_experiment(path, arms_json))


def load_optional_json(file: Path, unreadable: list[str]) -> dict[str, Any]:
    """Load the JSON object in a file; {} if it is missing or damaged, which is then added to `unreadable`."""
    try:
        return load_run_json(file.parent, file.name)
    except HarnessError as error:
        if file.exists():
            unreadable.append(f"{file.name} {error.what}")
        return {}


def load_items_by_id(file: Path) -> dict[str, dict[str, Any]]:
    """Load a file of predictions as id -> the fields of all its lines with that id; {} if the file is missing."""
    items: dict[str, dict[str, Any]] = {}
    for record in read_json_lines(file) if file.is_file() else ():
        if "id" in record:
            items.setdefault(str(record["id"]), {}).update(record)
    return items


def load_step_log(file: Path, unreadable: list[str]) -> tuple[Mapping[str, float], ...]:
    """Load the entries of a stage's training log, by step."""
    return tuple(_numbers(record) for record in _load_records_by_step(file, unreadable))


def load_mid_stage_evaluations(file: Path, unreadable: list[str]) -> tuple[MidStageEvaluation, ...]:
    """Load the evaluations within a stage, by step."""
    return tuple(
        MidStageEvaluation(
            step=float(record["step"]),
            scores=_numbers(record["scores"]),
            combined=float(record["combined"]) if isinstance(record.get("combined"), int | float) else None,
            is_best=bool(record.get("best")),
            weights_saved=bool(record.get("kept")),
            should_stop=bool(record.get("over")),
            mitigations=_numbers(stats) if isinstance(stats := record.get("mitigations"), dict) else {},
        )
        for record in _load_records_by_step(file, unreadable, "scores")
    )


def _load_records_by_step(file: Path, unreadable: list[str], required_key: str | None = None) -> list[dict[str, Any]]:
    """Load the lines that have a step, by step; the number of other lines is added to `unreadable`.

    Args:
        file: JSON lines.
        unreadable: Gets a line if some cannot be read.
        required_key: A key that must hold an object.
    """
    if not file.is_file():
        return []
    by_step: dict[float, dict[str, Any]] = {}
    valid = 0
    for record in read_json_lines(file):
        has_step = isinstance(record.get("step"), int | float)
        if has_step and (required_key is None or isinstance(record.get(required_key), dict)):
            valid += 1
            by_step[record["step"]] = record  # a resumed run repeats some steps: their last entry counts
    with file.open("rb") as lines:
        invalid = sum(bool(line.strip()) for line in lines) - valid
    if invalid:
        unreadable.append(f"{file.parent.name}/{file.name} has {invalid} line(s) that cannot be read")
    return [by_step[step] for step in sorted(by_step)]


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    return {str(key): null_to_nan(value) for key, value in record.items() if isinstance(value, NUMBER_TYPES)}


def null_to_nan(value: Any) -> float:
    """Return a number of a JSON file as a float; null is NaN."""
    return math.nan if value is None else float(value)


def parse_gate_result(result: Mapping[str, Any]) -> GateResult:
    """Return the result of a gate condition from its JSON; an earlier version wrote `passed` and no outcome."""
    outcome = result.get("outcome") or ("passed" if result["passed"] else "failed")
    return _from_dict(
        GateResult, result, outcome=outcome, found=null_to_nan(result["found"]), bound=null_to_nan(result["bound"])
    )


def _parse_or_fail(file: Path, what: str, parse: Callable[[], T]) -> T:
    try:
        return parse()
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = f"is not a valid {what} report for this version ({type(error).__name__}: {error})"
        raise HarnessError(str(file), reason, "use the version of harness that wrote it") from error


def _parse_run(folder: Path, report_json: Mapping[str, Any]) -> RunFiles:
    unreadable: list[str] = []
    stages = tuple(map(str, report_json["stages"]))
    data = load_optional_json(folder / "data.json", unreadable)
    step_logs: dict[str, tuple[Mapping[str, float], ...]] = dict.fromkeys(stages[1:], ())
    mid_stage_evaluations: dict[str, tuple[MidStageEvaluation, ...]] = dict.fromkeys(stages[1:], ())
    stage_results: dict[str, Mapping[str, Any]] = {name: {} for name in stages[1:]}
    own_stages = match_own_stages(stages, data)
    for name, own_name in own_stages.items():
        stage_folder = folder / "stages" / own_name
        step_logs[name] = load_step_log(stage_folder / "steps.jsonl", unreadable)
        mid_stage_evaluations[name] = load_mid_stage_evaluations(stage_folder / "evaluations.jsonl", unreadable)
        stage_results[name] = load_optional_json(stage_folder / "trained.json", unreadable)
    return RunFiles(
        folder=folder,
        name=str(report_json["name"]),
        seed=int(report_json["seed"]),
        run_info=dict(report_json["run"]),
        stages=stages,
        own_stages=tuple(own_stages),
        changes=tuple(map(_parse_score_change, report_json["changes"])),
        matrices=tuple(map(parse_matrix, report_json.get("forgetting", ()))),
        gate=tuple(map(parse_gate_result, report_json.get("gate", ()))),
        answers=report_json.get("answers", {}),
        slices=tuple(map(_parse_slice, report_json.get("slices", ()))),
        flips=tuple(map(_parse_flips, report_json.get("flips", ()))),
        leaked_words=tuple(
            _from_dict(LeakedWord, word, items=tuple(map(tuple, word["items"])))
            for word in report_json.get("leaked_words", ())
        ),
        examples=tuple(_from_dict(ExampleAnswers, example) for example in report_json.get("examples", ())),
        spec=load_optional_json(folder / "spec.json", unreadable),
        environment=load_optional_json(folder / "environment.json", unreadable),
        data=data,
        step_logs=step_logs,
        mid_stage_evaluations=mid_stage_evaluations,
        stage_results=stage_results,
        variants=_load_variants(folder, unreadable),
        unreadable=tuple(unreadable),
    )


def _parse_experiment(folder: Path, arms_json: Mapping[str, Any]) -> ExperimentFiles:
    unreadable: list[str] = []
    runs = {
        str(arm): {
            seed: Path(run).name for seed, run in (by_seed if isinstance(by_seed, dict) else {"": by_seed}).items()
        }
        for arm, by_seed in arms_json["arms"].items()  # an earlier version had one run for each arm
    }
    first_runs = {arm: next(iter(by_seed.values())) for arm, by_seed in runs.items()}
    return ExperimentFiles(
        folder=folder,
        name=str(arms_json["name"]),
        baseline=str(arms_json["baseline"]),
        arms=tuple(runs),
        runs=runs,
        scores=tuple(map(_parse_arm_score, arms_json["scores"])),
        gain=str(arms_json["gain"]),
        forgetting=str(arms_json["forgetting"]),
        points=tuple(map(_parse_arm_point, arms_json["points"])),
        missing={str(arm): str(reason) for arm, reason in arms_json["missing"].items()},
        notes=tuple(map(str, arms_json.get("notes", ()))),
        recommendation=_parse_recommendation(arms_json),
        controls=tuple(arms_json.get("controls", ())),
        best_control=tuple(
            _from_dict(
                BestControl, entry, gain=parse_estimate(entry["gain"]), forgotten=parse_estimate(entry["forgotten"])
            )
            for entry in arms_json.get("best_control", ())
        ),
        gate=_parse_arm_gate(arms_json.get("gate")),
        joint=arms_json.get("joint"),
        intransigence=tuple(
            _from_dict(Intransigence, entry, suites=tuple(entry["suites"]), value=parse_estimate(entry["value"]))
            for entry in arms_json.get("intransigence", ())
        ),
        specs={
            arm: load_optional_json(folder / "arms" / run / "spec.json", unreadable) for arm, run in first_runs.items()
        },
        variants={
            run: _load_variants(folder / "arms" / run, unreadable)
            for by_seed in runs.values()
            for run in by_seed.values()
        },
        unreadable=tuple(unreadable),
        equal_gain=parse_equal_gain(arms_json.get("equal_gain")),
    )


def _load_variants(folder: Path, unreadable: list[str]) -> tuple[WeightVariant, ...]:
    variants_json = load_optional_json(folder / "variants.json", unreadable)
    try:
        return parse_variants(variants_json)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        unreadable.append(f"variants.json cannot be read by this version ({type(error).__name__}: {error})")
        return ()


def _parse_score_change(document: Mapping[str, Any]) -> ScoreChange:
    return _from_dict(
        ScoreChange,
        document,
        before=parse_estimate(document["before"]),
        after=parse_estimate(document["after"]),
        difference=parse_estimate(document["difference"]),
        needed=document.get("needed"),
        after_stages=tuple(None if each is None else parse_estimate(each) for each in document["after_stages"]),
        since_learned=parse_estimate(learned) if (learned := document.get("since_learned")) else None,
        diagnostics=document.get("diagnostics") or {},
    )


def _parse_slice(document: Mapping[str, Any]) -> SliceChange:
    estimates = {key: parse_estimate(document[key]) for key in ("before", "after", "difference")}
    return _from_dict(SliceChange, document, **estimates)


def _parse_flips(document: Mapping[str, Any]) -> SuiteFlips:
    def moved(item: Mapping[str, Any]) -> MovedItem:
        answers = {
            side: _from_dict(ItemAnswer, item[side], value=null_to_nan(item[side]["value"]))
            for side in ("before", "after")
        }
        return _from_dict(MovedItem, item, **answers)

    shares = {key: None if document[key] is None else parse_estimate(document[key]) for key in ("lost", "gained")}
    items = {key: tuple(map(moved, document[key])) for key in ("worse", "better")}
    return _from_dict(SuiteFlips, document, **shares, **items)


def _parse_arm_score(document: Mapping[str, Any]) -> ArmScore:
    estimates = {key: parse_estimate(document[key]) for key in ("before", "after", "change")}
    against = document["against"]
    return _from_dict(
        ArmScore,
        document,
        **estimates,
        against=None if against is None else parse_estimate(against),
        after_spread=_parse_seed_spread(document.get("after_spread")),
    )


def _parse_arm_point(document: Mapping[str, Any]) -> ArmPoint:
    return _from_dict(
        ArmPoint,
        document,
        gain=parse_estimate(document["gain"]),
        forgotten=parse_estimate(document["forgotten"]),
        seeds=tuple(document.get("seeds", ())),
        gain_spread=_parse_seed_spread(document.get("gain_spread")),
        forgotten_spread=_parse_seed_spread(document.get("forgotten_spread")),
    )


def _parse_seed_spread(document: Mapping[str, Any] | None) -> SeedSpread | None:
    if document is None:
        return None
    return SeedSpread(
        tuple(map(null_to_nan, document["values"])),
        null_to_nan(document["sd"]),
        parse_estimate(document["over_seeds"]),
        parse_estimate(document["over_items"]),
    )


def _parse_arm_gate(document: Mapping[str, Any] | None) -> ArmGate | None:
    if document is None:
        return None
    return _from_dict(ArmGate, document, results=tuple(map(parse_gate_result, document["results"])))


def _parse_recommendation(arms_json: Mapping[str, Any]) -> Recommendation:
    if "advised" not in arms_json:  # an earlier version wrote only the sentences
        return Recommendation(str(arms_json["advice"]))
    return _from_dict(Recommendation, arms_json["advised"], alike=tuple(arms_json["advised"]["alike"]))


def _from_dict(dataclass_type: type[T], document: Mapping[str, Any], **overrides: Any) -> T:
    """Build a dataclass from a JSON object; keys that a later version added are ignored."""
    names = [field.name for field in fields(dataclass_type)]  # type: ignore[arg-type]
    return build_dataclass(dataclass_type, {**{key: document[key] for key in names if key in document}, **overrides})
