"""Evaluation within a stage, and early stopping.

Implements the settings `evaluate_steps`, `evaluate_epochs`, `evaluate_suites` and `early_stopping`. Each evaluation is
a line of the stage's `evaluations.jsonl`, from which a resumed stage restores its state.

Mitigations may change the weights after an evaluation (`Mitigation.on_evaluation`). Scores, early stopping and best
weights are those before the change; the line is written after it.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from harness.events import BestWeightsRestored, MidStageEvaluated
from harness.interfaces.mitigation import Mitigation
from harness.runner import resume
from harness.runner.context import RunContext
from harness.runner.evaluate_stages import StageEvaluator
from harness.runner.folder import load_stage_snapshot, save_stage_snapshot
from harness.runner.staged_model import StagedModel
from harness.spec import preflight
from harness.spec.primary_score import primary_margin, primary_score
from harness.training.checkpoint import complete_checkpoints
from harness.training.model_state import restored_training_state
from harness.training.stage_schedule import evaluation_steps
from harness.types import Evaluation, Stage, StageDataset, SuiteScores
from harness.utils import json_files


def combined_score(
    scores: Mapping[str, float],
    baseline: Mapping[str, float],
    higher_is_better: Mapping[str, bool],
    weights: Mapping[str, float],
) -> float:
    """Return the weighted sum of relative improvements over `baseline`.

    combined = sum of weight * improvement / |baseline|. For a baseline of 0 the improvement is not divided.

    Args:
        scores: `suite/score` -> value now.
        baseline: `suite/score` -> value before the first step.
        higher_is_better: `suite/score` -> whether higher is better.
        weights: `suite/score` -> weight. Only these scores count.

    Returns:
        The sum, positive for an improvement; NaN if a score is NaN.
    """
    total = 0.0
    for name, weight in weights.items():
        gain = scores[name] - baseline[name] if higher_is_better[name] else baseline[name] - scores[name]
        total += weight * gain / (abs(baseline[name]) or 1.0)
    return total


class EarlyStopping:
    """The stopping rule: patience since the best combined score.

    Attributes:
        patience: Evaluations without improvement after which the stage stops.
        min_delta: Smallest increase of the combined score that counts as an improvement.
        best_step: Step of the best evaluation; None before the first one.
        best_value: Its combined score.
        evaluations_since_best: Evaluations since then.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Start without evaluations. settings: the spec's `early_stopping`."""
        self.patience, self.min_delta = int(settings["patience"]), float(settings["min_delta"])
        self.best_step: int | None = None
        self.best_value = -math.inf
        self.evaluations_since_best = 0

    def update(self, step: int, value: float) -> bool:
        """Record the combined score after a step, and return whether it is the best so far; NaN never is."""
        if math.isfinite(value) and (self.best_step is None or value > self.best_value + self.min_delta):
            self.best_step, self.best_value, self.evaluations_since_best = step, value, 0
            return True
        self.evaluations_since_best += 1
        return False

    @property
    def should_stop(self) -> bool:
        """Whether the patience is used up."""
        return self.evaluations_since_best >= self.patience


def due_steps(data: StageDataset, processes: int) -> frozenset[int]:
    """Return the steps after which the model is evaluated. The last step counts if it may be restored as the best."""
    last = {data.count_steps(processes)} if restores_best(data.stage) else set()
    return frozenset({*evaluation_steps(data, processes), *last})


def restores_best(stage: Stage) -> bool:
    """Return whether the stage ends with its best weights."""
    settings = stage.train["early_stopping"]
    return settings is not None and bool(settings["restore_best"])


