"""The way from a run to its store: jobs one after the other in the background, and one warning when the store fails."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from harness.tracking import mlflow_store
from harness.utils import redaction
from harness.utils.redaction import Secrets

if TYPE_CHECKING:
    from harness.tracking.mlflow_run import MlflowRun


Job = Callable[[], None]


class WorkerThread:
    """A queue of jobs and the thread that does them in order. The first job that fails ends it: the rest is dropped.

    The thread is a daemon: a job that hangs does not keep the program from ending.
    """

    def __init__(self, name: str) -> None:
        self.error: BaseException | None = None
        self._name = name
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._unfinished = 0
        self._thread: threading.Thread | None = None

    def submit(self, job: Job) -> None:
        """Do the job after those before it; nothing when one of them has failed."""
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
        """Wait until every job is done. Sets `error` when no job has finished for `timeout` seconds."""
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


START_TIMEOUT = 60.0
"""Seconds that a run waits for its MLflow run to be made."""
END_TIMEOUT = 120.0
"""Seconds without any progress after which a run that has ended stops waiting for the rest to be written."""


class TrackingQueue:
    """Does jobs on a record, none of which holds the run up. The first that fails is told, and ends the tracking.

    warn: called on the run's own thread. local_folder: the folder that the warning names. secrets: are in no warning.
    """

    def __init__(self, uri: str, warn: Callable[[str], None]) -> None:
        self.mlflow_run: MlflowRun | None = None
        self.local_folder = Path()
        self.secrets = Secrets.collect(uri)
        self.failed = False
        self.uri = uri
        self._warn = warn
        self._work = WorkerThread("harness-track")
        self._asides: list[str] = []

    def start_run(self, create_run: Callable[[], MlflowRun], timeout: float) -> None:
        """Make the record, and wait for it: what comes later needs its id."""

        def first() -> None:
            self.mlflow_run = create_run()

        self._work.submit(first)
        self._work.wait(timeout)

    def submit(self, job: Callable[[MlflowRun], None]) -> None:
        """Do a job on the record, after those before it; nothing where there is no record."""
        record = self.mlflow_run
        if record is not None:
            self._work.submit(lambda: job(record))

    def submit_optional(self, what: str, job: Callable[[MlflowRun], None]) -> None:
        """Do a job whose failure costs no more than a warning that names it."""

        def tried(record: MlflowRun) -> None:
            try:
                job(record)
            except Exception as error:
                self._asides.append(
                    f"MLflow has no {what} of this run: {self.secrets.redact(mlflow_store.error_summary(error))}"
                )

        self.submit(tried)

    def warn_later(self, text: str) -> None:
        """Tell something from the background, at the next look."""
        self._asides.append(text)

    def wait(self, timeout: float) -> None:
        """Wait for all jobs; give up when none has been done for `timeout` seconds."""
        self._work.wait(timeout)
        self.report_failures()

    def report_failures(self) -> None:
        """Tell what has failed in the background since the last look."""
        asides, self._asides = self._asides, []
        for text in asides:
            self._warn(text)
        if self._work.error is not None:
            self.fail(self._work.error)

    def fail(self, error: BaseException) -> None:
        """Stop tracking, with one warning."""
        if not self.failed:
            self.failed = True
            why = self.secrets.redact(mlflow_store.error_summary(error))
            text = f"MLflow tracking at {redaction.redact_text(self.uri)} has stopped: {why}"
            self._warn(f"{text}; the run goes on, and all that it measures is kept in {self.local_folder}")
