"""The contract of trackers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.errors import ComponentError, HarnessError
from harness.events import Event
from harness.plugin_listener import read_only
from harness.testing.component_under_test import CheckSkipped, ComponentUnderTest
from harness.testing.example_events import iter_example_events


@dataclass(frozen=True, kw_only=True)
class LaterEvent(Event):
    """An event of a later version of harness."""

    text: str = "news"


def check_run(subject: ComponentUnderTest) -> None:
    """It records a run, from read-only events."""
    _record(subject)


def check_failed_run(subject: ComponentUnderTest) -> None:
    """It records a run that fails."""
    _record(subject, fails=True)


def check_resumed_run(subject: ComponentUnderTest) -> None:
    """It records a run that is interrupted and resumed, with another instance."""
    folder = _run_folder(subject)
    tracker = _create(subject)
    for event in iter_example_events(folder):
        tracker.on_event(read_only(event))
        if type(event).__name__ == "StepLogged":
            break
    _record(subject, resuming=True)


def check_unknown_events(subject: ComponentUnderTest) -> None:
    """It ignores an event that it does not know."""
    tracker = _create(subject)
    for event in iter_example_events(_run_folder(subject)):
        tracker.on_event(read_only(event))
        tracker.on_event(LaterEvent(stage_index=event.stage_index))


def _record(subject: ComponentUnderTest, **options: bool) -> None:
    tracker = _create(subject)
    for event in iter_example_events(_run_folder(subject), **options):
        tracker.on_event(read_only(event))


def _create(subject: ComponentUnderTest) -> Any:
    tracker = subject.create()
    try:
        tracker.check_available()
    except ComponentError:
        raise
    except HarnessError as error:
        raise CheckSkipped(f"{error.what}; {error.hint}") from None
    return tracker


def _run_folder(subject: ComponentUnderTest) -> Any:
    folder = subject.folder / "runs" / "example-run"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


CHECKS = (check_run, check_failed_run, check_resumed_run, check_unknown_events)