class EarlyStopper:
    """Evaluates one stage while it trains, and decides when it stops."""

    def __init__(
        self,
        context: RunContext,
        evaluator: StageEvaluator,
        staged_model: StagedModel,
        stage_index: int,
        resumed_step: int,
    ) -> None:
        """Restore the state of a resumed stage from its `evaluations.jsonl`.

        Args:
            context: The run.
            evaluator: Evaluates the model; holds the evaluations before the first step.
            staged_model: The model in training.
            stage_index: The stage, from 1.
            resumed_step: The step of the checkpoint from which the stage continues, or 0.
        """
        self.context, self.evaluator, self.staged_model = context, evaluator, staged_model
        self.stage_index, self.resumed_step = stage_index, resumed_step
        self.stage = context.stage_data(stage_index).stage
        self.planned_steps = context.planned_steps(stage_index)
        self.due_steps = due_steps(context.stage_data(stage_index), context.processes.world_size)
        self.suites, self.metrics = preflight.mid_stage_suites(
            self.stage, context.plan.suites, context.prepared.metrics
        )
        self.settings: Mapping[str, Any] | None = self.stage.train["early_stopping"]
        start_evaluations = evaluator.evaluations[0]
        self.start_scores = _scores_by_name(start_evaluations)
        self.higher_is_better = {
            f"{evaluation.suite}/{score.name}": bool(score.higher_is_better)
            for evaluation in start_evaluations
            for score in evaluation.scores
        }
        self.early_stopping = None if self.settings is None else EarlyStopping(self.settings)
        self._unlogged_event: MidStageEvaluated | None = None
        self._evaluated_steps = set[int]()  # a signal can end training between a checkpoint's step and its evaluation
        self._restore_state()

    def evaluate(self, step: int) -> Mapping[str, SuiteScores] | None:
        """Evaluate the model if it is due after this step, and update early stopping.

        Returns:
            Suite -> its scores, for `Mitigation.on_evaluation`, after which `log_evaluation` is called. None if no
            evaluation is due.
        """
        return self._evaluate_step(step) if self.is_due(step) else None

    def log_evaluation(self, mitigation_stats: Mapping[str, float]) -> None:
        """Write and emit the evaluation that was made last.

        Args:
            mitigation_stats: What `on_evaluation` of the mitigations returned, see `MidStageEvaluated.mitigations`.
        """
        assert self._unlogged_event is not None, "an evaluation was made"
        event = replace(self._unlogged_event, mitigations=mitigation_stats)
        entry = {name: value for name, value in asdict(event).items() if name != "stage_index"}
        self.context.folder.append_json_line(f"stages/{self.stage.name}/evaluations.jsonl", entry)
        self.context.registry.emit(event)

    @property
    def should_stop(self) -> bool:
        """Whether the stage stops after the last evaluation."""
        return self.early_stopping is not None and self.early_stopping.should_stop

    def is_due(self, step: int) -> bool:
        """Return whether the model is evaluated after this step; a resumed stage may have done so."""
        return step not in self._evaluated_steps and step in self.due_steps

    def restore_best_weights(self, model: Any, trained_steps: int) -> Mapping[str, Mapping[str, Any]]:
        """Restore the best weights, if the stage asks for it and they are not the current ones.

        Args:
            model: The model; its weights are changed in place.
            trained_steps: Steps that were trained.

        Returns:
            The states of the mitigations at the best step; empty if nothing was restored.
        """
        best_step = None if self.early_stopping is None else self.early_stopping.best_step
        if not restores_best(self.stage) or best_step is None:
            return {}
        if best_step == trained_steps and not self._mitigations_react():
            return {}
        states = load_stage_snapshot(self._best_folder / str(best_step), model)
        self.context.registry.emit(BestWeightsRestored(stage_index=self.stage_index, step=best_step, of=trained_steps))
        return states

    def delete_best_weights(self) -> None:
        """Delete the saved best weights, once the snapshot of the stage is saved."""
        shutil.rmtree(self._best_folder, ignore_errors=True)

    def _mitigations_react(self) -> bool:
        """Return whether a mitigation may change weights after they were evaluated."""
        mitigations = self.staged_model.active_mitigations.values()
        return any(type(mitigation).on_evaluation is not Mitigation.on_evaluation for mitigation in mitigations)

    @property
    def _stage_folder(self) -> Path:
        return self.context.folder.stage_folder(self.stage.name)

    @property
    def _best_folder(self) -> Path:
        return self._stage_folder / "best"

    def _evaluate_step(self, step: int) -> dict[str, SuiteScores]:
        with restored_training_state(self.staged_model.model):  # as `on_evaluation` finds it
            evaluations = self.evaluator.evaluate(
                self.staged_model, self.stage_index, None, suites=self.suites, metrics=self.metrics
            )
        scores = _scores_by_name(evaluations)
        combined, is_best = None, False
        if self.settings is not None and self.early_stopping is not None:
            combined = combined_score(scores, self.start_scores, self.higher_is_better, self.settings["scores"])
            is_best = self.early_stopping.update(step, combined)
        saves = is_best and restores_best(self.stage)
        if saves:
            save_stage_snapshot(
                self._best_folder / str(step), self.staged_model.model, self.staged_model.mitigation_states()
            )
            self._prune_best_weights(step)
        stops = self.early_stopping is not None and self.early_stopping.should_stop and step < self.planned_steps
        self._unlogged_event = MidStageEvaluated(
            stage_index=self.stage_index,
            step=step,
            scores=scores,
            combined=combined,
            best=is_best,
            kept=saves,
            over=stops,
        )
        items = {"step": step, "suites": json_files.evaluations_as_dict(evaluations)}
        self.context.folder.write_json(f"stages/{self.stage.name}/evaluations/{step}.json", items, indent=None)
        return {evaluation.suite: self._compare_with_start(evaluation) for evaluation in evaluations}

    def _compare_with_start(self, evaluation: Evaluation) -> SuiteScores:
        """Return the scores of a suite now and in the evaluation before the stage."""
        suite = next(suite for suite in self.context.plan.suites if suite.name == evaluation.suite)
        evaluations_before = self.evaluator.evaluations[self.stage_index - 1]
        before = next(other for other in evaluations_before if other.suite == suite.name)
        now = {score.name: score.value for score in evaluation.scores}
        start = {score.name: score.value for score in before.scores if score.name in now}
        primary: str | None = None
        margin: float | None = None
        chosen = primary_score(suite, self.context.prepared.metrics[suite.name])
        if chosen is not None and chosen[1] in now:
            metric, primary = chosen
            margin = primary_margin(suite, metric, primary, start[primary])
        return SuiteScores(
            role=suite.role,
            primary=primary,
            start=start,
            now=now,
            higher_is_better={score.name: score.higher_is_better for score in evaluation.scores},
            margin=margin,
        )

    def _prune_best_weights(self, best_step: int) -> None:
        saved_steps = {int(path.name) for path in self._best_folder.iterdir() if path.name.isdecimal()}
        checkpoints = complete_checkpoints(self._stage_folder / "checkpoints")
        for step in saved_steps - resume.best_weights_to_keep(saved_steps, best_step, checkpoints):
            shutil.rmtree(self._best_folder / str(step))

    def _restore_state(self) -> None:
        for entry in resume.load_evaluations_until(self._stage_folder, self.resumed_step):
            self._evaluated_steps.add(entry["step"])
            if self.early_stopping is not None:
                # JSON has null where the combined score was not finite.
                combined = math.nan if entry["combined"] is None else entry["combined"]
                self.early_stopping.update(entry["step"], combined)
        resume.discard_best_weights_after(self._best_folder, self.resumed_step)


def _scores_by_name(evaluations: Sequence[Evaluation]) -> dict[str, float]:
    """Return `suite/score` -> value."""
    return {
        f"{evaluation.suite}/{score.name}": score.value for evaluation in evaluations for score in evaluation.scores
    }
