"""Compare the arms of an experiment: gain and forgetting of each, relative to the base model and to the baseline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.report.arm_experiment import ArmExperiment, MetricsBySuite
from harness.report.arm_gate import ArmGate, evaluate_arm_gate
from harness.report.arm_score import ArmScore
from harness.report.best_control import BestControl, compare_with_best_control
from harness.report.equal_gain import EqualGain, compare_at_equal_gain
from harness.report.finished_run import FinishedRun
from harness.report.intransigence import Intransigence, compute_intransigence
from harness.report.not_comparable import measured_alike, not_compared_notes
from harness.report.recommendation import ArmPoint, Axes, Recommendation, recommend
from harness.report.spec_diff import find_swept_parameter
from harness.report.weight_variants import WeightVariant
from harness.utils.json_files import json_safe, write_json
from harness.utils.shell_commands import resume_command

__all__ = ["ArmComparison", "ArmPoint", "ArmScore", "ComparisonSettings", "Recommendation", "compare_arms", "recommend"]

NOT_FINISHED = "the arm is not finished"
"""Why a run that did not fail has no result."""


@dataclass(frozen=True)
class ComparisonSettings:
    """How arms are compared: the keys of the spec's `arms`, and the spec's gate.

    Attributes:
        baseline: The arm with which all are compared; None: the first arm that has a result.
        controls: The control arms, the baseline among them. With several, every other arm is compared with the best.
        gain_score: `suite/score`; None: see `harness.spec.primary_score.default_axes`.
        forgetting_score: `suite/score`, or `summary:score` for a summary of each run's stage × suite matrix
            (`FORGETTING_SIGN`). None: see `default_axes`.
        joint: The arm that trained on all tasks together, if any.
        gain_margin: See `Axes`; None: the default of the score's metric.
        forgetting_margin: See `Axes`; None: the default of the score's metric.
        gate_conditions: The spec's gate.
        gate_arm: The arm that the gate judges; None: the recommended one.
    """

    baseline: str | None = None
    controls: tuple[str, ...] = ()
    gain_score: str | None = None
    forgetting_score: str | None = None
    joint: str | None = None
    gain_margin: float | None = None
    forgetting_margin: float | None = None
    gate_conditions: Sequence[Mapping[str, Any]] = ()
    gate_arm: str | None = None


@dataclass(frozen=True)
class ArmComparison:
    """The comparison of all arms of an experiment.

    Attributes:
        name: Name of the experiment.
        folder: Its folder.
        baseline: The arm with which all are compared.
        arms: Arm -> seed -> folder of the run.
        scores: Every score of every arm.
        gain: The gain score, `suite/score`.
        forgetting: The forgetting score, `suite/score` or `summary:score`.
        gain_margin: Margin of the gain; see `Axes`.
        forgetting_margin: Margin of the forgetting.
        points: Gain and forgetting of every arm.
        missing: Run without a result -> reason.
        advised: The recommendation.
        controls: The control arms; only the baseline if the spec names no others.
        best_control: Every other arm against the best control; empty without several controls.
        gate: The result of the spec's gate; None without one.
        joint: The arm on all tasks together, which is a reference and not a method.
        intransigence: Of every other arm relative to the joint arm.
        notes: What is not compared, with the reasons.
        equal_gain: Forgetting where every arm has gained as much as all of them reach.
    """

    name: str
    folder: str
    baseline: str
    arms: Mapping[str, Mapping[int, str]]
    scores: tuple[ArmScore, ...]
    gain: str
    forgetting: str
    gain_margin: float
    forgetting_margin: float
    points: tuple[ArmPoint, ...]
    missing: Mapping[str, str]
    advised: Recommendation
    controls: tuple[str, ...] = ()
    best_control: tuple[BestControl, ...] = ()
    gate: ArmGate | None = None
    joint: str | None = None
    intransigence: tuple[Intransigence, ...] = ()
    notes: tuple[str, ...] = ()
    equal_gain: EqualGain | None = None

    @property
    def recommendation_text(self) -> str:
        """The recommendation in sentences."""
        return self.advised.full_text

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as plain data for JSON."""
        gate = None if self.gate is None else self.gate.to_json()
        document: dict[str, Any] = json_safe(asdict(self) | {"gate": gate, "advice": self.recommendation_text})
        return document

    def write(self, folder: Path) -> None:
        """Write `arms.json` into the experiment's folder."""
        write_json(folder / "arms.json", self.to_json(), indent=2)


