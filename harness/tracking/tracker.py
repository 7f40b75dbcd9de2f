"""Events → MLflow: a parent run with one child a stage, its parameters, metrics, data sets and files.

Listens to a run through `harness_on_event` and is known to nobody but `harness.runner`. A store that fails, hangs or is
not there never holds a run up: one warning, and the rest of the run goes untracked; all of it is in the run's folder.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.hookspecs import hookimpl
from harness.tracking import artifacts, mlflow_entries, mlflow_store
from harness.tracking.background import END_TIMEOUT, START_TIMEOUT, TrackingQueue
from harness.tracking.experiment_tracker import ExperimentTracker
from harness.tracking.final_upload import FinalUpload
from harness.types import Evaluation, Event, Plan
from harness.utils import redaction
from harness.utils.redaction import Secrets

if TYPE_CHECKING:
    from mlflow.entities import Metric

    from harness.tracking.mlflow_run import MlflowRun


class SystemMetrics:
    """Writes `system/…` metrics (CPU, memory, disk, network; GPUs with `nvidia-ml-py`) of this machine to a run.

    One sample every 10 s; $MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL says otherwise. A store that does not take them ends
    the monitor and nothing else. Without `psutil` nothing is written.
    """

    def __init__(self, uri: str, run_id: str, *, resumed: bool) -> None:
        self._monitor: Any = None
        try:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._monitor = SystemMetricsMonitor(run_id, resume_logging=resumed, tracking_uri=uri)
        except ImportError:
            return
        self._monitor.start()

    def finish(self) -> None:
        """Stop, with what was sampled written. Must come before the run is ended."""
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None


__all__ = ["ExperimentTracker", "Tracker"]

FLUSH_STEPS, FLUSH_SECONDS = 20, 5.0


def _print_warning(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


class Tracker:
    """Writes one run to an MLflow tracking store.

    settings: the spec's `track`: `enabled`, `experiment` (None: `name`), `uri` (None: $MLFLOW_TRACKING_URI, else
        `sqlite:///mlflow.db`), `system_metrics`, `model` and `register`. warn: called on the thread of the run with one
        line that says what failed.
    parent_run_id: the MLflow id of the experiment that the run is an arm of; `run_started` then says the arm's `name`
        and `changes`. resume_info: what `mlflow.json` in the folder of a run that is gone on with says; its run is
        opened again, and nothing that it has is written twice.

    Metrics of the run are `suite/score` with the stage as step (the base model is step 0) and, at the end,
    `suite/score/delta` and `forgetting/<score>/<summary>`; those of a stage's child are the training's own and
    `during/<suite>/<score>` of evaluations within the stage, by update, and `epoch_share/<source>/<unit>`, by epoch.
    `mlflow.json` in the run's folder says where the run is tracked.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        name: str,
        warn: Callable[[str], None] = _print_warning,
        *,
        parent_run_id: str | None = None,
        resume_info: Mapping[str, Any] | None = None,
    ) -> None:
        self._settings, self._enabled = settings, bool(settings["enabled"])
        self._uri = mlflow_store.resume_uri(mlflow_store.tracking_uri(settings["uri"]), resume_info)
        self._experiment: str = settings["experiment"] or name
        self._parent, self._again = parent_run_id, resume_info
        self._queue = TrackingQueue(self._uri, warn)
        self._monitor: SystemMetrics | None = None
        self._plan: Plan | None = None
        self._folder = Path()
        self._digests: Mapping[str, str] = {}
        self._shares: Sequence[Mapping[str, Mapping[str, float]]] = ()
        self._epochs: Sequence[Sequence[Mapping[str, Mapping[str, float]]]] = ()
        self._swept: tuple[str, ...] = ()
        self._steps: list[Metric] = []
        self._step_count, self._flushed = 0, time.monotonic()

    @property
    def run_id(self) -> str | None:
        """The MLflow id of the parent run; None before `run_started`, and when no run could be made."""
        return None if self._queue.mlflow_run is None else self._queue.mlflow_run.run_id

    @property
    def uri(self) -> str | None:
        """The tracking URI without its password; None when tracking is off or has failed."""
        return redaction.redact_text(self._uri) if self._enabled and not self._queue.failed else None

    @hookimpl
    def harness_on_event(self, event: Event) -> None:
        """Take an event in. Raises nothing, and does not wait for the store except at a run's start and end."""
        handler = getattr(self, f"_{event.type}", None)
        if handler is None or not self._enabled or self._queue.failed:
            return
        try:
            handler(event.stage, event.data)
        except Exception as error:
            self._queue.fail(error)
        self._queue.report_failures()

    def _run_started(self, stage: int, data: Mapping[str, Any]) -> None:
        self._plan, self._folder = data["plan"], Path(data["folder"])
        self._queue.local_folder = self._folder
        # Imported here and not in the background: this thread goes on to import half of the same libraries.
        from harness.tracking.mlflow_run import MlflowRun

        mlflow_store.import_mlflow()
        secrets = self._queue.secrets = Secrets.collect(data["spec"], data["environment"], self._uri)
        spec, environment = redaction.redact(data["spec"]), redaction.redact(data["environment"])
        named = {"harness.id": str(data["id"]), "harness.folder": str(self._folder.absolute()), "harness.kind": "run"}
        tags = mlflow_entries.build_run_tags(spec, environment) | named
        arm: dict[str, str] = {}
        if data.get("arm"):
            also, arm = mlflow_entries.arm_tags_and_params(data["arm"])
            tags |= also
            self._swept = tuple(arm)

        def make() -> MlflowRun:
            record = self._try_reopen_run(MlflowRun, tags, secrets)
            if record is None:
                record = MlflowRun.create(self._uri, self._experiment, self._folder.name, tags, secrets, self._parent)
                uri = redaction.redact_text(mlflow_store.absolute_uri(self._uri))
                facts = {"uri": uri, "experiment": self._experiment, "run_id": record.run_id}
                (self._folder / "mlflow.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            return record

        self._queue.start_run(make, START_TIMEOUT)
        self._queue.submit(lambda record: record.log_params(record.run_id, {**redaction.flatten_settings(spec), **arm}))
        self._queue.submit(lambda record: record.log_json("spec.json", spec))
        self._queue.submit(lambda record: record.log_json("environment.json", environment))
        if self._settings.get("system_metrics"):
            self._queue.submit_optional("system metrics", self._start_system_metrics)

    def _try_reopen_run(
        self, run_class: type[MlflowRun], tags: Mapping[str, str], secrets: Secrets
    ) -> MlflowRun | None:
        if self._again is None:
            return None
        try:
            return run_class.reopen(self._uri, str(self._again["run_id"]), tags, secrets)
        except LookupError as gone:
            self._queue.warn_later(f"MLflow has lost what was tracked before ({gone}): the run goes on in a new one")
            return None

    def _start_system_metrics(self, mlflow_run: MlflowRun) -> None:
        self._monitor = SystemMetrics(self._uri, mlflow_run.run_id, resumed=mlflow_run.resumed)

    def _data(self, stage: int, data: Mapping[str, Any]) -> None:
        self._shares, self._epochs = data.get("shares", ()), data.get("epoch_shares", ())
        plan, self._digests = self._plan, data["digests"]
        tags = {"template_fingerprint": str(data["template"])}
        tags |= {f"data/{name}": str(digest) for name, digest in self._digests.items()}
        self._queue.submit(lambda record: record.set_tags(tags))
        if plan is not None:
            self._queue.submit(lambda record: record.log_datasets(plan, self._digests))

    def _evaluated(self, stage: int, data: Mapping[str, Any]) -> None:
        evaluations: Sequence[Evaluation] = data["evaluations"]
        metrics = mlflow_entries.to_mlflow_metrics(
            {f"{one.suite}/{score.name}": score.value for one in evaluations for score in one.scores}, stage
        )
        self._queue.submit(lambda record: record.log_metrics(metrics))

    def _stage_started(self, stage: int, data: Mapping[str, Any]) -> None:
        plan, started = self._plan, data["stage"]
        self._steps, self._step_count, self._flushed = [], 0, time.monotonic()
        self._queue.submit(lambda record: record.start_stage_run(stage, started))
        shares = self._shares[stage - 1] if stage <= len(self._shares) else {}
        realised = {f"share/{name}/{unit}": share for name, units in shares.items() for unit, share in units.items()}
        self._steps += mlflow_entries.to_mlflow_metrics(realised, 0)
        for values, epoch in mlflow_entries.share_metrics(
            self._epochs[stage - 1] if stage <= len(self._epochs) else ()
        ):
            self._steps += mlflow_entries.to_mlflow_metrics(values, epoch)
        if self._again is not None:
            # What a run that was cut off had not sent yet is in its folder; what it had sent is not written twice.
            for step, values in artifacts.load_step_metrics(
                self._folder / "stages" / started.name / "steps.jsonl"
            ).items():
                self._steps += mlflow_entries.to_mlflow_metrics(values, step)
            for step, values in artifacts.load_mid_stage_metrics(
                self._folder / "stages" / started.name / "evaluations.jsonl"
            ).items():
                self._steps += mlflow_entries.to_mlflow_metrics(values, step)
        if plan is not None:
            self._queue.submit(lambda record: record.log_datasets(plan, self._digests, started))

    def _step(self, stage: int, data: Mapping[str, Any]) -> None:
        self._steps += mlflow_entries.to_mlflow_metrics(data["metrics"], data["step"])
        self._step_count += 1
        if self._step_count >= FLUSH_STEPS or time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self._flush_step_metrics()

    def _measured(self, stage: int, data: Mapping[str, Any]) -> None:
        self._steps += mlflow_entries.to_mlflow_metrics(artifacts.mid_stage_metrics(data), data["step"])
        self._flush_step_metrics()

    def _stage_finished(self, stage: int, data: Mapping[str, Any]) -> None:
        trained = data["trained"]
        totals = {"stage/loss": trained.loss, "stage/seconds": trained.seconds, "stage/tokens": trained.tokens}
        self._steps += mlflow_entries.to_mlflow_metrics(totals, trained.steps)
        self._flush_step_metrics()
        self._queue.submit(lambda record: record.end_stage_run("FINISHED"))

    def _run_finished(self, stage: int, data: Mapping[str, Any]) -> None:
        finish = FinalUpload(self._queue, self._folder)
        finish.log_report(data["report"], stage, self._swept)
        finish.upload_files()
        # What does not pass its gate is kept, and not put where it would be taken into service.
        register = self._settings.get("register") if data["report"].passed else None
        patience = END_TIMEOUT + finish.upload_model(str(self._settings.get("model", "none")), register)
        self._end_run("FINISHED", patience)

    def _run_failed(self, stage: int, data: Mapping[str, Any]) -> None:
        if self._queue.mlflow_run is None:
            return
        self._flush_step_metrics()
        self._queue.submit(lambda record: record.end_stage_run("FAILED"))
        text = redaction.redact_text(str(data["error"]))[: redaction.MAX_VALUE_LENGTH]
        self._queue.submit(lambda record: record.set_tag("error", text))
        FinalUpload(self._queue, self._folder).upload_files()
        self._end_run("FAILED", END_TIMEOUT)

    def _end_run(self, status: str, timeout: float) -> None:
        def end(record: MlflowRun) -> None:
            if self._monitor is not None:
                self._monitor.finish()
            record.end(status)

        self._queue.submit(end)
        self._queue.wait(timeout)

    def _flush_step_metrics(self) -> None:
        metrics, self._steps = self._steps, []
        self._step_count, self._flushed = 0, time.monotonic()
        if metrics:
            self._queue.submit(lambda record: record.log_metrics(metrics, to_stage_run=True))
