"""The trackers that a spec names under `track`: all but `mlflow`, which `harness.tracking` implements."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from harness.errors import HarnessError, located_errors
from harness.events import Event, RunStarted
from harness.hookspecs import hookimpl
from harness.interfaces.guard import identify
from harness.interfaces.tracker import Tracker
from harness.plugin_listener import read_only
from harness.registry import Registry
from harness.spec.component_options import fill_component_options
from harness.spec.spec import Spec
from harness.spec_keys.run import TRACK_KEYS
from harness.utils.redaction import Secrets, redact

TIME_LIMIT = 10.0
"""Seconds that a tracker may take for one event: it may have to reach a server, which may not answer."""


def mlflow_settings(track: Mapping[str, Any], registry: Registry) -> dict[str, Any]:
    """Return the options of the tracker `mlflow`, with `enabled`: whether the spec uses it.

    Args:
        track: The spec's `track`.
        registry: The components; it has the defaults for a spec that does not use MLflow.
    """
    options = fill_component_options(registry, "trackers", "mlflow", track.get("mlflow", {}))
    return {**options, "enabled": track["enabled"] and "mlflow" in track}


def unavailable_tracker_errors(spec: Spec, registry: Registry) -> Iterator[HarnessError]:
    """Yield an error for each tracker of the spec that needs something that is not installed."""
    trackers = create_trackers(spec.document["track"], registry)
    return located_errors((spec.where(("track", name)), each.check_available) for name, each in trackers.items())


def create_trackers(track: Mapping[str, Any], registry: Registry) -> dict[str, Tracker]:
    """Return the trackers of a spec other than `mlflow`, by name; none if tracking is disabled."""
    names = [name for name in track if name not in (*TRACK_KEYS, "mlflow")] if track["enabled"] else []
    return {name: registry.create("trackers", name, track[name]) for name in names}


@contextmanager
def tracker_listeners(track: Mapping[str, Any], registry: Registry) -> Iterator[None]:
    """Deliver events to the trackers of a spec, other than `mlflow`, for the duration of the context."""
    listeners = [_TrackerListener(tracker) for tracker in create_trackers(track, registry).values()]
    without_secrets = _EventRedaction(Secrets.collect(track))
    for listener in listeners:
        registry.manager.register(listener, name=listener.name)
        registry.isolate_listener(listener, listener.name, TIME_LIMIT, without_secrets)
    try:
        yield
    finally:
        for listener in listeners:
            registry.remove_listener(listener)


class _TrackerListener:
    """Hands every event to a tracker."""

    def __init__(self, tracker: Tracker) -> None:
        self.name = identify(tracker)
        self._tracker = tracker

    @hookimpl
    def harness_on_event(self, event: Event) -> None:
        self._tracker.on_event(event)


class _EventRedaction:
    """Returns read-only copies of events without secrets; the trackers share the copy of an event."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets
        self._last: tuple[Event, Event] | None = None  # an event, and its copy

    def __call__(self, event: Event) -> Event:
        last = self._last
        if last is not None and last[0] is event:
            return last[1]
        public = event
        if isinstance(event, RunStarted):
            self._secrets = Secrets.collect(event.spec, event.environment)
            settings = {name: redact(getattr(event, name)) for name in ("spec", "environment", "changed", "arm")}
            public = dataclasses.replace(event, **settings)
        copy: Event = read_only(self._secrets.redact_value(public))
        self._last = event, copy
        return copy
