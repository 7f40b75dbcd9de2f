"""What the trackers of runs and of experiments have in common: where the MLflow run is, and the queue of its jobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.tracking import mlflow_store
from harness.tracking.background import TrackingQueue
from harness.tracking.mlflow_store import MlflowPages
from harness.tracking.run_opening import RecordedTimes, RunOpening
from harness.utils import redaction
from harness.utils.redaction import Secrets

if TYPE_CHECKING:
    from harness.tracking.mlflow_run import MlflowRun, RunIdentity


class TrackedRun:
    """An MLflow run that is created or reopened by `_open_run`, and written by a queue of jobs."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        name: str | None,
        warn: Callable[[str], None],
        *,
        resume_info: Mapping[str, Any] | None = None,
        recorded: RecordedTimes | None = None,
    ) -> None:
        """Create a tracker; nothing is sent yet.

        Args:
            settings: The options of the tracker `mlflow`, and `enabled`. `experiment` None: `name`; `uri` None:
                $MLFLOW_TRACKING_URI, or `sqlite:///mlflow.db`.
            name: Name of the MLflow experiment, unless the settings have one.
            warn: Receives one line that states what failed, on the thread of the run.
            resume_info: Content of `mlflow.json`; its MLflow run is reopened, and nothing that it has is written twice.
            recorded: The times of a run that is sent later.
        """
        self._settings, self._enabled = settings, bool(settings["enabled"])
        self._uri = mlflow_store.resume_uri(mlflow_store.tracking_uri(settings["uri"]), resume_info)
        self._experiment: str | None = settings["experiment"] or name
        self._resume_info, self._recorded = resume_info, recorded
        self._queue = TrackingQueue(self._uri, warn, is_live=recorded is None)
        self._folder = Path()

    @property
    def run_id(self) -> str | None:
        """The MLflow id of the run; None before it is created, and if it could not be."""
        return None if self._queue.mlflow_run is None else self._queue.mlflow_run.run_id

    @property
    def uri(self) -> str | None:
        """The tracking URI without its password; None if tracking is disabled or has failed."""
        return redaction.redact_text(self._uri) if self._enabled and not self._queue.failed else None

    @property
    def failure(self) -> str | None:
        """Why tracking has stopped, without secrets; None if it has not."""
        return self._queue.failure

    @property
    def pages(self) -> MlflowPages | None:
        """The addresses on MLflow's page; None without a run in MLflow."""
        return self._queue.pages

    def _open_run(self, identity: RunIdentity, tags: Mapping[str, str], secrets: Secrets) -> None:
        """Create or reopen the MLflow run of the folder, and wait for it."""
        self._queue.secrets = secrets

        def open_run() -> MlflowRun:
            opening = RunOpening(self._uri, self._folder, self._resume_info, self._recorded)
            return opening.open(identity, tags, secrets, self._queue.warn_later)

        self._queue.start_run(open_run)

    def _run_guarded(self, job: Callable[[], None]) -> None:
        """Run a job; an error stops the tracking, not the run. Does nothing if tracking is disabled or has failed."""
        if not self._enabled or self._queue.failed:
            return
        try:
            job()
        except Exception as error:
            self._queue.fail(error)
        self._queue.report_failures()
