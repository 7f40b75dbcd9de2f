"""Evaluations within the stages of a run, as curves: where each score went between the ends of its stages.

Knows what a run's folder says of them (`run_files.RunFiles`), and where early stopping ended a stage.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from harness.report.html import page
from harness.report.html.plots.curves import Curve, StepMark, plot_curves
from harness.report.html.plots.svg_canvas import Plot
from harness.report.html.run_files import MidStageEvaluation, RunFiles
from harness.report.run_report import ScoreChange


def build_mid_stage_plots(run: RunFiles) -> Iterator[Plot]:
    """One plot a score with a curve a suite, and one of the combined score by which a stage may end early.

    A curve goes through every evaluation within a stage, and through those before and after it, which are the report's.
    """
    if not any(run.mid_stage_evaluations.values()):
        return
    stages = [name for name in run.stages[1:] if run.mid_stage_evaluations[name] or run.step_logs[name]]
    lengths = [_last_step(run, name) for name in stages]
    marks = [
        mark for number, name in enumerate(stages) for mark in _best_step_marks(number, run.mid_stage_evaluations[name])
    ]
    keys = dict.fromkeys(key for name in stages for look in run.mid_stage_evaluations[name] for key in look.scores)
    suites = list(dict.fromkeys(key.partition("/")[0] for key in keys))
    known = {f"{one.suite}/{one.name}": one for one in run.changes}
    names: list[str] = []
    for score in dict.fromkeys(key.partition("/")[2] for key in keys):
        own = [suite for suite in suites if f"{suite}/{score}" in keys]
        found = [_score_curve(run, stages, suite, score, known, suites.index(suite)) for suite in own]
        if not _has_finite_value(found):
            continue
        names.append(page.unique_slug(f"during-{score}", names))
        change = known.get(f"{own[0]}/{score}")
        title = score if len(own) > 1 else f"{own[0]}/{score}"
        yield plot_curves(
            found,
            stages,
            names[-1],
            f"{title} on the way",
            unit=_direction_text(change),
            marks=marks,
            stage_steps=lengths,
        )
    found = [_combined_score_curve(run, stages)]
    if _has_finite_value(found):
        name, title = page.unique_slug("during-combined", names), "Combined score of early stopping"
        yield plot_curves(found, stages, name, title, unit="relative improvement", marks=marks, stage_steps=lengths)


def early_stopping_sentences(run: RunFiles) -> list[str]:
    """What early stopping made of each stage that had it, in a sentence."""
    made = []
    for name, looks in run.mid_stage_evaluations.items():
        best = _best_evaluation(looks)
        if best is None:
            continue
        since = sum(one.step > best.step for one in looks)
        told = f"{name}: best at update {best.step:,.0f}"
        if looks[-1].should_stop:
            count = "one evaluation" if since == 1 else f"{since:,} evaluations"
            told += f"; ended early after update {looks[-1].step:,.0f}, {count} without improvement"
        if best.weights_saved and since:
            told += "; the weights of the best were put back, and what came after it is shaded"
        made.append(f"{told}.")
    return made


def _best_evaluation(evaluations: Sequence[MidStageEvaluation]) -> MidStageEvaluation | None:
    """The best evaluation of a stage; None where nothing could end it early."""
    return next((one for one in reversed(evaluations) if one.is_best), None)


def _best_step_marks(stage_index: int, evaluations: Sequence[MidStageEvaluation]) -> Iterator[StepMark]:
    best = _best_evaluation(evaluations)
    if best is not None:
        last = evaluations[-1].step
        yield StepMark(
            stage_index, best.step, f"best: {best.step:,.0f}", last if best.weights_saved and last > best.step else None
        )


def _score_curve(
    run: RunFiles, stages: Sequence[str], suite: str, score: str, changes_by_score: dict[str, ScoreChange], series: int
) -> Curve:
    key = f"{suite}/{score}"
    change = changes_by_score.get(key)
    after = () if change is None else change.after_stages
    ends = {name: math.nan if one is None else one.value for name, one in zip(run.stages, after, strict=False)}
    found = []
    for name in stages:
        looks = run.mid_stage_evaluations[name]
        points = [(one.step, one.scores[key]) for one in looks if key in one.scores]
        before = ends.get(run.stages[run.stages.index(name) - 1], math.nan)
        if math.isfinite(before):
            points.insert(0, (0.0, before))
        last, best = _last_step(run, name), _best_evaluation(looks)
        # Weights that were put back were measured at their own update, where the curve has been already.
        if (
            not (best and best.weights_saved)
            and math.isfinite(ends.get(name, math.nan))
            and points
            and points[-1][0] < last
        ):
            points.append((last, ends[name]))
        found.append(([at for at, _ in points], [value for _, value in points]))
    return Curve(suite, tuple(found), noisy=False, mark_points=True, series_index=series)


def _combined_score_curve(run: RunFiles, stages: Sequence[str]) -> Curve:
    found = []
    for name in stages:
        points = [(one.step, one.combined) for one in run.mid_stage_evaluations[name] if one.combined is not None]
        if points and name == run.stages[1]:
            points.insert(0, (0.0, 0.0))  # it is the improvement over where the run begins
        found.append(([at for at, _ in points], [value for _, value in points]))
    return Curve("combined", tuple(found), noisy=False, mark_points=True)


def _last_step(run: RunFiles, stage: str) -> float:
    """The updates of a stage."""
    logged = [one["step"] for one in run.step_logs[stage]] + [one.step for one in run.mid_stage_evaluations[stage]]
    return max(logged, default=0.0)


def _has_finite_value(curves: Sequence[Curve]) -> bool:
    return any(math.isfinite(one) for curve in curves for _, values in curve.stages for one in values)


def _direction_text(change: ScoreChange | None) -> str:
    if change is None or change.higher_is_better is None:
        return ""
    return "higher is better" if change.higher_is_better else "lower is better"