def compare_arms(
    name: str,
    folder: Path,
    arms: Mapping[str, FinishedRun | Mapping[int, FinishedRun]],
    metrics: MetricsBySuite,
    settings: ComparisonSettings = ComparisonSettings(),
    *,
    seed: int,
    missing: Mapping[str, str] | None = None,
) -> ArmComparison:
    """Compare the arms over the items that all of them have, seed by seed.

    Args:
        name: Name of the experiment.
        folder: Its folder.
        arms: Name -> finished run, or seed -> finished run, in the order of the spec.
        metrics: Suite -> metric name -> metric.
        settings: How the arms are compared.
        seed: Seed of the bootstrap.
        missing: Run without a result -> reason.

    Raises:
        HarnessError: No arm has a result, or no arm has the gain or forgetting score.
    """
    runs = {arm: _runs_by_seed(each) for arm, each in arms.items() if not isinstance(each, Mapping) or each}
    if not runs:
        raise HarnessError(str(folder), "no arm has a result", f"resume it: {resume_command(folder)}")
    baseline = settings.baseline if settings.baseline in runs else next(iter(runs))
    assert baseline is not None
    experiment = ArmExperiment(runs, baseline, metrics, seed)
    gain, forgetting = experiment.select_axes(settings.gain_score, settings.forgetting_score)
    axes = Axes(
        gain,
        forgetting,
        settings.gain_margin or experiment.default_margin(gain),
        settings.forgetting_margin or experiment.default_margin(forgetting),
    )
    scores = experiment.compare_all_scores()
    excluded = _excluded_arms(experiment, axes)
    methods = [arm for arm in runs if arm != settings.joint and arm not in excluded]
    points = experiment.arm_points(gain, forgetting, methods, settings.joint)

    recommendation = recommend(
        [point for point in points if point.arm in methods],
        axes,
        gain_difference=lambda arm, other: experiment.gain_difference(arm, other, gain),
        forgetting_difference=lambda arm, other: experiment.forgetting_difference(arm, other, forgetting),
        swept_parameter=find_swept_parameter({arm: experiment.first_run(arm).spec for arm in methods}),
        note="; ".join(_recommendation_notes(settings.baseline, baseline, excluded)),
    )
    has_joint = settings.joint is not None and settings.joint in runs
    controls = tuple(arm for arm in settings.controls if arm in runs) or (baseline,)
    return ArmComparison(
        name=name,
        folder=str(folder),
        baseline=baseline,
        arms={arm: {number: str(run.folder) for number, run in runs[arm].items()} for arm in runs},
        scores=scores,
        gain=gain,
        forgetting=forgetting,
        gain_margin=axes.gain_margin,
        forgetting_margin=axes.forgetting_margin,
        points=points,
        missing=dict(missing or {}),
        advised=recommendation,
        controls=controls,
        best_control=compare_with_best_control(
            experiment, [point for point in points if point.arm in methods], controls, axes
        ),
        gate=evaluate_arm_gate(
            experiment, settings.gate_conditions, settings.gate_arm, recommendation.arm, candidates=len(methods)
        ),
        joint=settings.joint,
        intransigence=compute_intransigence(runs, str(settings.joint), metrics) if has_joint else (),
        notes=tuple(comparison_notes(experiment)),
        equal_gain=compare_at_equal_gain(runs, baseline, methods, (gain, forgetting), metrics),
    )


def variant_point(variant: WeightVariant, name: str, gain_score: str, forgetting_score: str) -> ArmPoint | None:
    """Return a weight variant as a point; None if it was not measured by these scores."""
    gain, forgotten = variant.improvement_on(gain_score), variant.degradation_on(forgetting_score)
    return None if gain is None or forgotten is None else ArmPoint(name, gain, forgotten, None, efficient=False)


def _runs_by_seed(runs: FinishedRun | Mapping[int, FinishedRun]) -> Mapping[int, FinishedRun]:
    return runs if isinstance(runs, Mapping) else {int(runs.spec.get("seed", 0)): runs}


def _excluded_arms(experiment: ArmExperiment, axes: Axes) -> dict[str, str]:
    """Return arm -> why it is not compared by gain and forgetting."""
    excluded = {}
    for arm in experiment.arms:
        seeds = experiment.shared_seeds(arm, experiment.baseline)
        if not seeds:
            excluded[arm] = f"has no seed in common with {experiment.baseline!r}"
            continue
        own, baseline = (experiment.arms[each][seeds[0]] for each in (arm, experiment.baseline))
        if not all(measured_alike(own, baseline, axis) for axis in (axes.gain, axes.forgetting)):
            excluded[arm] = f"uses other metric options than {experiment.baseline!r} for the compared scores"
    return excluded


def _recommendation_notes(baseline: str | None, used_baseline: str, excluded: Mapping[str, str]) -> Iterator[str]:
    if baseline not in (None, used_baseline):
        yield f"the baseline {baseline!r} has no result yet"
    for arm, reason in excluded.items():
        yield f"{arm!r} {reason}: excluded"


def comparison_notes(experiment: ArmExperiment) -> Iterator[str]:
    """Yield the scores that are not compared, and the arms that lack seeds."""
    all_seeds = dict.fromkeys(seed for runs in experiment.arms.values() for seed in runs)
    for arm, runs in experiment.arms.items():
        if len(runs) < len(all_seeds):
            seeds = ", ".join(map(str, runs))
            yield f"{arm} has a result for seed {seeds} only; arms are compared over the seeds that both have"
    notes: dict[str, None] = {}
    for seed in all_seeds:
        runs_of_seed = {arm: runs[seed] for arm, runs in experiment.arms.items() if seed in runs}
        if experiment.baseline in runs_of_seed:
            notes |= dict.fromkeys(not_compared_notes(runs_of_seed, experiment.baseline))
    yield from notes
