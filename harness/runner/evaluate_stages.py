"""What a run measures: the base, the model after each stage and within one, and the other weights that a stage offers.

Knows evaluations and where the run keeps them. Trains nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from harness.evaluation import evaluate
from harness.evaluation.context import ModelToEvaluate
from harness.interfaces.metric import Metric
from harness.model import load, save
from harness.report import weight_variants
from harness.report.finished_run import PreviousRun
from harness.runner import continue_run
from harness.runner.prepare import create_progress
from harness.runner.stage_loop import StageLoop
from harness.runner.staged_model import StagedModel
from harness.types import Evaluation, Event, Suite, no_progress
from harness.utils import json_files


class StageEvaluator:
    """The measurements of one run.

    evaluations: those before the first stage and after each, as far as the run has come. earlier: of a run that goes on
    from another, what that one measured. scored: the last stage whose scores the folder holds from before, -1 for none.
    """

    def __init__(self, stage_loop: StageLoop) -> None:
        self.stage_loop = stage_loop
        self.evaluations: list[tuple[Evaluation, ...]] = []
        self.previous_run: PreviousRun | None = None
        self.last_scored_stage = -1
        self._variants: list[dict[str, Any]] = []
        self._base_model: Any = None

    def evaluate_stage(self, staged_model: StagedModel, stage_index: int) -> None:
        """Measure the model after a stage, 0: before the first, and write all scores so far down."""
        found = self.evaluate(staged_model, stage_index, "predictions")
        self.evaluations.append(found)
        self._emit("evaluated", stage_index, evaluations=found)
        if stage_index == 0 and self.stage_loop.prepared.location.kind == "run":
            run = Path(self.stage_loop.prepared.location.path).parent
            self.previous_run, told = continue_run.carry_over_scores(
                run, found, self.stage_loop.spec.document["output"]
            )
            for text in told:
                self._emit("warning", text=text)
        before = len(self.previous_run.stage_names) if self.previous_run is not None else 0
        if (
            stage_index < self.last_scored_stage - before
        ):  # a run that is gone on with may stop again before it is where it was
            return
        names, evaluations = [one.name for one in self.stage_loop.prepared.plan.stages], tuple(self.evaluations)
        if self.previous_run is None:
            json_files.write_scores(evaluations, ["base", *names], self.stage_loop.folder.path)
        else:
            json_files.write_scores(
                self.previous_run.join_evaluations(evaluations),
                self.previous_run.join_stage_names(names),
                self.stage_loop.folder.path,
            )

    def evaluate_variants(self, staged_model: StagedModel, stage_index: int) -> None:
        """Measure the other weights that the stage's mitigations offer, e.g. a sweep between two models."""
        for mitigation, variant in staged_model.variants():
            found = self.evaluate(staged_model, stage_index, f"predictions/variants/{mitigation}-{variant}")
            known = (
                self.evaluations if self.previous_run is None else self.previous_run.join_evaluations(self.evaluations)
            )
            scores = weight_variants.variant_scores_as_dicts(
                found, known, self.stage_loop.prepared.metrics, seed=self.stage_loop.prepared.plan.seed
            )
            stage = self.stage_loop.prepared.plan.stages[stage_index - 1].name
            self._variants.append({"stage": stage, "mitigation": mitigation, "variant": variant, "scores": scores})
            self._emit("variant", stage_index, mitigation=mitigation, variant=variant, evaluations=found)
            self.stage_loop.folder.write_json("variants.json", {"variants": self._variants})

    def evaluate(
        self,
        staged_model: StagedModel,
        stage_index: int,
        folder: str | None,
        suites: Sequence[Suite] | None = None,
        metrics: Mapping[str, Mapping[str, Metric]] | None = None,
    ) -> tuple[Evaluation, ...]:
        """Measure the model as it is.

        folder: what gets the answers; None: in the midst of a stage, of which nothing is kept and no phase is told.
        """
        planned = self.stage_loop.prepared.plan
        # Without the adapter that is to be trained, the base model's answers are those of every other arm.
        began = stage_index == 0 and self.stage_loop.adapter_policy is None
        untrained = save.base_model(staged_model.model) if began else contextlib.nullcontext()
        with untrained, load.autocast_context(staged_model.model, planned.train["precision"]):
            subject = ModelToEvaluate(
                staged_model.model,
                self.stage_loop.prepared.tokenizer,
                self.stage_loop.prepared.template,
                stage=stage_index,
                seed=planned.seed,
                max_length=self.stage_loop.prepared.max_length,
                templates=self.stage_loop.prepared.templates,
                base_context=self._base_context(staged_model)
                if stage_index or self.stage_loop.adapter_policy
                else None,
            )
            return evaluate.evaluate_suites(
                subject,
                planned.suites if suites is None else suites,
                self.stage_loop.prepared.data.suite_examples,
                self.stage_loop.prepared.metrics if metrics is None else metrics,
                folder=None if folder is None else self.stage_loop.folder.path / folder,
                progress=no_progress if folder is None else create_progress(self.stage_loop.registry),
            )

    def _base_context(self, staged_model: StagedModel) -> Callable[[], AbstractContextManager[Any]] | None:
        """How to have the base model, for metrics that read it; None where there are none."""
        if not any(
            one.requires == "base" for suite in self.stage_loop.prepared.metrics.values() for one in suite.values()
        ):
            return None
        location = continue_run.original_base(
            self.stage_loop.spec, self.stage_loop.prepared, create_progress(self.stage_loop.registry)
        )
        if (
            save.is_peft_model(staged_model.model)
            and not staged_model.merged
            and (self.stage_loop.adapter_policy is None or load.source_digest(staged_model.model) == location.digest)
        ):
            return lambda: save.base_model(staged_model.model)
        if self._base_model is None:
            self._base_model = self.stage_loop.load_model(location)
        return lambda: contextlib.nullcontext(self._base_model)

    def _emit(self, event_type: str, stage_index: int = 0, /, **payload: Any) -> None:
        self.stage_loop.registry.emit(Event(event_type, stage_index, payload))
