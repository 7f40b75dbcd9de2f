"""Find or create the MLflow run of a run or an experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.tracking import mlflow_store
from harness.utils.redaction import Secrets

if TYPE_CHECKING:
    from harness.tracking.mlflow_run import MlflowRun, RunIdentity


class RecordedTimes(NamedTuple):
    """When a run that is sent later started and ended, in seconds since the epoch."""

    started_at: float
    ended_at: float


@dataclass(frozen=True)
class RunOpening:
    """Where the MLflow run of a folder is, or is to be created.

    Attributes:
        uri: The tracking URI.
        folder: The folder of the run; `mlflow.json` in it names the MLflow run.
        resume_info: The content of `mlflow.json`, if its MLflow run is to be continued.
        recorded: The times of a run that is sent later; None while it runs.
    """

    uri: str
    folder: Path
    resume_info: Mapping[str, Any] | None
    recorded: RecordedTimes | None

    def open(
        self, identity: RunIdentity, tags: Mapping[str, str], secrets: Secrets, warn: Callable[[str], None]
    ) -> MlflowRun:
        """Reopen the MLflow run of the folder; create one if there is none or the store has lost it.

        A run that is sent later is also found by its tags, so that it is never stored twice.
        """
        from harness.tracking.mlflow_run import MlflowRun

        is_live = self.recorded is None
        run_id = None if self.resume_info is None else str(self.resume_info["run_id"])
        mlflow_run = None
        if run_id is not None:
            try:
                mlflow_run = MlflowRun.reopen(self.uri, run_id, tags, secrets, counted=is_live)
            except LookupError as error:
                warn(f"MLflow does not have the run any more ({error}): a new one is created")
        if mlflow_run is None and not is_live:
            found = MlflowRun.find(self.uri, identity, tags, secrets)
            mlflow_run = None if found is None else MlflowRun.reopen(self.uri, found, tags, secrets, counted=False)
        if mlflow_run is None:
            mlflow_run = MlflowRun.create(self.uri, identity, tags, secrets)
        if mlflow_run.run_id != run_id:
            experiment = secrets.redact(identity.experiment)
            mlflow_store.write_tracking_info(self.folder, self.uri, experiment, mlflow_run.run_id)
        return mlflow_run
