"""The events of a run, rebuilt from its folder. Loads no model.

The tracker reads the steps of the stages from the folder itself, so they are not among the events.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.evaluation import rescore
from harness.events import DataPrepared, Event, RowsWritten, RunStarted, StageFinished, StageStarted, SuitesEvaluated
from harness.registry import Registry
from harness.report import run_report
from harness.report.finished_run import PreviousRun, load_run_json
from harness.report.run_report import Report
from harness.runner import continue_run
from harness.spec import preflight
from harness.spec.spec import Spec
from harness.training import train_stage
from harness.types import Evaluation, Plan
from harness.utils.find_run import RUN_SCHEME, find_run

EvaluationsByStage = tuple[tuple[Evaluation, ...], ...]
"""The evaluations before the first stage and after each stage."""


@dataclass(frozen=True)
class StoredRun:
    """A run in its folder.

    Attributes:
        spec: The spec of the run.
        plan: Its plan.
        folder: Its folder.
        arm: `name`, `method` and `changes` of the experiment's arm; None outside an experiment.
    """

    spec: Spec
    plan: Plan
    folder: Path
    arm: Mapping[str, Any] | None = None

    @property
    def is_trained_elsewhere(self) -> bool:
        """Whether the run is the evaluation of a tuned model; it has a stage without training."""
        return (self.folder / "tuned.json").is_file()

    def load_evaluations(self, registry: Registry) -> EvaluationsByStage:
        """Score the stored answers of every stage.

        Raises:
            HarnessError: An evaluation is missing or incomplete.
        """
        evaluations = rescore.score_run(self.folder, None, registry) if self.plan.suites else ()
        return tuple(
            tuple(evaluation for evaluation in evaluations if evaluation.stage == stage_index)
            for stage_index in range(len(self.plan.stages) + 1)
        )

    def load_complete_evaluations(self, registry: Registry) -> EvaluationsByStage:
        """Score the stored answers of the stages that an interrupted run has evaluated completely."""
        stages: list[tuple[Evaluation, ...]] = []
        for stage_index in range(len(self.plan.stages) + 1):
            try:
                evaluations = rescore.score_run(self.folder, None, registry, stages=[stage_index])
            except HarnessError:
                break
            if len(evaluations) < len(self.plan.suites):
                break
            stages.append(evaluations)
        return tuple(stages)

    def start_events(self) -> Iterator[Event]:
        """Yield the events before the first evaluation, as far as the run got.

        Raises:
            HarnessError: The run was interrupted before it had started, or a file is damaged.
        """
        yield RunStarted(
            name=self.plan.name,
            id=self.folder.name,
            folder=str(self.folder),
            spec=self.spec.document,
            plan=self.plan,
            environment=load_run_json(self.folder, "environment.json"),
            resuming=True,
            arm=self.arm,
            changed=self.spec.changed,
        )
        if (self.folder / "data.json").is_file():
            data = {**load_run_json(self.folder, "data.json"), "stages": self.plan.stages}
            known_fields = {field.name for field in dataclasses.fields(DataPrepared)}
            yield DataPrepared(**{name: value for name, value in data.items() if name in known_fields})
            for entry in data.get("written", ()):
                names = [stage.name for stage in self.plan.stages]
                fields = {name: value for name, value in entry.items() if name != "stage"}
                yield RowsWritten(stage_index=names.index(entry["stage"]) + 1, **fields)

    def stage_events(self, evaluations: EvaluationsByStage) -> Iterator[Event]:
        """Yield the events of the evaluations and stages, as far as the run got.

        Args:
            evaluations: The evaluations that are complete.

        Raises:
            HarnessError: The totals of a stage are damaged.
        """
        if evaluations:
            yield SuitesEvaluated(evaluations=evaluations[0])
        for stage_index, stage in enumerate(self.plan.stages, start=1):
            evaluated = stage_index < len(evaluations)
            if self.is_trained_elsewhere:
                if evaluated:
                    yield SuitesEvaluated(stage_index=stage_index, evaluations=evaluations[stage_index])
                continue
            stage_folder = self.folder / "stages" / stage.name
            totals = self._load_totals(stage_folder)
            if totals is None and not (stage_folder / "steps.jsonl").is_file():
                return
            steps = 0 if totals is None else totals.steps
            yield StageStarted(stage_index=stage_index, stage=stage, steps=steps, reused=True)
            if totals is None or not evaluated:
                return
            yield SuitesEvaluated(stage_index=stage_index, evaluations=evaluations[stage_index])
            yield StageFinished(stage_index=stage_index, stage=stage, trained=totals, folder=str(self.folder))

    def build_report(self, registry: Registry, evaluations: EvaluationsByStage) -> Report:
        """Build the report of a finished run again, with the same numbers."""
        previous_run: PreviousRun | None = None
        path, output = self.plan.model["path"], self.spec.document["output"]
        if path.startswith(RUN_SCHEME):
            previous_folder = find_run(path.removeprefix(RUN_SCHEME), output).resolve()
            previous_run, _ = continue_run.carry_over_scores(previous_folder, evaluations[0], output)
        return run_report.build_report(
            self.plan,
            evaluations,
            preflight.create_metrics(self.spec, self.plan, registry),
            seed=self.plan.seed,
            run_info=load_run_json(self.folder, "report.json")["run"],
            gate_conditions=self.spec.document["gate"],
            previous_run=previous_run,
        )

    @staticmethod
    def _load_totals(stage_folder: Path) -> train_stage.StageResult | None:
        if not (stage_folder / "trained.json").is_file():
            return None
        try:
            return train_stage.StageResult.from_totals(load_run_json(stage_folder, "trained.json"))
        except ValueError as error:
            what = "was written by another version of harness"
            raise HarnessError(str(stage_folder / "trained.json"), what, "resume with that version") from error
