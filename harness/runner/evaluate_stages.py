"""The evaluations of a run: before training, after each stage, within a stage, and of weight variants.

Runs the suites and writes scores.json and variants.json. Trains nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from harness.distributed.processes import SINGLE_PROCESS, Processes
from harness.evaluation import evaluate
from harness.evaluation.batch_support import BatchSupport
from harness.evaluation.context import ModelToEvaluate
from harness.evaluation.shared_measurement import MeasurementRequest
from harness.events import SuitesEvaluated, VariantEvaluated, WarningRaised
from harness.interfaces.metric import Metric
from harness.model import load, save
from harness.model.precision import match_dtypes
from harness.report import weight_variants
from harness.report.finished_run import PreviousRun
from harness.runner import continue_run, resume
from harness.runner.batch_support import probe_and_warn
from harness.runner.context import RunContext
from harness.runner.staged_model import StagedModel
from harness.training.model_state import restored_training_state
from harness.types import Evaluation, Suite, no_progress
from harness.utils import json_files
from harness.utils.phase_clock import PhaseClock


class WeightsToEvaluate(Protocol):
    """A model with its current weights, such as a `StagedModel`."""

    @property
    def model(self) -> Any:
        """The model."""

    @property
    def merged(self) -> bool:
        """Whether the weights below an adapter, if there is one, are not those of the base model."""


class StageEvaluator:
    """The evaluations of one run.

    Attributes:
        evaluations: The evaluations before the first stage and after each finished stage, in order.
        previous_run: Scores of the earlier run whose model is trained further; None if there are none.
        clock: Measures the phases of the run, evaluations among them.
    """

    def __init__(self, context: RunContext) -> None:
        """Start without evaluations; of a resumed run, remember which stages `scores.json` holds."""
        self.context = context
        self.evaluations: list[tuple[Evaluation, ...]] = []
        self.previous_run: PreviousRun | None = None
        self._last_scored_stage = resume.last_scored_stage(context.folder) if context.resuming else -1
        self._variants: list[dict[str, Any]] = []
        self._base_model: Any = None
        self._batch_support: BatchSupport | None = None
        self.clock = PhaseClock()

    def evaluate_stage(self, staged_model: WeightsToEvaluate, stage_index: int) -> None:
        """Evaluate the model after a stage and write scores.json. stage_index: 0 before the first stage."""
        evaluations = self.evaluate(staged_model, stage_index, "predictions")
        self.evaluations.append(evaluations)
        self._note_cached(evaluations)
        self.context.registry.emit(SuitesEvaluated(stage_index=stage_index, evaluations=evaluations))
        if stage_index == 0 and self.context.prepared.location.kind == "run":
            run_folder = Path(self.context.prepared.location.path).parent
            self.previous_run, warnings = continue_run.carry_over_scores(
                run_folder, evaluations, self.context.spec.document["output"]
            )
            for text in warnings:
                self.context.registry.emit(WarningRaised(text=text))
        carried_stages = 0 if self.previous_run is None else len(self.previous_run.stage_names)
        if not resume.has_newer_scores(stage_index, self._last_scored_stage, carried_stages):
            run_stages = [stage.name for stage in self.context.plan.stages]
            if self.previous_run is None:
                stage_names = ("base", *run_stages)
            else:
                stage_names = self.previous_run.join_stage_names(run_stages)
            json_files.write_scores(self._all_evaluations(), stage_names, self.context.folder.path)

    def _note_cached(self, evaluations: Sequence[Evaluation]) -> None:
        """Write into data.json, for the report, which suites of the base model an earlier run has measured."""
        cached = [evaluation.suite for evaluation in evaluations if evaluation.is_from_cache]
        data = self.context.folder.read_json("data.json") if cached else None
        if data is not None:
            self.context.folder.write_json("data.json", {**data, "cached_evaluations": cached})

    def evaluate_variants(self, staged_model: StagedModel, stage_index: int) -> None:
        """Evaluate the other weights that the stage's mitigations offer, e.g. an interpolation of two models."""
        for mitigation, variant in staged_model.variants():
            folder = f"predictions/variants/{mitigation}-{variant}"
            evaluations = self.evaluate(staged_model, stage_index, folder, processes=SINGLE_PROCESS)
            scores = weight_variants.variant_scores_as_dicts(
                evaluations, self._all_evaluations(), self.context.prepared.metrics
            )
            stage = self.context.plan.stages[stage_index - 1].name
            self._variants.append({"stage": stage, "mitigation": mitigation, "variant": variant, "scores": scores})
            self.context.registry.emit(
                VariantEvaluated(
                    stage_index=stage_index, mitigation=mitigation, variant=variant, evaluations=evaluations
                )
            )
            self.context.folder.write_json("variants.json", {"variants": self._variants})

    def evaluate(
        self,
        staged_model: WeightsToEvaluate,
        stage_index: int,
        folder: str | None,
        *,
        suites: Sequence[Suite] | None = None,
        metrics: Mapping[str, Mapping[str, Metric]] | None = None,
        processes: Processes | None = None,
    ) -> tuple[Evaluation, ...]:
        """Evaluate the model with its current weights.

        Args:
            staged_model: The model.
            stage_index: The stage, from 1; 0 before the first stage.
            folder: Folder for the answers, below the run's folder. None within a stage: no answers are stored and no
                progress is emitted.
            suites: The suites; None for all.
            metrics: Suite -> name -> metric; None for all.
            processes: The processes that have these weights and measure them together; None for all of the run.

        Returns:
            One evaluation for each suite.
        """
        prepared = self.context.prepared
        if self._batch_support is None:
            with self.clock.phase("load"):
                self._batch_support = probe_and_warn(
                    staged_model.model, prepared, self.context.registry, self.context.folder
                )
        processes = self.context.processes if processes is None else processes
        with (
            self.clock.phase("evaluate"),
            self._model_to_evaluate(staged_model, stage_index, self._batch_support, processes) as evaluated_model,
        ):
            return evaluate.evaluate_suites(
                evaluated_model,
                self.context.plan.suites if suites is None else suites,
                prepared.data.suite_examples,
                prepared.metrics if metrics is None else metrics,
                folder=None if folder is None else self.context.folder.path / folder,
                progress=no_progress if folder is None else self.context.progress,
            )

    def measure_for_main_process(
        self, staged_model: WeightsToEvaluate, request: MeasurementRequest
    ) -> dict[int, Mapping[str, Any]]:
        """Measure a worker's share of what the main process evaluates; return item -> its measured fields.

        Args:
            staged_model: The model, with the weights of the main process's.
            request: What to measure.
        """
        (suite,) = (suite for suite in self.context.plan.suites if suite.name == request.suite)
        examples = self.context.prepared.data.suite_examples[suite.name]
        with (
            restored_training_state(staged_model.model),
            self._model_to_evaluate(
                staged_model,
                request.stage,
                request.batch_support,
                self.context.processes,
                with_base=request.requirement == "base",
            ) as evaluated_model,
        ):
            return evaluate.measure_for_main_process(evaluated_model, suite, examples, request)

    @contextmanager
    def _model_to_evaluate(
        self,
        staged_model: WeightsToEvaluate,
        stage_index: int,
        batch_support: BatchSupport,
        processes: Processes,
        *,
        with_base: bool = True,
    ) -> Iterator[ModelToEvaluate]:
        """Provide the model as it is evaluated after a stage, with its base model unless `with_base` is false."""
        prepared, model = self.context.prepared, staged_model.model
        trains_earlier_run = self.context.adapter_policy is not None
        # Without its new adapter the untrained model is the base model, whose answers all arms share.
        untrained = contextlib.nullcontext() if stage_index or trains_earlier_run else save.base_model(model)
        has_base = stage_index > 0 or trains_earlier_run
        with untrained, self.context.autocast(model):
            yield ModelToEvaluate(
                model,
                prepared.tokenizer,
                prepared.template,
                stage=stage_index,
                seed=self.context.plan.seed,
                max_length=prepared.max_length,
                templates=prepared.templates,
                base_context=self._base_context(staged_model) if with_base and has_base else None,
                batch_support=batch_support,
                use_cache=stage_index == 0,
                processes=processes,
            )

    def _all_evaluations(self) -> tuple[tuple[Evaluation, ...], ...]:
        """Return the evaluations of the earlier run, if there is one, and of this one."""
        if self.previous_run is None:
            return tuple(self.evaluations)
        return tuple(self.previous_run.join_evaluations(tuple(self.evaluations)))

    def _base_context(self, staged_model: WeightsToEvaluate) -> Callable[[], AbstractContextManager[Any]] | None:
        """Return how to get the base model, for metrics that compare with it; None if there are none."""
        if not self.context.prepared.requires_base_model():
            return None
        location = continue_run.original_base(self.context.spec, self.context.prepared, self.context.progress)
        starts_from_base = (
            self.context.adapter_policy is None or load.source_digest(staged_model.model) == location.digest
        )
        if save.is_peft_model(staged_model.model) and not staged_model.merged and starts_from_base:
            return lambda: save.base_model(staged_model.model)
        if self._base_model is None:
            self._base_model = self.context.load_model(location)
        match_dtypes(self._base_model, staged_model.model)  # equal weights have a divergence of exactly 0
        return lambda: contextlib.nullcontext(self._base_model)
