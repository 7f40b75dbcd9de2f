"""Plots of the evaluations within the stages of a run, and sentences about early stopping."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from harness.report.html import page
from harness.report.html.plots.curves import Curve, StepMark, has_finite_value, plot_curves
from harness.report.html.plots.svg_canvas import Plot
from harness.report.html.run_files import MidStageEvaluation, RunFiles
from harness.report.score_change import ScoreChange


def build_mid_stage_plots(run: RunFiles) -> Iterator[Plot]:
    """Yield a plot per score with a curve per suite, one of the combined score, and one per number of a mitigation.

    A curve of a score passes through every evaluation within a stage, and the report's values before and after it.
    """
    if not any(run.mid_stage_evaluations.values()):
        return
    stages = [name for name in run.stages[1:] if run.mid_stage_evaluations[name] or run.step_logs[name]]
    stage_steps = [_last_step(run, name) for name in stages]
    marks = [
        mark for index, name in enumerate(stages) for mark in _best_step_marks(index, run.mid_stage_evaluations[name])
    ]
    keys = dict.fromkeys(
        key for name in stages for evaluation in run.mid_stage_evaluations[name] for key in evaluation.scores
    )
    all_suites = list(dict.fromkeys(key.partition("/")[0] for key in keys))
    changes_by_score = {f"{change.suite}/{change.name}": change for change in run.changes}
    names: list[str] = []
    for score in dict.fromkeys(key.partition("/")[2] for key in keys):
        suites = [suite for suite in all_suites if f"{suite}/{score}" in keys]
        curves = [
            _score_curve(run, stages, f"{suite}/{score}", changes_by_score, all_suites.index(suite)) for suite in suites
        ]
        if not has_finite_value(curves):
            continue
        names.append(page.unique_slug(f"during-{score}", names))
        label = score if len(suites) > 1 else f"{suites[0]}/{score}"
        yield plot_curves(
            curves,
            stages,
            names[-1],
            f"{label} during training",
            unit=_direction_text(changes_by_score.get(f"{suites[0]}/{score}")),
            marks=marks,
            stage_steps=stage_steps,
        )
    combined = [_combined_score_curve(run, stages)]
    if has_finite_value(combined):
        yield plot_curves(
            combined,
            stages,
            page.unique_slug("during-combined", names),
            "Combined score of early stopping",
            unit="relative improvement",
            marks=marks,
            stage_steps=stage_steps,
        )
    for key in dict.fromkeys(
        key for name in stages for evaluation in run.mid_stage_evaluations[name] for key in evaluation.mitigations
    ):
        names.append(page.unique_slug(f"during-{key}", names))
        yield plot_curves(
            [_mitigation_curve(run, stages, key)],
            stages,
            names[-1],
            f"{key} during training",
            unit="",
            marks=marks,
            stage_steps=stage_steps,
        )


def early_stopping_sentences(run: RunFiles) -> list[str]:
    """Describe the effect of early stopping on each stage that used it, one sentence per stage."""
    sentences = []
    for name, evaluations in run.mid_stage_evaluations.items():
        best = _best_evaluation(evaluations)
        if best is None:
            continue
        later = sum(evaluation.step > best.step for evaluation in evaluations)
        text = f"{name}: best at step {best.step:,.0f}"
        if evaluations[-1].should_stop:
            count = "one evaluation" if later == 1 else f"{later:,} evaluations"
            text += f"; stopped early after step {evaluations[-1].step:,.0f}, {count} without improvement"
        if best.weights_saved and later:
            text += "; the best weights were restored, and the discarded steps are shaded"
        sentences.append(f"{text}.")
    return sentences


def _best_evaluation(evaluations: Sequence[MidStageEvaluation]) -> MidStageEvaluation | None:
    """Return the best evaluation of a stage; None without early stopping."""
    return next((evaluation for evaluation in reversed(evaluations) if evaluation.is_best), None)


def _best_step_marks(stage_index: int, evaluations: Sequence[MidStageEvaluation]) -> Iterator[StepMark]:
    best = _best_evaluation(evaluations)
    if best is not None:
        last_step = evaluations[-1].step
        shaded_until = last_step if best.weights_saved and last_step > best.step else None
        yield StepMark(stage_index, best.step, f"best: {best.step:,.0f}", shaded_until)


def _score_curve(
    run: RunFiles, stages: Sequence[str], key: str, changes_by_score: dict[str, ScoreChange], series_index: int
) -> Curve:
    """Build the curve of one score. key: `suite/score`."""
    change = changes_by_score.get(key)
    after_stages = () if change is None else change.after_stages
    value_after = {
        name: math.nan if estimate is None else estimate.value
        for name, estimate in zip(run.stages, after_stages, strict=False)
    }
    segments = []
    for name in stages:
        evaluations = run.mid_stage_evaluations[name]
        points = [(evaluation.step, evaluation.scores[key]) for evaluation in evaluations if key in evaluation.scores]
        previous_stage = run.stages[run.stages.index(name) - 1]
        value_before = value_after.get(previous_stage, math.nan)
        if math.isfinite(value_before):
            points.insert(0, (0.0, value_before))
        best, last_step = _best_evaluation(evaluations), _last_step(run, name)
        final_value = value_after.get(name, math.nan)
        # Restored weights were evaluated at their own step, which the curve has already.
        restored = best is not None and best.weights_saved
        if not restored and math.isfinite(final_value) and points and points[-1][0] < last_step:
            points.append((last_step, final_value))
        segments.append(([step for step, _ in points], [value for _, value in points]))
    suite = key.partition("/")[0]
    return Curve(suite, tuple(segments), noisy=False, mark_points=True, series_index=series_index)


def _combined_score_curve(run: RunFiles, stages: Sequence[str]) -> Curve:
    segments = []
    for name in stages:
        points = [
            (evaluation.step, evaluation.combined)
            for evaluation in run.mid_stage_evaluations[name]
            if evaluation.combined is not None
        ]
        if points and name == run.own_stages[0]:
            points.insert(0, (0.0, 0.0))  # the combined score is the improvement since the start of the run
        segments.append(([step for step, _ in points], [value for _, value in points]))
    return Curve("combined", tuple(segments), noisy=False, mark_points=True)


def _mitigation_curve(run: RunFiles, stages: Sequence[str], key: str) -> Curve:
    """Build the curve of what a mitigation measured or changed. key: `<mitigation>/<key>`."""
    segments = []
    for name in stages:
        points = [
            (evaluation.step, evaluation.mitigations[key])
            for evaluation in run.mid_stage_evaluations[name]
            if key in evaluation.mitigations
        ]
        segments.append(([step for step, _ in points], [value for _, value in points]))
    return Curve(key, tuple(segments), noisy=False, mark_points=True, from_zero=True)


def _last_step(run: RunFiles, stage: str) -> float:
    """Return the number of steps of a stage."""
    logged = [entry["step"] for entry in run.step_logs[stage]]
    evaluated = [evaluation.step for evaluation in run.mid_stage_evaluations[stage]]
    return max([*logged, *evaluated], default=0.0)


def _direction_text(change: ScoreChange | None) -> str:
    if change is None or change.higher_is_better is None:
        return ""
    return "higher is better" if change.higher_is_better else "lower is better"
