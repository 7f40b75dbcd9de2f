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
    from harness.tracking.mlflow_run import Record


Job = Callable[[], None]


class Background:
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

    def put(self, job: Job) -> None:
        """Do the job after those before it; nothing when one of them has failed."""
        with self._changed:
            if self.error is not None:
                return
            self._jobs.append(job)
            self._unfinished += 1
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()

    def wait(self, patience: float) -> None:
        """Wait until every job is done. Sets `error` when no job has finished for `patience` seconds."""
        with self._changed:
            while self._unfinished and self.error is None:
                before = self._unfinished
                self._changed.wait_for(lambda: self._unfinished != before or self.error is not None, patience)  # noqa: B023
                if self._unfinished == before and self.error is None:
                    self._stop(TimeoutError(f"no answer within {patience:.0f} s"))

    def _work(self) -> None:
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


FIRST_ANSWER = 60.0
"""Seconds that a run waits for its MLflow run to be made."""
LAST_ANSWER = 120.0
"""Seconds without any progress after which a run that has ended stops waiting for the rest to be written."""


class Line:
    """Does jobs on a record, none of which holds the run up. The first that fails is told, and ends the tracking.

    warn: called on the run's own thread. kept: the folder that the warning names. secrets: are in no warning.
    """

    def __init__(self, uri: str, warn: Callable[[str], None]) -> None:
        self.record: Record | None = None
        self.kept = Path()
        self.secrets = Secrets.known(uri)
        self.failed = False
        self.uri = uri
        self._warn = warn
        self._work = Background("harness-track")
        self._asides: list[str] = []

    def open(self, make: Callable[[], Record], patience: float) -> None:
        """Make the record, and wait for it: what comes later needs its id."""

        def first() -> None:
            self.record = make()

        self._work.put(first)
        self._work.wait(patience)

    def put(self, job: Callable[[Record], None]) -> None:
        """Do a job on the record, after those before it; nothing where there is no record."""
        record = self.record
        if record is not None:
            self._work.put(lambda: job(record))

    def try_(self, what: str, job: Callable[[Record], None]) -> None:
        """Do a job whose failure costs no more than a warning that names it."""

        def tried(record: Record) -> None:
            try:
                job(record)
            except Exception as error:
                self._asides.append(
                    f"MLflow has no {what} of this run: {self.secrets.clean(mlflow_store.reason(error))}"
                )

        self.put(tried)

    def aside(self, text: str) -> None:
        """Tell something from the background, at the next look."""
        self._asides.append(text)

    def wait(self, patience: float) -> None:
        """Wait for all jobs; give up when none has been done for `patience` seconds."""
        self._work.wait(patience)
        self.look()

    def look(self) -> None:
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
            why = self.secrets.clean(mlflow_store.reason(error))
            text = f"MLflow tracking at {redaction.without_secrets(self.uri)} has stopped: {why}"
            self._warn(f"{text}; the run goes on, and all that it measures is kept in {self.kept}")
