"""One run, from its prepared data to its report: `run_stages`.

prepared data → load → evaluate → (train → evaluate) per stage → report. A resumed run executes the same steps; what
its folder holds already is read instead of computed. With several processes, the main process (rank 0) runs this
module and the others run `stage_loop.run_worker`.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from harness.data.tokenization import fingerprints
from harness.data.tokenization.turn_separators import compare_with_tokenizer, tokenizer_template
from harness.errors import RunError
from harness.evaluation import scoring
from harness.events import (
    DataPrepared,
    MidStageEvaluated,
    RunFinished,
    RunStarted,
    StageFinished,
    StageStarted,
    StepLogged,
    WarningRaised,
)
from harness.model import save
from harness.model.bfloat16_speed import bfloat16_recommendation
from harness.report import run_report
from harness.report.run_report import Report
from harness.runner import disk_space, metadata, resume
from harness.runner.context import RunContext
from harness.runner.early_stopping import EarlyStopper
from harness.runner.evaluate_stages import StageEvaluator
from harness.runner.folder import INVALID_ROWS_FOLDER, save_stage_snapshot
from harness.runner.prepare import write_report_page
from harness.runner.report_page import write_run_page
from harness.runner.stage_loop import RunTask, StageLoop, input_digests
from harness.runner.staged_model import StagedModel
from harness.runner.trackers import mlflow_settings, tracker_listeners
from harness.runner.tracking_session import emit_tracking_start, tracking_session
from harness.seeding import seed_mitigations
from harness.tracking.tracker import MlflowTracker
from harness.training import train_stage
from harness.training.checkpoint import checkpoint_step
from harness.training.stage_schedule import checkpoint_steps, evaluates_within
from harness.utils import json_files


def run_stages(context: RunContext) -> Report:
    """Train and evaluate the stages of a prepared run in its folder, and write its report.

    The folder stays, however the run ends.

    Args:
        context: The run. Its `prepared` holds the findings of the data checks.

    Raises:
        HarnessError: If the run cannot be resumed or an input is invalid.
        RunError: If the run fails.
    """
    track = context.spec.document["track"]
    settings = mlflow_settings(track, context.registry)
    with (
        tracker_listeners(track, context.registry),
        tracking_session(
            {**settings, "enabled": settings["enabled"] and context.tracked},
            context.plan.name,
            context.registry,
            context.folder,
            resuming=context.resuming,
            parent=context.parent,
            processes=context.processes,
        ) as tracker,
    ):
        inputs = input_digests(context.prepared, context.registry)
        context.processes.broadcast(RunTask(context.spec, context.folder.path, context.resuming, inputs))
        process = MainProcess(context, tracker)
        with process.clock.phase("write"):  # the phases within it interrupt it
            process.write_inputs()
            process.recommend_precision()
            with process.clock.phase("load"):
                staged_model = process.create_staged_model()
                process.warn_if_disk_is_small(staged_model)
            process.evaluator.evaluate_stage(staged_model, 0)
            for stage_index in range(1, len(context.plan.stages) + 1):
                process.run_stage(staged_model, stage_index)
            context.processes.broadcast(None)  # the workers have nothing more to measure
            process.save_final_model(staged_model)
            report = process.write_report()
        scoring.raise_on_violations(
            [evaluation for stage in process.evaluator.evaluations for evaluation in stage], first_stage=1
        )
        return report


class MainProcess(StageLoop):
    """The steps of a run in the main process.

    Attributes:
        tracker: The MLflow tracker of the run.
        evaluator: Evaluates the model and holds the evaluations so far.
        clock: Measures the phases of the run.
    """

    def __init__(self, context: RunContext, tracker: MlflowTracker) -> None:
        """Start the clock of the run."""
        super().__init__(context)
        self.tracker = tracker
        self.evaluator = StageEvaluator(context)
        self.clock = self.evaluator.clock
        self.clock.add("prepare", context.prepared.seconds)
        self._started_at = time.monotonic()
        self._memory_by_stage: dict[str, dict[str, int]] = {}

    def write_inputs(self) -> None:
        """Write spec.json, environment.json and data.json; of a resumed run, require that they still match.

        Raises:
            HarnessError: If the inputs of a resumed run changed.
        """
        context = self.context
        environment = metadata.environment_metadata(context.prepared, context.registry, context.spec, context.processes)
        data = metadata.data_metadata(context.prepared)
        if context.resuming:
            resume.require_same_inputs(context.folder, data, environment)
        else:
            context.folder.write_json("spec.json", context.spec.document)
        self._copy_invalid_rows()
        # It describes where the run was started. A run that was interrupted very early has none yet.
        stored_environment = context.folder.read_json("environment.json")
        if stored_environment is None:
            context.folder.write_json("environment.json", environment)
        context.registry.emit(
            RunStarted(
                **self._run_info(),
                environment=stored_environment or environment,
                resuming=context.resuming,
                arm=context.arm,
                changed=context.spec.changed,
            )
        )
        if context.arm is None:
            emit_tracking_start(context.registry, self.tracker.pages)
        context.folder.write_json("data.json", {**data, "stages": [stage.name for stage in context.plan.stages]})
        context.registry.emit(DataPrepared(**data))

    def recommend_precision(self) -> None:
        """Emit a warning if this CPU computes faster in another precision; an experiment does it once for all arms."""
        if self.context.arm is not None:
            return
        recommendation = bfloat16_recommendation(self.context.plan.train["precision"])
        if recommendation is not None:
            self.context.registry.emit(WarningRaised(text=recommendation))

    def run_stage(self, staged_model: StagedModel, stage_index: int) -> None:
        """Train a stage, or load its snapshot if it is trained already, and evaluate it. stage_index: from 1."""
        context, stage = self.context, self.context.plan.stages[stage_index - 1]
        totals = resume.finished_stage_totals(context.folder, stage.name)
        self.write_rows(staged_model, stage_index, totals)
        context.registry.emit(
            StageStarted(
                stage_index=stage_index,
                stage=stage,
                steps=context.planned_steps(stage_index),
                reused=totals is not None,
            )
        )
        with self.clock.phase("train"):
            result = self.train_or_load_stage(staged_model, stage_index, totals)
        if totals is not None:
            stage_folder = context.folder.stage_folder(stage.name)
            resume.restore_logs(stage_folder, stage_folder / "end")
        self._memory_by_stage[stage.name] = dict(result.memory)
        if resume.emits_stored_steps(totals, resuming=context.resuming):
            self._emit_stored_steps(stage_index)
        self.evaluator.evaluate_stage(staged_model, stage_index)
        self.evaluator.evaluate_variants(staged_model, stage_index)
        context.registry.emit(
            StageFinished(stage_index=stage_index, stage=stage, trained=result, folder=str(context.folder.path))
        )

    def warn_if_disk_is_small(self, staged_model: StagedModel) -> None:
        """Emit a warning if there is too little free disk space for what the run writes."""
        context = self.context
        stages, processes = context.prepared.data.stages, context.processes.world_size
        counts = [len(checkpoint_steps(data, processes)) for data in stages]
        text = disk_space.disk_space_warning(context.folder.path, context.plan.stages, counts, staged_model.model)
        if text is not None:
            context.registry.emit(WarningRaised(text=text))

    def save_final_model(self, staged_model: StagedModel) -> None:
        """Save the model after the last stage, with the fingerprint of its chat template."""
        prepared, model_folder = self.context.prepared, self.context.folder.path / "model"
        save.save_model(staged_model.final_model(), prepared.tokenizer, model_folder)
        fingerprint = fingerprints.template_fingerprint(prepared.template, prepared.tokenizer)
        own_template = tokenizer_template(self.context.registry, prepared.tokenizer)
        chat_template = compare_with_tokenizer(prepared.template, own_template, prepared.tokenizer)
        fingerprints.save_template_fingerprint(model_folder, prepared.plan, fingerprint, chat_template)

    def write_report(self) -> Report:
        """Write report.json and report.html, delete the snapshots that are not needed, and emit the end of the run."""
        context = self.context
        pages = self.tracker.pages
        run_info = {
            **self._run_info(),
            "seconds": self._elapsed_seconds(),
            "resumed": context.resuming,
            "phases": self.clock.seconds(),
            "memory": self._memory_by_stage,
            "uri": self.tracker.uri,
            "view": None if pages is None else pages.view,
        }
        report = run_report.build_report(
            context.plan,
            self.evaluator.evaluations,
            context.prepared.metrics,
            seed=context.plan.seed,
            run_info=run_info,
            gate_conditions=context.spec.document["gate"],
            previous_run=self.evaluator.previous_run,
        )
        report.write(context.folder.path)  # from here on the run is finished
        write_report_page(context.registry, partial(write_run_page, context.registry), context.folder.path)
        for stage in context.plan.stages[context.stages_to_keep :]:
            context.folder.remove(f"stages/{stage.name}/end")
        context.registry.emit(
            RunFinished(stage_index=len(context.plan.stages), report=report, seconds=self._elapsed_seconds())
        )
        return report

    # -- inputs -------------------------------------------------------------------------------------------------------

    def _run_info(self) -> dict[str, Any]:
        """Return the fields that `RunStarted` and the report have in common."""
        path = self.context.folder.path
        return {
            "name": self.context.plan.name,
            "id": path.name,
            "folder": str(path),
            "spec": self.context.spec.document,
            "plan": self.context.plan,
        }

    def _elapsed_seconds(self) -> float:
        return time.monotonic() - self._started_at

    def _copy_invalid_rows(self) -> None:
        """Copy the files of invalid rows, which the spec allows, to the run's folder."""
        folder = self.context.folder.path / INVALID_ROWS_FOLDER
        for name, source in self.context.prepared.data.sources.items():
            invalid_rows_file = source.corpus.invalid_rows_file
            if invalid_rows_file is None or invalid_rows_file.parent == folder:
                continue
            if invalid_rows_file.is_file():
                folder.mkdir(exist_ok=True)
                shutil.copyfile(invalid_rows_file, folder / f"{name}.jsonl")

    # -- one stage ----------------------------------------------------------------------------------------------------

    def _clock_phase(self, name: str) -> AbstractContextManager[None]:
        return self.clock.phase(name)

    def _create_early_stopper(
        self, staged_model: StagedModel, stage_index: int, checkpoint: Path | None
    ) -> EarlyStopper | None:
        if not evaluates_within(self.context.stage_data(stage_index).stage.train):
            return None
        return EarlyStopper(self.context, self.evaluator, staged_model, stage_index, checkpoint_step(checkpoint))

    def _checkpoint_to_resume(self, stage_folder: Path) -> Path | None:
        checkpoint = resume.checkpoint_to_resume(stage_folder, resuming=self.context.resuming, warn=self._warn)
        resume.restore_logs(stage_folder, checkpoint)
        return checkpoint

    def _warn(self, text: str) -> None:
        self.context.registry.emit(WarningRaised(text=text))

    def _create_step_callback(
        self, stage_index: int, checkpoint: Path | None
    ) -> Callable[[int, Mapping[str, float]], None]:
        """Return the function that writes each logged step to steps.jsonl and emits it.

        A resumed stage repeats the steps that were logged after its checkpoint. Their old lines are deleted when the
        first repeated step is logged, and not before: if the stage cannot be resumed, the log stays complete.
        """
        name = self.context.plan.stages[stage_index - 1].name
        is_first = True

        def log_step(step: int, metrics: Mapping[str, float]) -> None:
            nonlocal is_first
            if is_first:
                resume.discard_steps_after(self.context.folder.stage_folder(name), checkpoint)
            is_first = False
            self.context.folder.append_json_line(f"stages/{name}/steps.jsonl", {"step": step, **metrics})
            self.context.registry.emit(StepLogged(stage_index=stage_index, step=step, metrics=metrics))

        return log_step

    def _finish_stage(
        self,
        staged_model: StagedModel,
        stage_index: int,
        stage_result: train_stage.StageResult,
        early_stopper: EarlyStopper | None,
    ) -> None:
        """Restore the best weights, update the mitigations, and save the stage."""
        processes = self.context.processes
        if early_stopper is not None:
            states = early_stopper.restore_best_weights(staged_model.model, stage_result.steps)
            staged_model.load_mitigation_states(states)
        seed_mitigations(self._mitigation_seed(stage_index))
        with self.context.autocast(staged_model.model):
            staged_model.finish_stage(stage_index, self.context.stage_data(stage_index).rows)
        self._save_stage(staged_model, stage_result, stage_index)
        if early_stopper is not None:
            early_stopper.delete_best_weights()
        processes.broadcast(stage_result.totals())
        processes.barrier()  # until the workers have read the snapshot

    def _save_stage(self, staged_model: StagedModel, stage_result: train_stage.StageResult, stage_index: int) -> None:
        """Save the snapshot, the model and the totals of a stage."""
        context, name = self.context, self.context.plan.stages[stage_index - 1].name
        stage_folder = context.folder.stage_folder(name)
        try:
            save_stage_snapshot(
                stage_folder / "end", staged_model.model, staged_model.mitigation_states(), logs_of=stage_folder
            )
        except RunError as error:
            if context.processes.world_size > 1:
                raise  # the workers need the snapshot
            text = f"{error}; the run continues, and --resume would train this stage again"
            context.registry.emit(WarningRaised(text=text))
        is_last = stage_index == len(context.plan.stages)
        # A merged adapter changed the base weights: a later adapter would be loaded onto the wrong base model.
        if not is_last and save.saves_as_adapter(staged_model.model) and not staged_model.merged:
            save.save_model(staged_model.model, context.prepared.tokenizer, stage_folder / "model")
        context.folder.write_json(f"stages/{name}/trained.json", stage_result.totals())

    def _emit_stored_steps(self, stage_index: int) -> None:
        """Emit the logged steps and evaluations of a stage that another arm trained."""
        stage_folder = self.context.folder.stage_folder(self.context.plan.stages[stage_index - 1].name)
        for metrics in json_files.read_json_lines(stage_folder / "steps.jsonl"):
            step = metrics.pop("step")
            self.context.registry.emit(StepLogged(stage_index=stage_index, step=step, metrics=_null_to_nan(metrics)))
        for entry in json_files.read_json_lines(stage_folder / "evaluations.jsonl"):
            event = MidStageEvaluated(stage_index=stage_index, **entry)
            self.context.registry.emit(replace(event, scores=_null_to_nan(event.scores)))


def _null_to_nan(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the values as they were before JSON, which has null for every number that is not finite."""
    return {name: math.nan if value is None else value for name, value in values.items()}
