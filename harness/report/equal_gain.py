"""The forgetting of the arms of an experiment at equal gain, read off the evaluations within their stages.

An arm that learns less also forgets less, so arms are compared where each has gained as much as all of them reach. A
run is a curve: gain and forgetting before training, at each evaluation within a stage, and after each stage. Between
two evaluations both are interpolated linearly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.report.finished_run import FinishedRun, load_evaluations_within_stage, parse_estimate
from harness.report.linearized_scores import MetricsBySuite, linearize_score
from harness.report.paired_difference import ScoredEvaluation, named_score
from harness.report.score_change import Verdict, verdict_of_difference
from harness.spec.arms import is_summary_axis
from harness.statistics.equal_gain import find_crossing, loss_at_crossing
from harness.statistics.intervals import Estimate
from harness.statistics.seeds import Linearized, combine, of_suite, pool_over_seeds
from harness.types import Evaluation
from harness.utils.formatting import format_number


@dataclass(frozen=True)
class EqualGainPoint:
    """The forgetting of one arm at the common gain.

    Attributes:
        arm: Name of the arm.
        forgotten: Its forgetting there; over several seeds the mean, with the interval over items and seeds.
        against: The difference to the baseline there, over the seeds that both have. The intervals of all arms hold
            together (Bonferroni). None for the baseline, and if the baseline has no curve.
        verdict: On `against`: `better` if the arm forgets less.
        where: For each seed the part of the training in which the gain is reached.
    """

    arm: str
    forgotten: Estimate
    against: Estimate | None
    verdict: Verdict | None
    where: tuple[str, ...]


@dataclass(frozen=True)
class EqualGain:
    """Forgetting at equal gain.

    Attributes:
        gain: The gain at which the arms are compared: the largest that every run reaches; None without a comparison.
        limited_by: The run that reaches no more.
        points: The arms with a curve.
        curves: Arm -> one curve for each seed: (gain, forgetting) of each evaluation.
        missing: Arm -> why it has no curve.
        reason: Why there is no comparison; "" if there is one.
    """

    gain: float | None
    limited_by: str
    points: tuple[EqualGainPoint, ...]
    curves: Mapping[str, tuple[tuple[tuple[float, float], ...], ...]]
    missing: Mapping[str, str]
    reason: str = ""

    @property
    def text(self) -> str:
        """The result in one sentence without a full stop."""
        if self.gain is None:
            return f"no comparison at equal gain: {self.reason}"
        least = min(self.points, key=lambda point: point.forgotten.value)
        return (
            f"at equal gain ({format_number(self.gain)}, all that {self.limited_by} reaches) {least.arm!r} forgets "
            f"least: {format_number(least.forgotten.value)}"
        )


@dataclass(frozen=True)
class _Curve:
    """The evaluations of one run, from the base model on: gain, forgetting, and the position of each."""

    gains: tuple[Linearized, ...]
    losses: tuple[Linearized, ...]
    positions: tuple[str, ...]


def compare_at_equal_gain(
    arms: Mapping[str, Mapping[int, FinishedRun]],
    baseline: str,
    methods: Sequence[str],
    axes: tuple[str, str],
    metrics: MetricsBySuite,
) -> EqualGain:
    """Compare the forgetting of arms at the largest gain that all their runs reach.

    Args:
        arms: Arm -> seed -> finished run.
        baseline: The arm with which the others are compared.
        methods: The arms to compare, in order.
        axes: The gain and the forgetting score.
        metrics: Suite -> metric name -> metric.
    """
    gain, forgetting = axes
    if is_summary_axis(forgetting):
        reason = f"{forgetting!r} exists only after the last stage; set arms.forgetting to a score, as suite/score"
        return EqualGain(None, "", (), {}, {}, reason)
    curves: dict[str, dict[int, _Curve]] = {}
    missing: dict[str, str] = {}
    for arm in methods:
        by_seed = {seed: _load_curve(run, gain, forgetting, metrics) for seed, run in arms[arm].items()}
        complete = {seed: curve for seed, curve in by_seed.items() if curve is not None}
        if len(complete) == len(by_seed):
            curves[arm] = complete
        else:
            missing[arm] = _missing_reason(next(iter(arms[arm].values())), gain, forgetting)
    values = {
        arm: tuple(
            tuple((a.value, b.value) for a, b in zip(curve.gains, curve.losses, strict=True)) for curve in each.values()
        )
        for arm, each in curves.items()
    }
    if len(curves) < 2:
        text = next(iter(missing.values()), "fewer than two arms are compared")
        return EqualGain(None, "", (), values, missing, text)
    reached = {
        (arm, seed): max(number.value for number in curve.gains)
        for arm, each in curves.items()
        for seed, curve in each.items()
    }
    arm, seed = min(reached, key=lambda run: reached[run])
    target = reached[arm, seed]
    run_name = f"{arm}, seed {seed}" if len(curves[arm]) > 1 else arm
    if not target > 0:
        return EqualGain(None, run_name, (), values, missing, f"{run_name} never gains in {gain}")
    points = tuple(_points(curves, baseline, target))
    return EqualGain(target, run_name, points, values, missing)


def parse_equal_gain(values: Mapping[str, Any] | None) -> EqualGain | None:
    """Return what `arms.json` has; None if an earlier version wrote it.

    Raises:
        KeyError, TypeError, ValueError: The values are damaged.
    """
    if values is None:
        return None
    return EqualGain(
        gain=None if values["gain"] is None else float(values["gain"]),
        limited_by=str(values["limited_by"]),
        points=tuple(
            EqualGainPoint(
                str(point["arm"]),
                parse_estimate(point["forgotten"]),
                None if point["against"] is None else parse_estimate(point["against"]),
                point["verdict"],
                tuple(map(str, point["where"])),
            )
            for point in values["points"]
        ),
        curves={
            str(arm): tuple(tuple((float(x), float(y)) for x, y in curve) for curve in curves)
            for arm, curves in values["curves"].items()
        },
        missing={str(arm): str(reason) for arm, reason in values["missing"].items()},
        reason=str(values["reason"]),
    )


def _points(curves: Mapping[str, Mapping[int, _Curve]], baseline: str, target: float) -> Iterator[EqualGainPoint]:
    losses: dict[str, dict[int, Linearized]] = {}
    where: dict[str, list[str]] = {}
    for arm, of_arm in curves.items():
        for seed, curve in of_arm.items():
            crossing = find_crossing([number.value for number in curve.gains], target)
            assert crossing is not None, "every run reaches the target, which is above its gain before training"
            losses.setdefault(arm, {})[seed] = loss_at_crossing(curve.gains, curve.losses, crossing)
            first, last = curve.positions[crossing.index], curve.positions[crossing.index + 1]
            where.setdefault(arm, []).append(last if crossing.fraction == 1 else f"{first} to {last}")
    for arm, by_seed in losses.items():
        seeds = [seed for seed in by_seed if seed in losses.get(baseline, {})]
        against = None
        if arm != baseline and seeds:
            gaps = [combine([(-1.0, losses[baseline][seed]), (1.0, by_seed[seed])]) for seed in seeds]
            against = _with_items(pool_over_seeds(gaps, comparisons=len(losses) - 1).estimate, by_seed)
        forgotten = _with_items(pool_over_seeds(list(by_seed.values())).estimate, by_seed)
        verdict = None if against is None else verdict_of_difference(against, False)
        yield EqualGainPoint(arm, forgotten, against, verdict, tuple(where[arm]))


def _with_items(estimate: Estimate, by_seed: Mapping[int, Linearized]) -> Estimate:
    """Return the estimate with the number of items of the forgetting score alone."""
    n = min(number.n for number in by_seed.values())
    return Estimate(estimate.value, estimate.stderr, estimate.low, estimate.high, n, estimate.method)


def _load_curve(run: FinishedRun, gain: str, forgetting: str, metrics: MetricsBySuite) -> _Curve | None:
    """Return the curve of a run; None if no evaluation within a stage has both scores."""
    evaluations: list[tuple[str, tuple[Evaluation, ...]]] = []
    has_mid_stage = False
    for index, stage_evaluations in enumerate(run.evaluations):
        name = run.stages[index]
        if index > 0:
            for step, within in load_evaluations_within_stage(run, index).items():
                if _scored(within, gain) and _scored(within, forgetting):
                    has_mid_stage = True
                    evaluations.append((f"step {step:,} of {name}", within))
        evaluations.append((f"the end of {name}" if index else "the base model", stage_evaluations))
    if not has_mid_stage:
        return None
    numbers: dict[str, list[Linearized]] = {gain: [], forgetting: []}
    positions = []
    # Of a continued run, the base may lack a suite: its change is then relative to the start of that run.
    base = {axis: _first_scored(evaluations, axis) for axis in (gain, forgetting)}
    if not all(base.values()):
        return None
    for position, stage_evaluations in evaluations:
        scored = {axis: _scored(stage_evaluations, axis) for axis in (gain, forgetting)}
        if all(scored.values()):
            positions.append(position)
            for axis, each in scored.items():
                numbers[axis].append(_change(base[axis], each, metrics, loses=axis == forgetting))
    return _Curve(tuple(numbers[gain]), tuple(numbers[forgetting]), tuple(positions))


def _first_scored(evaluations: Sequence[tuple[str, tuple[Evaluation, ...]]], axis: str) -> ScoredEvaluation | None:
    return next((scored for _, stage in evaluations if (scored := _scored(stage, axis)) is not None), None)


def _scored(evaluations: Sequence[Evaluation], axis: str) -> ScoredEvaluation | None:
    suite, _, name = axis.partition("/")
    return named_score(next((each for each in evaluations if each.suite == suite), None), name)


def _change(
    first: ScoredEvaluation | None, last: ScoredEvaluation | None, metrics: MetricsBySuite, *, loses: bool
) -> Linearized:
    """Return by how much a score improved, or got worse if `loses`, with the contribution of every item."""
    assert first is not None
    assert last is not None
    evaluation, score = last
    metric = metrics[evaluation.suite][score.metric]
    ids = [item.id for item in evaluation.items]
    sign = 1.0 if bool(score.higher_is_better) != loses else -1.0
    terms = [(-sign, linearize_score(first, ids, metric)), (sign, linearize_score(last, ids, metric))]
    return of_suite(combine(terms), evaluation.suite)


def _missing_reason(run: FinishedRun, gain: str, forgetting: str) -> str:
    """Return why a run has no curve, with the keys to set."""
    suites = list(dict.fromkeys(axis.partition("/")[0] for axis in (gain, forgetting)))
    names = ", ".join(f'"{suite}"' for suite in suites)
    train = run.spec.get("train", {})
    if train.get("evaluate_steps") is None and train.get("evaluate_epochs") is None:
        return f'no evaluations within its stages; set "train.evaluate_steps" and "train.evaluate_suites": [{names}]'
    return f'its evaluations within the stages lack {gain} or {forgetting}; set "train.evaluate_suites": [{names}]'
