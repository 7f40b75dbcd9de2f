"""A listener that records the events of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from harness import events
from harness.hookspecs import hookimpl

EventT = TypeVar("EventT", bound=events.Event)


class EventRecorder:
    """Records events; interrupts the run at the first event for which `interrupt_at(event, recorder)` is true."""

    def __init__(self, interrupt_at: Callable[[events.Event, EventRecorder], bool] | None = None) -> None:
        self.events: list[events.Event] = []
        self.interrupt_at = interrupt_at

    @hookimpl
    def harness_on_event(self, event: events.Event) -> None:
        self.events.append(event)
        if self.interrupt_at is not None and self.interrupt_at(event, self):
            raise KeyboardInterrupt

    def of(self, event_class: type[EventT]) -> list[EventT]:
        """Return the events of a class."""
        return [event for event in self.events if isinstance(event, event_class)]

    def classes(self) -> list[type[events.Event]]:
        """Return the classes of all events but progress and warnings, in order."""
        ignored = (events.ProgressUpdated, events.WarningRaised)
        return [type(event) for event in self.events if not isinstance(event, ignored)]

    def warnings(self) -> list[str]:
        """Return the texts of the warnings."""
        return [event.text for event in self.of(events.WarningRaised)]
