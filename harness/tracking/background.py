"""Run tracking jobs in a background thread, with one warning if the store fails."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from harness.tracking import mlflow_store
from harness.tracking.mlflow_store import MlflowPages
from harness.utils import redaction
from harness.utils.redaction import Secrets
from harness.utils.shell_commands import harness_command

if TYPE_CHECKING:
    from harness.tracking.mlflow_run import MlflowRun


Job = Callable[[], None]


class WorkerThread:
    """A thread that runs jobs in order. The first job that fails stops it; the remaining jobs are dropped.

    The thread is a daemon, so a job that hangs does not prevent the program from exiting.
    """

    def __init__(self, name: str) -> None:
        self.error: BaseException | None = None
        self._name = name
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._unfinished = 0
        self._thread: threading.Thread | None = None

    def submit(self, job: Job) -> None:
        """Queue a job. Does nothing if an earlier job failed."""
        with self._changed:
            if self.error is not None:
                return
            self._jobs.append(job)
            self._unfinished += 1
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run_jobs, name=self._name, daemon=True)
                self._thread.start()

    def wait(self, timeout: float) -> None:
        """Wait until every job is done. Sets `error` if no job finishes for `timeout` seconds."""
        with self._changed:
            while self._unfinished and self.error is None:
                before = self._unfinished
                self._changed.wait_for(lambda: self._unfinished != before or self.error is not None, timeout)  # noqa: B023
                if self._unfinished == before and self.error is None:
                    self._stop(TimeoutError(f"no answer within {timeout:.0f} s"))

    def _run_jobs(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self.error is not None)
                if self.error is not None:
                    return
                job = self._jobs.popleft()
            try:
                job()
            except BaseException as error:
                with self._changed:
                    self._stop(error)
                return
            with self._changed:
                self._unfinished -= 1
                self._changed.notify_all()

    def _stop(self, error: BaseException) -> None:
        self.error = self.error or error
        self._jobs.clear()
        self._unfinished = 0
        self._changed.notify_all()


START_TIMEOUT = 10.0
"""Seconds that a run waits until a server has created its MLflow run."""
DATABASE_START_TIMEOUT = 60.0
"""The same for a new SQLite database, which creates its tables first, alone among all runs that start at once."""
END_TIMEOUT = 120.0
"""Seconds without progress after which a finished run stops waiting for the remaining jobs."""


class TrackingQueue:
    """Jobs on an MLflow run that do not delay the training. The first that fails causes a warning and ends tracking.

    Attributes:
        mlflow_run: The MLflow run, once it is created.
        secrets: Values that are redacted in warnings.
        failure: Why tracking has stopped; None if it has not.
        uri: The tracking URI.
    """

    def __init__(self, uri: str, warn: Callable[[str], None], *, is_live: bool = True) -> None:
        """Create a queue. is_live: whether a run continues without tracking if the store fails; else nobody warns."""
        self.mlflow_run: MlflowRun | None = None
        self.secrets = Secrets.collect(uri)
        self.failure: str | None = None
        self.uri = uri
        self._folder = Path()
        self._warn, self._is_live = warn, is_live
        self._work = WorkerThread("harness-track")
        self._pending_warnings: list[str] = []

    @property
    def failed(self) -> bool:
        """Whether tracking has stopped."""
        return self.failure is not None

    def set_folder(self, folder: Path) -> None:
        """Set the folder that warnings name: that of the run, or of the experiment of an arm."""
        self._folder = folder

    @property
    def pages(self) -> MlflowPages | None:
        """The addresses of the run on MLflow's page; None without a run, and if tracking has failed."""
        if self.mlflow_run is None or self.failed:
            return None
        return mlflow_store.build_pages(self.uri, self.mlflow_run.experiment_id, self.mlflow_run.run_id)

    def start_run(self, create_run: Callable[[], MlflowRun]) -> None:
        """Create the MLflow run and wait for it, since later jobs need its id."""

        def set_run() -> None:
            self.mlflow_run = create_run()

        self._work.submit(set_run)
        self._work.wait(START_TIMEOUT if mlflow_store.sqlite_file(self.uri) is None else DATABASE_START_TIMEOUT)

    def submit(self, job: Callable[[MlflowRun], None]) -> None:
        """Queue a job on the MLflow run. Does nothing if there is none."""
        mlflow_run = self.mlflow_run
        if mlflow_run is not None:
            self._work.submit(lambda: job(mlflow_run))

    def submit_optional(self, what: str, job: Callable[[MlflowRun], None]) -> None:
        """Queue a job whose failure only causes a warning that names it."""

        def try_job(mlflow_run: MlflowRun) -> None:
            try:
                job(mlflow_run)
            except Exception as error:
                reason = self.secrets.redact(mlflow_store.error_summary(error))
                self._pending_warnings.append(
                    f"MLflow has no {what} of this run: {reason}; to send it later: {self._command}"
                )

        self.submit(try_job)

    def warn_later(self, text: str) -> None:
        """Queue a warning from the background thread for the next `report_failures`."""
        self._pending_warnings.append(text)

    def wait(self, timeout: float) -> None:
        """Wait for all jobs; give up if none finishes for `timeout` seconds."""
        self._work.wait(timeout)
        self.report_failures()

    def report_failures(self) -> None:
        """Report the failures of the background thread since the last call."""
        pending, self._pending_warnings = self._pending_warnings, []
        for text in pending:
            self._warn(text)
        if self._work.error is not None:
            self.fail(self._work.error)

    def fail(self, error: BaseException) -> None:
        """Stop tracking, with one warning."""
        if self.failed:
            return
        self.failure = self.secrets.redact(mlflow_store.error_summary(error))
        if self._is_live:
            missed = "nothing of the run" if self.mlflow_run is None else "nothing that follows"
            self._warn(
                f"MLflow tracking at {redaction.redact_text(self.uri)} has stopped: {self.failure}; {missed} is sent; "
                f"the run continues and saves all results in {self._folder}; to send them later: {self._command}"
            )

    @property
    def _command(self) -> str:
        return harness_command("track", self._folder)
