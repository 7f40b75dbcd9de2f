"""Events → MLflow: a parent run with one child a stage, its parameters, metrics, data sets and files.

Listens to a run through `harness_observe` and is known to nobody but `harness.run`. A store that fails, hangs or is not
there never holds a run up: one warning, and the rest of the run goes untracked; all of it is in the run's folder.
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
from harness.tracking.background import FIRST_ANSWER, LAST_ANSWER, Line
from harness.tracking.experiment_tracker import ExperimentTracker
from harness.tracking.final_upload import Finish
from harness.types import Evaluation, Event, Plan
from harness.utils import redaction
from harness.utils.redaction import Secrets

if TYPE_CHECKING:
    from mlflow.entities import Metric

    from harness.tracking.mlflow_run import Record


class Monitor:
    """Writes `system/…` metrics (CPU, memory, disk, network; GPUs with `nvidia-ml-py`) of this machine to a run.

    One sample every 10 s; $MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL says otherwise. A store that does not take them ends
    the monitor and nothing else. Without `psutil` nothing is written.
    """

    def __init__(self, uri: str, run_id: str, *, again: bool) -> None:
        self._monitor: Any = None
        try:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self._monitor = SystemMetricsMonitor(run_id, resume_logging=again, tracking_uri=uri)
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


def _print(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


class Tracker:
    """Writes one run to an MLflow tracking store.

    settings: the spec's `track`: `enabled`, `experiment` (None: `name`), `uri` (None: $MLFLOW_TRACKING_URI, else
        `sqlite:///mlflow.db`), `system_metrics`, `model` and `register`. warn: called on the thread of the run with one
        line that says what failed.
    parent: the MLflow id of the experiment that the run is an arm of; `run_started` then says the arm's `name` and
        `changes`. again: what `mlflow.json` in the folder of a run that is gone on with says; its run is opened again,
        and nothing that it has is written twice.

    Metrics of the run are `suite/score` with the stage as step (the base model is step 0) and, at the end,
    `suite/score/delta` and `forgetting/<score>/<summary>`; those of a stage's child are the training's own and
    `during/<suite>/<score>` of evaluations within the stage, by update, and `epoch_share/<source>/<unit>`, by epoch.
    `mlflow.json` in the run's folder says where the run is tracked.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        name: str,
        warn: Callable[[str], None] = _print,
        *,
        parent: str | None = None,
        again: Mapping[str, Any] | None = None,
    ) -> None:
        self._settings, self._enabled = settings, bool(settings["enabled"])
        self._uri = mlflow_store.same_or_kept(mlflow_store.tracking_uri(settings["uri"]), again)
        self._experiment: str = settings["experiment"] or name
        self._parent, self._again = parent, again
        self._line = Line(self._uri, warn)
        self._monitor: Monitor | None = None
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
        return None if self._line.record is None else self._line.record.run_id

    @property
    def uri(self) -> str | None:
        """The tracking URI without its password; None when tracking is off or has failed."""
        return redaction.without_secrets(self._uri) if self._enabled and not self._line.failed else None

    @hookimpl
    def harness_observe(self, event: Event) -> None:
        """Take an event in. Raises nothing, and does not wait for the store except at a run's start and end."""
        handler = getattr(self, f"_{event.kind}", None)
        if handler is None or not self._enabled or self._line.failed:
            return
        try:
            handler(event.stage, event.data)
        except Exception as error:
            self._line.fail(error)
        self._line.look()

    def _run_started(self, stage: int, data: Mapping[str, Any]) -> None:
        self._plan, self._folder = data["plan"], Path(data["folder"])
        self._line.kept = self._folder
        # Imported here and not in the background: this thread goes on to import half of the same libraries.
        from harness.tracking.mlflow_run import Record

        mlflow_store.import_mlflow()
        secrets = self._line.secrets = Secrets.known(data["spec"], data["environment"], self._uri)
        spec, environment = redaction.public(data["spec"]), redaction.public(data["environment"])
        named = {"harness.id": str(data["id"]), "harness.folder": str(self._folder.absolute()), "harness.kind": "run"}
        tags = mlflow_entries.run_tags(spec, environment) | named
        arm: dict[str, str] = {}
        if data.get("arm"):
            also, arm = mlflow_entries.arm_entries(data["arm"])
            tags |= also
            self._swept = tuple(arm)

        def make() -> Record:
            record = self._reopened(Record, tags, secrets)
            if record is None:
                record = Record.new(self._uri, self._experiment, self._folder.name, tags, secrets, self._parent)
                uri = redaction.without_secrets(mlflow_store.absolute(self._uri))
                facts = {"uri": uri, "experiment": self._experiment, "run_id": record.run_id}
                (self._folder / "mlflow.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            return record

        self._line.open(make, FIRST_ANSWER)
        self._line.put(lambda record: record.params(record.run_id, {**redaction.parameters(spec), **arm}))
        self._line.put(lambda record: record.text("spec.json", spec))
        self._line.put(lambda record: record.text("environment.json", environment))
        if self._settings.get("system_metrics"):
            self._line.try_("system metrics", self._watch)

    def _reopened(self, record: type[Record], tags: Mapping[str, str], secrets: Secrets) -> Record | None:
        if self._again is None:
            return None
        try:
            return record.reopened(self._uri, str(self._again["run_id"]), tags, secrets)
        except LookupError as gone:
            self._line.aside(f"MLflow has lost what was tracked before ({gone}): the run goes on in a new one")
            return None

    def _watch(self, record: Record) -> None:
        self._monitor = Monitor(self._uri, record.run_id, again=record.again)

    def _data(self, stage: int, data: Mapping[str, Any]) -> None:
        self._shares, self._epochs = data.get("shares", ()), data.get("epoch_shares", ())
        plan, self._digests = self._plan, data["digests"]
        tags = {"template_fingerprint": str(data["template"])}
        tags |= {f"data/{name}": str(digest) for name, digest in self._digests.items()}
        self._line.put(lambda record: record.tags(tags))
        if plan is not None:
            self._line.put(lambda record: record.inputs(plan, self._digests))

    def _evaluated(self, stage: int, data: Mapping[str, Any]) -> None:
        evaluations: Sequence[Evaluation] = data["evaluations"]
        metrics = mlflow_entries.metrics(
            {f"{one.suite}/{score.name}": score.value for one in evaluations for score in one.scores}, stage
        )
        self._line.put(lambda record: record.metrics(metrics))

    def _stage_started(self, stage: int, data: Mapping[str, Any]) -> None:
        plan, started = self._plan, data["stage"]
        self._steps, self._step_count, self._flushed = [], 0, time.monotonic()
        self._line.put(lambda record: record.begin_child(stage, started))
        shares = self._shares[stage - 1] if stage <= len(self._shares) else {}
        realised = {f"share/{name}/{unit}": share for name, units in shares.items() for unit, share in units.items()}
        self._steps += mlflow_entries.metrics(realised, 0)
        for values, epoch in mlflow_entries.realised(self._epochs[stage - 1] if stage <= len(self._epochs) else ()):
            self._steps += mlflow_entries.metrics(values, epoch)
        if self._again is not None:
            # What a run that was cut off had not sent yet is in its folder; what it had sent is not written twice.
            for step, values in artifacts.steps(self._folder / "stages" / started.name / "steps.jsonl").items():
                self._steps += mlflow_entries.metrics(values, step)
            for step, values in artifacts.within(self._folder / "stages" / started.name / "evaluations.jsonl").items():
                self._steps += mlflow_entries.metrics(values, step)
        if plan is not None:
            self._line.put(lambda record: record.inputs(plan, self._digests, started))

    def _step(self, stage: int, data: Mapping[str, Any]) -> None:
        self._steps += mlflow_entries.metrics(data["metrics"], data["step"])
        self._step_count += 1
        if self._step_count >= FLUSH_STEPS or time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self._flush()

    def _measured(self, stage: int, data: Mapping[str, Any]) -> None:
        self._steps += mlflow_entries.metrics(artifacts.during(data), data["step"])
        self._flush()

    def _stage_finished(self, stage: int, data: Mapping[str, Any]) -> None:
        trained = data["trained"]
        totals = {"stage/loss": trained.loss, "stage/seconds": trained.seconds, "stage/tokens": trained.tokens}
        self._steps += mlflow_entries.metrics(totals, trained.steps)
        self._flush()
        self._line.put(lambda record: record.end_child("FINISHED"))

    def _run_finished(self, stage: int, data: Mapping[str, Any]) -> None:
        finish = Finish(self._line, self._folder)
        finish.report(data["report"], stage, self._swept)
        finish.files()
        # What does not pass its gate is kept, and not put where it would be taken into service.
        register = self._settings.get("register") if data["report"].passed else None
        patience = LAST_ANSWER + finish.model(str(self._settings.get("model", "none")), register)
        self._end("FINISHED", patience)

    def _run_failed(self, stage: int, data: Mapping[str, Any]) -> None:
        if self._line.record is None:
            return
        self._flush()
        self._line.put(lambda record: record.end_child("FAILED"))
        text = redaction.without_secrets(str(data["error"]))[: redaction.LONGEST_VALUE]
        self._line.put(lambda record: record.tag("error", text))
        Finish(self._line, self._folder).files()
        self._end("FAILED", LAST_ANSWER)

    def _end(self, status: str, patience: float) -> None:
        def end(record: Record) -> None:
            if self._monitor is not None:
                self._monitor.finish()
            record.end(status)

        self._line.put(end)
        self._line.wait(patience)

    def _flush(self) -> None:
        metrics, self._steps = self._steps, []
        self._step_count, self._flushed = 0, time.monotonic()
        if metrics:
            self._line.put(lambda record: record.metrics(metrics, child=True))
