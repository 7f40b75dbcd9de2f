"""Writes the events of a run to MLflow: a parent run with one child run for each stage.

A listener of the hook `harness_on_event`; only `harness.runner` knows it. A store that fails or does not answer never
stops a run: one warning is given and the rest of the run is not tracked. All of it is in the run's folder.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import singledispatchmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import events
from harness.events import SharesBySource
from harness.hookspecs import hookimpl
from harness.interfaces.tracker import Tracker
from harness.tracking import artifacts, mlflow_entries, mlflow_store
from harness.tracking.background import END_TIMEOUT
from harness.tracking.experiment_tracker import ExperimentTracker
from harness.tracking.final_upload import FinalUpload
from harness.tracking.run_opening import RecordedTimes
from harness.tracking.tracked_run import TrackedRun
from harness.types import Plan
from harness.utils import redaction
from harness.utils.redaction import Secrets

if TYPE_CHECKING:
    from mlflow.entities import Metric

    from harness.tracking.mlflow_run import MlflowRun

__all__ = ["ExperimentTracker", "MlflowTracker"]

FLUSH_STEPS, FLUSH_SECONDS = 20, 5.0
"""Step metrics are sent after so many steps or seconds, whichever comes first."""


class SystemMetrics:
    """Writes `system/…` metrics of this machine to a run: CPU, memory, disk, network; GPUs with `nvidia-ml-py`.

    One sample every 10 s, or as $MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL sets. If the store rejects them, only the
    monitor stops. Without `psutil` nothing is written.
    """

    def __init__(self, uri: str, run_id: str, *, resumed: bool) -> None:
        """Start the monitor.

        Args:
            uri: The tracking URI.
            run_id: The MLflow id of the run.
            resumed: Whether the run has samples already, so that the new ones are appended.
        """
        self._monitor: Any = None
        try:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            monitor_class: Any = SystemMetricsMonitor  # MLflow leaves its constructor untyped
            self._monitor = monitor_class(run_id, resume_logging=resumed, tracking_uri=uri)
        except ImportError:
            return
        self._monitor.start()

    def finish(self) -> None:
        """Stop, and write the remaining samples. Call it before the run is ended."""
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None


def create_mlflow_tracker(
    experiment: str | None, uri: str | None, system_metrics: bool, model: str, register: str | None
) -> MlflowTracker:
    """Return the tracker `mlflow` for a single new run. See `MlflowTracker` for the options."""
    options = {"experiment": experiment, "uri": uri, "system_metrics": system_metrics}
    return MlflowTracker({**options, "model": model, "register": register, "enabled": True})


def _print_warning(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


class MlflowTracker(TrackedRun, Tracker):
    """Writes one run to an MLflow tracking store.

    Metrics of the parent run are `suite/score`, with the stage as step (0: the base model), and at the end
    `suite/score/delta` and `forgetting/<score>/<summary>`. Metrics of a stage's child run are those of the training,
    `during/<suite>/<score>` by optimizer step, and `epoch_share/<source>/<unit>` by epoch. `mlflow.json` in the run's
    folder names the MLflow run.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        name: str | None = None,
        warn: Callable[[str], None] = _print_warning,
        *,
        parent_run_id: str | None = None,
        resume_info: Mapping[str, Any] | None = None,
        recorded: RecordedTimes | None = None,
    ) -> None:
        """Create a tracker; the MLflow run is created at `RunStarted`.

        Args:
            settings: The options of the tracker `mlflow`, and `enabled`. `experiment` None: `name`; `uri` None:
                $MLFLOW_TRACKING_URI, or `sqlite:///mlflow.db`.
            name: Name of the experiment, unless the settings have one; None: the name of the run.
            warn: Receives one line that states what failed, on the thread of the run.
            parent_run_id: MLflow id of the experiment's run, if the run is an arm.
            resume_info: Content of `mlflow.json` of a resumed run. Its MLflow run is reopened, and nothing that it has
                is written twice.
            recorded: The times of a run that is sent later. Its steps are read from its folder, as those of a resumed
                run.
        """
        super().__init__(settings, name, warn, resume_info=resume_info, recorded=recorded)
        self._parent_run_id = parent_run_id
        self._monitor: SystemMetrics | None = None
        self._plan: Plan | None = None
        self._digests: Mapping[str, str] = {}
        self._shares: Sequence[SharesBySource] = ()
        self._epoch_shares: Sequence[Sequence[SharesBySource]] = ()
        self._arm_params: tuple[str, ...] = ()
        self._step_metrics: list[Metric] = []
        self._unsent_steps, self._flushed_at = 0, time.monotonic()

    @hookimpl
    def harness_on_event(self, event: events.Event) -> None:
        """Record an event; see `on_event`."""
        self.on_event(event)

    def on_event(self, event: events.Event) -> None:
        """Record an event. Raises nothing, and waits for the store only at the start and end of a run."""
        self._run_guarded(lambda: self._record(event))

    @singledispatchmethod
    def _record(self, event: events.Event) -> None:
        """Record an event by its class; other classes are ignored."""

    @_record.register
    def _start_run(self, event: events.RunStarted) -> None:
        self._plan, self._folder = event.plan, Path(event.folder)
        self._queue.set_folder(self._folder.parents[1] if event.arm else self._folder)
        # Imported on this thread, which imports half of the same libraries next.
        from harness.tracking.mlflow_run import RunIdentity

        mlflow_store.import_mlflow()
        secrets = Secrets.collect(event.spec, event.environment, self._uri)
        spec, environment = redaction.redact(event.spec), redaction.redact(event.environment)
        tags = mlflow_entries.build_run_tags(spec, environment) | {
            "harness.id": event.id,
            "harness.folder": str(self._folder.absolute()),
            "harness.kind": "run",
        }
        params = mlflow_entries.build_run_params(spec, event.changed)
        overrides: Sequence[str] = environment.get("overrides") or ()
        if event.arm:
            arm_tags, arm_params = mlflow_entries.arm_tags_and_params(event.arm)
            tags, params, overrides = tags | arm_tags, params | arm_params, ()
            self._arm_params = tuple(arm_params)
        identity = RunIdentity(
            mlflow_entries.run_name(self._folder.name, overrides),
            self._experiment or event.name,
            self._parent_run_id,
            None if self._recorded is None else self._recorded.started_at,
        )
        self._open_run(identity, tags, secrets)
        self._queue.submit(lambda mlflow_run: mlflow_run.log_params(params))
        self._queue.submit(lambda mlflow_run: mlflow_run.log_json("spec.json", spec))
        self._queue.submit(lambda mlflow_run: mlflow_run.log_json("environment.json", environment))
        if self._settings.get("system_metrics"):
            self._queue.submit_optional("system metrics", self._start_system_metrics)

    @_record.register
    def _log_data(self, event: events.DataPrepared) -> None:
        self._shares, self._epoch_shares, self._digests = event.shares, event.epoch_shares, event.digests
        tags = {"template_fingerprint": event.template}
        tags |= {f"data/{name}": str(digest) for name, digest in event.digests.items()}
        self._queue.submit(lambda mlflow_run: mlflow_run.set_tags(tags))
        plan = self._plan
        if plan is not None:
            self._queue.submit(lambda mlflow_run: mlflow_run.log_datasets(plan, event.digests))

    @_record.register
    def _note_written_rows(self, event: events.RowsWritten) -> None:
        if event.shares:
            index = event.stage_index - 1
            self._shares = [*self._shares[:index], event.shares, *self._shares[index + 1 :]]
            self._epoch_shares = [*self._epoch_shares[:index], event.epoch_shares, *self._epoch_shares[index + 1 :]]

    @_record.register
    def _log_scores(self, event: events.SuitesEvaluated) -> None:
        scores = {
            f"{evaluation.suite}/{score.name}": score.value
            for evaluation in event.evaluations
            for score in evaluation.scores
        }
        metrics = mlflow_entries.to_mlflow_metrics(scores, event.stage_index)
        self._queue.submit(lambda mlflow_run: mlflow_run.log_metrics(metrics))

    @_record.register
    def _start_stage(self, event: events.StageStarted) -> None:
        plan, stage, stage_index = self._plan, event.stage, event.stage_index
        self._step_metrics, self._unsent_steps, self._flushed_at = [], 0, time.monotonic()
        self._queue.submit(lambda mlflow_run: mlflow_run.start_stage_run(stage_index, stage))
        shares = self._shares[stage_index - 1] if stage_index <= len(self._shares) else {}
        self._step_metrics += mlflow_entries.to_mlflow_metrics(
            {f"share/{name}/{unit}": share for name, units in shares.items() for unit, share in units.items()}, 0
        )
        epoch_shares = self._epoch_shares[stage_index - 1] if stage_index <= len(self._epoch_shares) else ()
        for values, epoch in mlflow_entries.share_metrics(epoch_shares):
            self._step_metrics += mlflow_entries.to_mlflow_metrics(values, epoch)
        if self._resume_info is not None or self._recorded is not None:
            self._add_stored_metrics(self._folder / "stages" / stage.name)
        if plan is not None:
            self._queue.submit(lambda mlflow_run: mlflow_run.log_datasets(plan, self._digests, stage))

    @_record.register
    def _log_step(self, event: events.StepLogged) -> None:
        self._step_metrics += mlflow_entries.to_mlflow_metrics(event.metrics, event.step)
        self._unsent_steps += 1
        if self._unsent_steps >= FLUSH_STEPS or time.monotonic() - self._flushed_at >= FLUSH_SECONDS:
            self._flush_step_metrics()

    @_record.register
    def _log_mid_stage_scores(self, event: events.MidStageEvaluated) -> None:
        entry = {"scores": event.scores, "combined": event.combined, "mitigations": event.mitigations}
        self._step_metrics += mlflow_entries.to_mlflow_metrics(artifacts.mid_stage_metrics(entry), event.step)
        self._flush_step_metrics()

    @_record.register
    def _finish_stage(self, event: events.StageFinished) -> None:
        totals = event.trained
        values = {"stage/loss": totals.loss, "stage/seconds": totals.seconds, "stage/tokens": totals.tokens}
        self._step_metrics += mlflow_entries.to_mlflow_metrics(values, totals.steps)
        self._flush_step_metrics()
        self._queue.submit(lambda mlflow_run: mlflow_run.end_stage_run("FINISHED"))

    @_record.register
    def _finish_run(self, event: events.RunFinished) -> None:
        upload = FinalUpload(self._queue, self._folder)
        upload.log_report(event.report, event.stage_index, self._arm_params)
        upload.upload_files()
        upload.log_ratings()
        # A model that does not pass its gate is uploaded but not registered, so that nobody deploys it.
        register = self._settings.get("register") if event.report.passed else None
        upload_timeout = upload.upload_model(str(self._settings.get("model", "none")), register)
        self._end_run("FINISHED", END_TIMEOUT + upload_timeout)

    @_record.register
    def _fail_run(self, event: events.RunFailed) -> None:
        if self._queue.mlflow_run is None:
            return
        self._flush_step_metrics()
        status = "KILLED" if event.interrupted else "FAILED"
        self._queue.submit(lambda mlflow_run: mlflow_run.end_stage_run(status))
        text = redaction.redact_text(event.error)[: redaction.MAX_VALUE_LENGTH]
        tags = {"error": text, mlflow_entries.NOTE_TAG: text if event.interrupted else f"Failed: {text}"}
        self._queue.submit(lambda mlflow_run: mlflow_run.set_tags(tags))
        FinalUpload(self._queue, self._folder).upload_files()
        self._end_run(status, END_TIMEOUT)

    def _add_stored_metrics(self, stage_folder: Path) -> None:
        """Add the metrics in a resumed stage's folder: those that were not sent yet. The others are not sent twice."""
        for step, values in artifacts.load_step_metrics(stage_folder / "steps.jsonl").items():
            self._step_metrics += mlflow_entries.to_mlflow_metrics(values, step)
        for step, values in artifacts.load_mid_stage_metrics(stage_folder / "evaluations.jsonl").items():
            self._step_metrics += mlflow_entries.to_mlflow_metrics(values, step)

    def _start_system_metrics(self, mlflow_run: MlflowRun) -> None:
        run_id, is_new = mlflow_run.start_system_run()
        self._monitor = SystemMetrics(self._uri, run_id, resumed=not is_new)

    def _end_run(self, status: str, timeout: float) -> None:
        def end(mlflow_run: MlflowRun) -> None:
            if self._monitor is not None:
                self._monitor.finish()
            mlflow_run.end(status, None if self._recorded is None else self._recorded.ended_at)

        self._queue.submit(end)
        self._queue.wait(timeout)

    def _flush_step_metrics(self) -> None:
        metrics, self._step_metrics = self._step_metrics, []
        self._unsent_steps, self._flushed_at = 0, time.monotonic()
        if metrics:
            self._queue.submit(lambda mlflow_run: mlflow_run.log_metrics(metrics, to_stage_run=True))
