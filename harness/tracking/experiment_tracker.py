"""The MLflow run of an experiment: the parent of its arms, with what their comparison comes to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.tracking import mlflow_entries, mlflow_store
from harness.tracking.background import END_TIMEOUT, START_TIMEOUT, TrackingQueue
from harness.utils import redaction
from harness.utils.redaction import Secrets, redact

if TYPE_CHECKING:
    from harness.report.arm_comparison import ArmComparison
    from harness.tracking.mlflow_run import MlflowRun

EXPERIMENT_FILES = ("arms.json", "report.html", "plots/*.svg")


class ExperimentTracker:
    """Writes the parent run of an experiment: `start`, the arms with `parent_run_id=run_id`, then `finish` or `fail`.

    settings, name, warn: as for `Tracker`. folder: of the experiment, where `mlflow.json` says where it is tracked.
    resume_info: what that file says, when the experiment is gone on with.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        name: str,
        folder: Path,
        warn: Callable[[str], None],
        *,
        resume_info: Mapping[str, Any] | None = None,
    ) -> None:
        self._enabled, self._again, self._folder = bool(settings["enabled"]), resume_info, folder
        self._experiment: str = settings["experiment"] or name
        self._uri = mlflow_store.resume_uri(mlflow_store.tracking_uri(settings["uri"]), resume_info)
        self._queue = TrackingQueue(self._uri, warn)
        self._queue.local_folder = folder

    @property
    def run_id(self) -> str | None:
        """The MLflow id of the parent run; None where there is none."""
        return None if self._queue.mlflow_run is None else self._queue.mlflow_run.run_id

    @property
    def uri(self) -> str | None:
        """The tracking URI without its password; None when tracking is off or has failed."""
        return redaction.redact_text(self._uri) if self._enabled and not self._queue.failed else None

    def start(self, spec: Mapping[str, Any], arms: Sequence[str]) -> None:
        """Make the run, or open it again, and wait for it. spec: filled in. arms: their names. Raises nothing."""
        if not self._enabled:
            return
        self._run_guarded(lambda: self._start(spec, arms))

    def finish(self, experiment: ArmComparison) -> None:
        """Write what the comparison comes to and the experiment's files, and end the run. Raises nothing."""
        self._run_guarded(lambda: self._finish(experiment))

    def fail(self, error: BaseException) -> None:
        """End the run as failed, with the files that there are. Raises nothing."""
        text = redaction.redact_text(f"{type(error).__name__}: {error}")[: redaction.MAX_VALUE_LENGTH]
        self._run_guarded(lambda: self._end("FAILED", {"error": text}))

    def _start(self, spec: Mapping[str, Any], arms: Sequence[str]) -> None:
        from harness.tracking.mlflow_run import MlflowRun

        mlflow_store.import_mlflow()
        secrets = self._queue.secrets = Secrets.collect(spec, self._uri)
        shown = redact(spec)
        tags = mlflow_entries.build_run_tags(shown, {}) | {
            "harness.id": self._folder.name,
            "harness.folder": str(self._folder.absolute()),
            "harness.kind": "experiment",
        }

        def make() -> MlflowRun:
            if self._again is not None:
                try:
                    return MlflowRun.reopen(self._uri, str(self._again["run_id"]), tags, secrets)
                except LookupError as gone:
                    self._queue.warn_later(f"MLflow has lost the experiment ({gone}): it goes on in a new run")
            record = MlflowRun.create(self._uri, self._experiment, self._folder.name, tags, secrets)
            uri = redaction.redact_text(mlflow_store.absolute_uri(self._uri))
            facts = {"uri": uri, "experiment": self._experiment, "run_id": record.run_id}
            (self._folder / "mlflow.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            return record

        self._queue.start_run(make, START_TIMEOUT)
        given = {f"arm/{number}": name for number, name in enumerate(arms, start=1)}
        self._queue.submit(
            lambda record: record.log_params(record.run_id, {**redaction.flatten_settings(shown), **given})
        )
        self._queue.submit(lambda record: record.log_json("spec.json", shown))

    def _finish(self, experiment: ArmComparison) -> None:
        values = {}
        for point in experiment.points:
            values[f"arm/{point.arm}/gain"] = point.gain.value
            values[f"arm/{point.arm}/forgotten"] = point.forgotten.value
            if point.recovered is not None:
                values[f"arm/{point.arm}/recovered"] = point.recovered
        for one in experiment.intransigence:
            values[f"arm/{one.arm}/intransigence/{one.score}"] = one.value.value
        metrics = mlflow_entries.to_mlflow_metrics(values, 0)
        self._queue.submit(lambda record: record.log_metrics(metrics))
        tags = {"baseline": experiment.baseline, "gain": experiment.gain, "forgetting": experiment.forgetting}
        missing = {"missing": ", ".join(experiment.missing)} if experiment.missing else {}
        self._end("FINISHED", {**tags, **missing, "advice": experiment.recommendation_text})

    def _end(self, status: str, tags: Mapping[str, str]) -> None:
        self._queue.submit(lambda record: record.set_tags(tags))
        for pattern in EXPERIMENT_FILES:
            folder = pattern.rpartition("/")[0] or None
            for file in sorted(self._folder.glob(pattern)):
                self._queue.submit(lambda record, file=file, folder=folder: record.log_file(file, folder))  # type: ignore[misc]
        self._queue.submit(lambda record: record.end(status))
        self._queue.wait(END_TIMEOUT)

    def _run_guarded(self, job: Callable[[], None]) -> None:
        if self._queue.failed:
            return
        try:
            job()
        except Exception as error:
            self._queue.fail(error)
        self._queue.report_failures()
