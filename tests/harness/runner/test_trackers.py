"""Trackers of plugins in complete runs."""

from __future__ import annotations

import dataclasses
import sys
import time
import types
from typing import ClassVar

import pytest
from support import example_run

from harness import registry as registry_module
from harness.errors import HarnessError
from harness.events import (
    DataPrepared,
    Event,
    MidStageEvaluated,
    RunFailed,
    RunFinished,
    RunStarted,
    StepLogged,
    SuitesEvaluated,
    WarningRaised,
)
from harness.interfaces.component import Component
from harness.interfaces.tracker import Tracker
from harness.runner import trackers
from harness.utils.redaction import Secrets

PASSWORD = "a-password-of-nobody"


class Recorder(Tracker):
    """Keeps the events of all runs."""

    received: ClassVar[list] = []

    def __init__(self, fails_at):
        self.fails_at = fails_at

    def on_event(self, event):
        if type(event).__name__ == self.fails_at:
            raise KeyError("z")
        self.received.append(event)

    def check_available(self):
        if self.fails_at == "start":
            raise HarnessError("tracker recorder", "its server is not installed", "pip install recorder")


@pytest.fixture
def recorder(monkeypatch):
    """The tracker `recorder` of harness-acme, in every registry; its option is the event at which it raises."""
    module = types.ModuleType("acme_trackers")
    module.Recorder = type("Recorder", (Recorder,), {"received": []})
    monkeypatch.setitem(sys.modules, "acme_trackers", module)
    option = {"type": ["string", "null"], "default": None, "description": "Where it fails."}
    discover = registry_module.discover_plugins

    def discover_with_recorder(*arguments):
        found = discover(*arguments)
        found.add(
            "trackers", "recorder", Component("R.", "acme_trackers:Recorder", {"fails_at": option}), "harness-acme"
        )
        return found

    monkeypatch.setattr(registry_module, "discover_plugins", discover_with_recorder)
    return module.Recorder


def test_a_tracker_gets_read_only_events_without_secrets(desk, recorder, monkeypatch):
    monkeypatch.setenv("ACME_PASSWORD", PASSWORD)
    document = desk.document(track={"recorder": {}}, description=f"made with {PASSWORD}")
    document["train"]["evaluate_steps"] = 1
    document["sources"][f"by-{PASSWORD}"] = document["sources"]["second"]
    document["mode"] = {"domain": {"sources": ["domain", f"by-{PASSWORD}"]}}
    desk.start(document)
    kinds = [type(event) for event in recorder.received]
    assert kinds[0] is RunStarted
    assert kinds[-1] is RunFinished
    assert [kinds.count(kind) for kind in (StepLogged, MidStageEvaluated, SuitesEvaluated)] == [2, 2, 2]
    started = recorder.received[0]
    assert started.spec["description"] == "made with (left out)"
    assert started.spec["track"]["recorder"] == {"fails_at": None}
    assert "by-(left out)" in started.plan.sources
    assert [repr(event) for event in recorder.received if PASSWORD in repr(event)] == []
    with pytest.raises(TypeError):
        started.spec["name"] = "other"
    assert not (desk.newest() / "mlflow.json").exists(), "MLflow is used only if it is named, or nothing is"


def test_a_tracker_that_raises_is_named_and_the_run_continues(desk, recorder, listener):
    heard = listener()
    folder = desk.start(desk.document(track={"recorder": {"fails_at": "StepLogged"}}), heard)
    assert (folder / "report.json").is_file()
    warnings = [event.text for event in heard.events if isinstance(event, WarningRaised)]
    text = "the listener of tracker 'recorder' of harness-acme is ignored from now on: KeyError: 'z'"
    assert warnings.count(text) == 1
    assert not any(isinstance(event, RunFinished) for event in recorder.received)


def test_a_failed_run_ends_its_trackers(desk, recorder, monkeypatch):
    document = desk.document(track={"recorder": {}})
    monkeypatch.setattr("harness.evaluation.scoring.raise_on_violations", _fail)
    with pytest.raises(RuntimeError):
        desk.start(document)
    assert isinstance(recorder.received[-1], RunFailed)


def _fail(*arguments, **options):
    raise RuntimeError("stopped here")


