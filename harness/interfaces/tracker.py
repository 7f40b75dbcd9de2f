"""The base class of trackers: where the course of a run is recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from harness.events import Event
from harness.interfaces.guard import GuardedComponent, ResultCheck


class Tracker(GuardedComponent):
    """A recorder of runs, e.g. in a database or for a web page. Each run has its own instance."""

    guarded_methods: ClassVar[Mapping[str, ResultCheck | None]] = {"check_available": None, "on_event": None}
    required_members = ("on_event",)

    def on_event(self, event: Event) -> None:
        """Record an event of a run. The classes and their order are in `harness.events`.

        It is called in a thread of its own, with read-only copies: mappings instead of dicts, tuples instead of lists.
        Secrets are removed from their texts and settings. A tracker that raises is named in a warning and gets no more
        events; the run continues.

        Args:
            event: An instance of one of the classes in `harness.events`. The first is `RunStarted`, the last one
                `RunFinished` or `RunFailed`.
        """
        raise NotImplementedError

    def check_available(self) -> None:
        """Check that everything the tracker needs is installed. Called before a run starts.

        Raises:
            HarnessError: Something is missing; the hint has the command that installs it.
        """
