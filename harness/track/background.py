"""Does jobs one after the other on a thread of its own, so that what is slow holds nobody up."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

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
