"""The way from a run to its store: jobs one after the other in the background, and one warning when the store fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from harness import store
from harness.public import Secrets
from harness.track.background import Background

if TYPE_CHECKING:
    from harness.track.record import Record

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
                self._asides.append(f"MLflow has no {what} of this run: {self.secrets.clean(store.reason(error))}")

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
            why = self.secrets.clean(store.reason(error))
            text = f"MLflow tracking at {store.without_secrets(self.uri)} has stopped: {why}"
            self._warn(f"{text}; the run goes on, and all that it measures is kept in {self.kept}")