def test_what_a_tracker_needs_is_checked_before_the_run(desk, recorder, capsys):
    spec = desk.write(desk.document(track={"recorder": {"fails_at": "start"}}))
    assert desk.command("run", spec) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith("tracker recorder: its server is not installed; pip install recorder")
    assert recorder.received == []


def test_tracking_can_be_disabled_as_a_whole(desk, recorder):
    desk.start(desk.document(track={"enabled": False, "recorder": {"fails_at": "start"}}))
    assert recorder.received == []


def test_the_settings_of_mlflow_are_its_defaults_where_a_spec_does_not_use_it():
    plugins = registry_module.discover_plugins()
    settings = trackers.mlflow_settings({"enabled": True, "tensorboard": {"folder": None}}, plugins)
    assert settings["enabled"] is False
    assert settings["model"] == "none"
    assert trackers.mlflow_settings({"enabled": True, "mlflow": {"uri": "x"}}, plugins)["uri"] == "x"


def test_every_event_passes_the_same_redaction(recorder):
    """Plan, arm, facts and warnings hold settings and texts of the user, as the spec does."""
    url, plugins = f"https://me:{PASSWORD}@acme.example/x", registry_module.discover_plugins()
    options = {"path": url, "storage": {"key": "short"}}
    spec = {"sources": {"a": {"jsonl": options}}}
    plan = example_run.made_plan(sources={"a": ("jsonl", options)})
    arm = {"name": f"key={PASSWORD}", "changes": {"sources.a.jsonl.storage": {"key": "short"}, "hub.token": "brief"}}
    event = RunStarted(name="x", id="x", folder="x", spec=spec, plan=plan, environment={}, arm=arm, changed=spec)
    data = DataPrepared(
        counts={}, stages=plan.stages, shares=(), digests={}, template="", facts={"a": {"url": url}}, warnings=[url]
    )
    evaluation = example_run.made_evaluation(0, "general", [0.5], [1.0])
    items = tuple(dataclasses.replace(item, answer=f"token {PASSWORD}") for item in evaluation.items)
    scores = SuitesEvaluated(evaluations=[dataclasses.replace(evaluation, items=items)])
    with trackers.tracker_listeners({"enabled": True, "recorder": {"fails_at": None}}, plugins):
        for each in (event, data, scores, WarningRaised(text=url, rows=[url]), RunFailed(error=url, folder="x")):
            plugins.emit(each)
    assert [type(each) for each in recorder.received] == [
        RunStarted, DataPrepared, SuitesEvaluated, WarningRaised, RunFailed,
    ]  # fmt: skip
    text = repr(recorder.received)
    assert [secret for secret in (PASSWORD, "short", "brief") if secret in text] == []
    started, prepared, scored, *_ = recorder.received
    assert started.plan.sources["a"][1] == {"path": "https://acme.example/x", "storage": {"key": "(left out)"}}
    assert started.arm["changes"] == {
        "sources.a.jsonl.storage": {"key": "(left out)"}, "hub.token": "(left out)",
    }  # fmt: skip
    assert prepared.facts["a"]["url"] == "https://acme.example/x"
    assert scored.evaluations[0].scores == scores.evaluations[0].scores


def test_an_event_is_redacted_once_for_all_trackers_and_outside_of_their_time_limit(recorder, monkeypatch, listener):
    plugins, redacted, real = registry_module.discover_plugins(), [], Secrets.redact_value
    plugins.add("trackers", "second", plugins.components["trackers"]["recorder"], "harness-acme")
    heard = listener()
    plugins.manager.register(heard)

    def slow_redaction(self, value, key=""):
        if isinstance(value, Event):
            redacted.append(value)
            time.sleep(0.3)
        return real(self, value, key)

    monkeypatch.setattr(Secrets, "redact_value", slow_redaction)
    monkeypatch.setattr(trackers, "TIME_LIMIT", 0.2)
    sent = [WarningRaised(text="a"), WarningRaised(text="b"), RunFailed(error="c", folder="x")]
    track = {"enabled": True, "recorder": {"fails_at": None}, "second": {"fails_at": None}}
    with trackers.tracker_listeners(track, plugins):
        for event in sent:
            plugins.emit(event)
    assert redacted == sent
    assert sorted(map(repr, recorder.received)) == sorted(map(repr, [*sent, *sent]))
    assert heard.events == sent, "no tracker is named as too slow"
