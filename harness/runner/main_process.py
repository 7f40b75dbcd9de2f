"""One run, from its proven data to its report: the order of the rooms, and what is kept on the way.

prepared → load → base evaluation → (train → evaluate) per stage → report. A run that is gone on with walks the same
way again; what it finds done in its folder is read instead of done. Of several processes the main one walks here, and
those beside it in `following`.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.data.checks import findings
from harness.data.tokenization import fingerprints
from harness.distributed.processes import SINGLE_PROCESS, Processes
from harness.errors import HarnessError, RunError
from harness.evaluation import scoring
from harness.model import save
from harness.registry import Registry
from harness.report import run_report
from harness.report.html import write
from harness.report.run_report import Report
from harness.runner import early_stopping, metadata
from harness.runner.evaluate_stages import StageEvaluator
from harness.runner.folder import RunFolder, save_stage_snapshot
from harness.runner.prepare import PreparedRun, write_report_page
from harness.runner.stage_loop import RunTask, StageLoop, mitigation_states
from harness.runner.staged_model import StagedModel
from harness.spec import preflight
from harness.spec.spec import Spec
from harness.tracking.tracker import Tracker
from harness.training import train_stage
from harness.training.checkpoint import checkpoint_step
from harness.types import Event
from harness.utils.json_depth import load_json


@contextmanager
def tracking_session(
    settings: Mapping[str, Any],
    name: str,
    registry: Registry,
    folder: RunFolder,
    *,
    resuming: bool = False,
    parent: str | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> Iterator[Tracker]:
    """Within it events go to the run's tracker too. What breaks the run off is told before it is raised.

    settings: the spec's `track`. resuming: whether the folder's run is gone on with. parent: the MLflow id of the
    experiment's run. processes: the processes that share the run, and end with it. Raises RunError where a file of the
    run cannot be written or read.
    """
    tracker = Tracker(
        settings,
        name,
        warn=lambda text: registry.emit(Event("warning", data={"text": text})),
        parent_run_id=parent,
        resume_info=folder.read_json("mlflow.json") if resuming else None,
    )

    def failed(why: str) -> None:
        registry.emit(Event("run_failed", data={"error": why, "folder": str(folder.path)}))

    registry.manager.register(tracker, name="track")
    try:
        with processes.on_abort(failed):
            try:
                yield tracker
            except OSError as error:
                what = f"a file of the run cannot be written or read: {error}"
                hint = f"free space or mend the folder, and go on: harness run --resume {folder.path}"
                raise RunError(str(folder.path), what, hint) from error
    except BaseException as error:
        processes.mark_ending()
        failed("interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}")
        raise
    finally:
        registry.manager.unregister(tracker)


def run_stages(
    spec: Spec,
    registry: Registry,
    prepared: PreparedRun,
    findings: findings.Findings,
    folder: RunFolder,
    *,
    resuming: bool = False,
    arm: Mapping[str, Any] | None = None,
    parent: str | None = None,
    stages_to_keep: int = 0,
    processes: Processes = SINGLE_PROCESS,
) -> Report:
    """Run a prepared spec in its folder, tracked. The folder stays, however the run ends.

    resuming: go on with what the folder holds. arm: `name` and `changes` of an experiment's arm. parent: the MLflow id
    of the experiment's run. stages_to_keep: of how many stages the ends stay, for other arms. processes: the processes
    that train it; the others follow from here on. Raises HarnessError or RunError.
    """
    track, name = spec.document["track"], prepared.plan.name
    with tracking_session(
        track, name, registry, folder, resuming=resuming, parent=parent, processes=processes
    ) as tracker:
        processes.broadcast(RunTask(spec, folder.path, resuming))
        return MainProcess(
            spec, registry, prepared, folder, processes, resuming, findings, tracker, arm, stages_to_keep
        ).run()


class MainProcess(StageLoop):
    """A run under way, in the main process. found: what the wording of its data gave away."""

    def __init__(
        self,
        spec: Spec,
        registry: Registry,
        prepared: PreparedRun,
        folder: RunFolder,
        processes: Processes,
        resuming: bool,
        findings: findings.Findings,
        tracker: Tracker,
        arm: Mapping[str, Any] | None,
        stages_to_keep: int,
    ) -> None:
        super().__init__(spec, registry, prepared, folder, processes, resuming)
        self.findings, self.tracker, self.arm, self.stages_to_keep = findings, tracker, arm, stages_to_keep
        self.started = time.monotonic()
        self.evaluator = StageEvaluator(self)

    def run(self) -> Report:
        """Walk all the way. Raises HarnessError or RunError; what was made stays."""
        self._start_run()
        chain = self._create_staged_model()
        self.evaluator.evaluate_stage(chain, 0)
        for number in range(1, len(self.prepared.plan.stages) + 1):
            self._run_stage(chain, number)
        return self._finish_run(chain)

    # -- before and after ---------------------------------------------------------------------------------------------

    def _start_run(self) -> None:
        planned = self.prepared.plan
        described = metadata.environment_metadata(
            self.prepared, self.registry, self.spec.file, self.processes.world_size
        )
        found = metadata.data_metadata(self.prepared, self.findings)
        if self.resuming:
            self._require_same_inputs(found, described)
            self.evaluator.last_scored_stage = len((self.folder.read_json("scores.json") or {}).get("stages", ())) - 1
        else:
            self.folder.write_json("spec.json", self.spec.document)
        self._copy_invalid_rows()
        if not (self.folder.path / "environment.json").is_file():  # broken off that early, it has none yet
            self.folder.write_json("environment.json", described)
        self._emit("run_started", **self._run_info(), environment=described, again=self.resuming, arm=self.arm)
        self.folder.write_json("data.json", {**found, "stages": [one.name for one in planned.stages]})
        self._emit("data", **found)

    def _finish_run(self, staged_model: StagedModel) -> Report:
        planned = self.prepared.plan
        known = {**self._run_info(), "seconds": time.monotonic() - self.started, "uri": self.tracker.uri}
        save.save_model(staged_model.final_model(), self.prepared.tokenizer, self.folder.path / "model")
        fingerprints.save_template_fingerprint(
            self.folder.path / "model",
            planned,
            fingerprints.template_fingerprint(self.prepared.template, self.prepared.tokenizer),
        )
        made = run_report.build_report(
            planned,
            self.evaluator.evaluations,
            self.prepared.metrics,
            seed=planned.seed,
            run_info=known,
            gate_conditions=self.spec.document["gate"],
            previous_run=self.evaluator.previous_run,
        )
        made.write(self.folder.path)  # a run with a report is finished
        write_report_page(self.registry, write.write_run_page, self.folder.path)
        for stage in planned.stages[self.stages_to_keep :]:
            self.folder.remove(f"stages/{stage.name}/end")
        self._emit("run_finished", len(planned.stages), report=made, seconds=time.monotonic() - self.started)
        scoring.raise_on_violations([one for stage in self.evaluator.evaluations for one in stage], first_stage=1)
        return made

    def _copy_invalid_rows(self) -> None:
        """Move the files that name the bad rows of sources, which the spec allows, into the run's folder."""
        for name, told in self.prepared.data.sources.items():
            if told.corpus.invalid_rows_file is not None and told.corpus.invalid_rows_file.is_file():
                (self.folder.path / "rejected").mkdir(exist_ok=True)
                shutil.copyfile(told.corpus.invalid_rows_file, self.folder.path / "rejected" / f"{name}.jsonl")

    def _require_same_inputs(self, data_metadata: Mapping[str, Any], environment_metadata: Mapping[str, Any]) -> None:
        """A run goes on with what it began with, or not at all."""
        before = self.folder.read_json("data.json") or {}
        began = (self.folder.read_json("environment.json") or {}).get("model") or {}
        if began.get("digest") not in (None, environment_metadata["model"]["digest"]):
            hint = "bring back the files that it began with, or start a new run"
            raise HarnessError(str(self.folder.path), "its base model is no longer the one that it began with", hint)
        for key, what in (("digests", "the rows of its sources"), ("template", "what its template renders")):
            if before.get(key) not in (None, data_metadata[key]):
                hint = "bring back what it began with, or start a new run"
                raise HarnessError(str(self.folder.path), f"{what} are no longer those that the run began with", hint)

    # -- one stage ----------------------------------------------------------------------------------------------------

    def _run_stage(self, staged_model: StagedModel, stage_index: int) -> None:
        data = self.prepared.data.stages[stage_index - 1]
        stage = data.stage
        done = (self.folder.stage_folder(stage.name) / "end").is_dir()
        totals = self.folder.read_json(f"stages/{stage.name}/trained.json") if done else None
        steps = data.count_steps(self.processes.world_size)
        self._emit("stage_started", stage_index, stage=stage, steps=steps, again=totals is not None)
        trained = self._train_stage(staged_model, stage_index, totals)
        if totals is not None and not self.resuming:
            self._emit_past_steps(stage_index, stage.name)
        self.evaluator.evaluate_stage(staged_model, stage_index)
        self.evaluator.evaluate_variants(staged_model, stage_index)
        self._emit("stage_finished", stage_index, stage=stage, trained=trained, folder=str(self.folder.path))

    def _finish_stage(
        self,
        staged_model: StagedModel,
        stage_index: int,
        stage_result: train_stage.StageResult,
        early_stopper: early_stopping.EarlyStopper | None,
    ) -> None:
        """Let the mitigations learn from the stage, and keep what it came to."""
        data = self.prepared.data.stages[stage_index - 1]
        if early_stopper is not None:
            for name, state in early_stopper.restore_best_weights(staged_model.model, stage_result.steps).items():
                staged_model.active_mitigations[name].load_state_dict(state)
        train_stage.seed_mitigations(self._mitigation_seed(stage_index))
        with self._autocast(staged_model):
            staged_model.finish_stage(stage_index, data.rows)
        self._save_stage(staged_model, stage_result, data.stage.name, stage_index)
        if early_stopper is not None:
            early_stopper.delete_best_weights()
        self.processes.broadcast(stage_result.totals())
        self.processes.barrier()  # the others have read it

    def _create_early_stopper(
        self, staged_model: StagedModel, stage_index: int, checkpoint: Path | None
    ) -> early_stopping.EarlyStopper | None:
        data = self.prepared.data.stages[stage_index - 1]
        if data.stage.train["evaluate_steps"] is None:
            return None
        suites, metrics = preflight.mid_stage_suites(data.stage, self.prepared.plan.suites, self.prepared.metrics)
        return early_stopping.EarlyStopper(
            data.stage,
            data.count_steps(self.processes.world_size),
            self.folder,
            lambda: self.evaluator.evaluate(staged_model, stage_index, None, suites, metrics),
            self.evaluator.evaluations[0],
            lambda place: save_stage_snapshot(place, staged_model.model, mitigation_states(staged_model)),
            lambda kind, **facts: self._emit(kind, stage_index, **facts),
            checkpoint_step(checkpoint),
        )

    def _emit_past_steps(self, stage_index: int, name: str) -> None:
        """Tell the listeners of the updates and evaluations of a stage that was taken over from another arm."""
        for metrics in self._read_stage_lines(name, "steps.jsonl"):
            self._emit("step", stage_index, step=metrics.pop("step"), metrics=_null_to_nan(metrics))
        for measured in self._read_stage_lines(name, "evaluations.jsonl"):
            self._emit("measured", stage_index, **{**measured, "scores": _null_to_nan(measured["scores"])})

    def _read_stage_lines(self, name: str, file_name: str) -> list[dict[str, Any]]:
        file = self.folder.stage_folder(name) / file_name
        return [load_json(one) for one in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []

    def _discard_repeated_steps(self, name: str, checkpoint: Path | None) -> None:
        """Take out of `steps.jsonl` the updates that are done anew."""
        file = self.folder.stage_folder(name) / "steps.jsonl"
        if file.is_file():
            last = checkpoint_step(checkpoint)
            whole = [line for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
            file.write_text("".join(one for one in whole if load_json(one)["step"] <= last), encoding="utf-8")

    def _save_stage(
        self, staged_model: StagedModel, stage_result: train_stage.StageResult, name: str, stage_index: int
    ) -> None:
        """Keep what later stages, people, and other processes need of this one."""
        try:
            save_stage_snapshot(
                self.folder.stage_folder(name) / "end", staged_model.model, mitigation_states(staged_model)
            )
        except RunError as error:  # all that the run needs is in memory still, if it is in no other process
            if self.processes.world_size > 1:
                raise
            text = f"{error}; the run goes on, and trains this stage again if it is broken off and resumed"
            self.registry.emit(Event("warning", data={"text": text}))
        # An adapter whose base has earlier ones merged into it would be loaded onto the wrong weights.
        if (
            stage_index < len(self.prepared.plan.stages)
            and save.saves_as_adapter(staged_model.model)
            and not staged_model.merged
        ):
            save.save_model(staged_model.model, self.prepared.tokenizer, self.folder.stage_folder(name) / "model")
        self.folder.write_json(f"stages/{name}/trained.json", stage_result.totals())

    def _create_step_callback(
        self, stage_index: int, name: str, checkpoint: Path | None
    ) -> Callable[[int, Mapping[str, float]], None]:
        """Writes each logged update to the run's folder, whatever the tracker does, and tells the listeners.

        What is done anew is taken out of the file at the first update that is, so that a stage which cannot be gone on
        with loses nothing.
        """
        first = True

        def step(step: int, metrics: Mapping[str, float]) -> None:
            nonlocal first
            if first:
                self._discard_repeated_steps(name, checkpoint)
            first = False
            self.folder.append_json_line(f"stages/{name}/steps.jsonl", {"step": step, **metrics})
            self._emit("step", stage_index, step=step, metrics=metrics)

        return step

    # -- facts --------------------------------------------------------------------------------------------------------

    def _emit(self, event_type: str, stage_index: int = 0, /, **payload: Any) -> None:
        self.registry.emit(Event(event_type, stage_index, payload))

    def _run_info(self) -> dict[str, Any]:
        path = self.folder.path
        named = {"name": self.prepared.plan.name, "id": path.name, "folder": str(path)}
        return {**named, "spec": self.spec.document, "plan": self.prepared.plan}


def _null_to_nan(values: Mapping[str, Any]) -> dict[str, float]:
    """Values as they were before JSON, which has null for what is no finite number."""
    return {name: math.nan if value is None else value for name, value in values.items()}
