"""What a run writes to an MLflow store; a store that fails gives one warning."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import example_run
from support.paths import ROOT

from harness import events
from harness.tracking import background, mlflow_entries, mlflow_store
from harness.tracking.background import WorkerThread
from harness.tracking.tracker import MlflowTracker
from harness.types import Share, Stage, StageSource
from harness.utils import redaction


def settings(uri, experiment=None, enabled=True):
    return {"enabled": enabled, "experiment": experiment, "uri": uri}


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A run of two stages in a new SQLite store, with its parent run, child runs and client."""
    folder = tmp_path_factory.mktemp("tracked")
    uri = f"sqlite:///{folder}/deep/mlflow.db"
    warnings = []
    tracker = MlflowTracker(settings(uri), "mixed-sft", warnings.append)
    spec = {
        "track": {"mlflow": settings("https://me:hunter2@track.example")},
        "description": "x" * 700,
        "sources": {"café+1": {"jsonl": {"path": "a.jsonl", "api_key": "hunter2", "columns": {}}}},
        "many": {f"key{i:03}": i for i in range(250)},
    }
    example_run.feed(tracker, folder / "runs" / "mixed-sft-a1", settings=spec, stages=2, steps=45, measured=20)
    client = mlflow_store.open_store(uri)
    runs = client.search_runs([client.get_experiment_by_name("mixed-sft").experiment_id])
    parent = next(run for run in runs if run.info.run_id == tracker.run_id)
    children = sorted((run for run in runs if run is not parent), key=lambda run: run.info.run_name)
    return SimpleNamespace(
        tracker=tracker, client=client, parent=parent, children=children, folder=folder, warnings=warnings, uri=uri
    )


def values(tracked, run, key):
    return [
        (one.step, one.value)
        for one in sorted(tracked.client.get_metric_history(run.info.run_id, key), key=lambda m: m.step)
    ]


def artifacts(client, run_id, path=None):
    found = []
    for one in client.list_artifacts(run_id, path):
        found += artifacts(client, run_id, one.path) if one.is_dir else [one.path]
    return sorted(found)


@pytest.mark.slow
def test_run_is_parent_with_one_child_per_stage(tracked):
    assert tracked.warnings == []
    assert tracked.parent.info.run_name == "mixed-sft-a1"
    assert [run.info.run_name for run in tracked.children] == ["stage-1/mixed-sft-a1", "stage-2/mixed-sft-a1"]
    assert {run.data.tags["mlflow.parentRunId"] for run in tracked.children} == {tracked.tracker.run_id}
    assert {run.info.status for run in (tracked.parent, *tracked.children)} == {"FINISHED"}


def test_run_has_training_settings_as_tags_and_params(tracked):
    tags = tracked.parent.data.tags
    assert tags["mode"] == "mixed"
    assert tags["mitigations"] == "lora, mixing"
    assert tags["model"] == "some/model"
    assert tags["template"] == "chatml"
    assert tags["template_fingerprint"] == "f" * 64
    assert tags["harness.id"] == "mixed-sft-a1"
    params = tracked.parent.data.params
    assert params["train.learning_rate"] == "0.0002"
    assert params["mitigations.mixing.share"] == "0.1"
    assert params["mode.mixed.domain"] == '["helpdesk"]'
    child = tracked.children[0].data.params
    assert child["train.learning_rate"] == "0.0002"
    assert child["shares.general.amount"] == "0.1"
    assert child["shares.general.unit"] == "loss_tokens"
    assert child["sources.helpdesk"] == "domain"


def test_realized_shares_are_logged_by_stage_and_epoch(tracked):
    def history(name):
        found = tracked.client.get_metric_history(tracked.children[0].info.run_id, name)
        return [(entry.step, entry.value) for entry in found]

    assert history("share/general/loss_tokens") == [(0, 0.102)]
    assert history("epoch_share/general/loss_tokens") == [(1, 0.101), (2, 0.103)]


def test_all_params_are_logged_and_long_ones_truncated(tracked):
    params = tracked.parent.data.params
    assert [params[f"many.key{i:03}"] for i in range(250)] == [str(i) for i in range(250)]
    assert len(params["description"]) == 500
    assert params["description"].endswith("x… (truncated; see spec.json)")
    assert params["sources.café_1.jsonl.path"] == "a.jsonl"
    assert params["sources.café_1.jsonl.columns"] == "{}"


def test_store_contains_no_secret(tracked):
    assert tracked.parent.data.params["track.mlflow.uri"] == "https://track.example"
    assert tracked.parent.data.params["sources.café_1.jsonl.api_key"] == "(left out)"
    files = [file for file in (tracked.folder / "deep").rglob("*") if file.is_file()]
    assert len(files) > 5
    for file in files:
        assert b"hunter2" not in file.read_bytes(), file


def test_steps_are_metrics_of_stage_run(tracked):
    for child in tracked.children:
        assert values(tracked, child, "loss") == [(step, 3.0 / step) for step in range(1, 46)]
        assert len(values(tracked, child, "penalty/ewc")) == 45
        assert values(tracked, child, "stage/tokens") == [(45, 100.0)]
    assert "loss" not in tracked.parent.data.metrics


def test_mid_stage_evaluations_are_metrics_of_stage_run_by_step(tracked):
    for child in tracked.children:
        assert values(tracked, child, "during/helpdesk/rougeL") == [(20, pytest.approx(0.2)), (40, pytest.approx(0.4))]
        assert values(tracked, child, "during/combined") == [(20, pytest.approx(0.4)), (40, pytest.approx(0.8))]
        assert values(tracked, child, "repair/pulls") == [(20, 1.0), (40, 1.0)]


def test_scores_of_parent_have_stage_as_step_and_final_difference(tracked):
    rouge = dict(values(tracked, tracked.parent, "helpdesk/rougeL"))
    assert rouge == pytest.approx({0: 0.22, 1: 0.42, 2: 0.62})
    assert dict(values(tracked, tracked.parent, "helpdesk/rougeL/delta")) == pytest.approx({2: 0.4})
    others = {key for key in tracked.parent.data.metrics if not key.startswith("forgetting/")}
    assert others == {
        f"{suite}/{score}{end}"
        for suite in ("helpdesk", "general")
        for score in ("rougeL", "response_perplexity")
        for end in ("", "/delta")
    }


def test_forgetting_summaries_are_metrics(tracked):
    report = example_run.made_report(tracked.folder, stages=2)
    summaries = {
        f"forgetting/{matrix.score}/{name}": estimate.value
        for matrix in report.matrices
        for name, estimate in matrix.summaries.items()
    }
    metrics = tracked.parent.data.metrics
    assert {key: metrics[key] for key in metrics if key.startswith("forgetting/")} == pytest.approx(summaries)
    assert "forgetting/rougeL/average_accuracy" in summaries


def test_sources_are_dataset_inputs_with_digests(tracked):
    inputs = {
        (one.dataset.name, one.tags[0].value): one.dataset
        for one in tracked.client.get_run(tracked.parent.info.run_id).inputs.dataset_inputs
    }
    assert {name for name, _ in inputs} == {"helpdesk", "general"}
    assert inputs["helpdesk", "training"].digest == "a" * 36
    assert json.loads(inputs["general", "training"].source) == {"path": "data/general.jsonl"}
    children = tracked.client.get_run(tracked.children[0].info.run_id).inputs.dataset_inputs
    assert {one.dataset.name for one in children} == {"helpdesk", "general"}


def test_files_of_run_are_artifacts_next_to_database(tracked):
    run_id = tracked.tracker.run_id
    assert artifacts(tracked.client, run_id) == [
        "environment.json",
        "predictions/helpdesk-stage0.jsonl",
        "report.json",
        "scores.json",
        "spec.json",
        "tables/general.json",
        "tables/helpdesk.json",
    ]
    kept = tracked.folder / "deep" / "mlartifacts" / run_id / "artifacts"
    assert json.loads((kept / "spec.json").read_text())["description"] == "x" * 700
    assert not Path("mlruns").exists()


def test_run_folder_names_mlflow_run(tracked):
    written = json.loads((tracked.folder / "runs" / "mixed-sft-a1" / "mlflow.json").read_text())
    assert written == {"uri": tracked.uri, "experiment": "mixed-sft", "run_id": tracked.tracker.run_id}
    assert tracked.tracker.uri == tracked.uri


def test_failed_run_ends_as_failed_with_its_data(tracked):
    tracker = MlflowTracker(settings(tracked.uri, "broken"), "mixed-sft")
    example_run.feed(tracker, tracked.folder / "runs" / "mixed-sft-f1", fail=True)
    client = tracked.client
    parent = client.get_run(tracker.run_id)
    assert parent.info.status == "FAILED"
    assert parent.data.tags["error"] == "RuntimeError: out of memory"
    (child,) = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{tracker.run_id}'")
    assert child.info.status == "FAILED"
    assert len(client.get_metric_history(child.info.run_id, "loss")) == 50
    assert "predictions/helpdesk-stage0.jsonl" in artifacts(client, tracker.run_id)


def test_second_run_joins_experiment_of_first(tracked):
    tracker = MlflowTracker(settings(tracked.uri), "mixed-sft")
    example_run.feed(tracker, tracked.folder / "runs" / "mixed-sft-a2")
    assert tracked.client.get_run(tracker.run_id).info.experiment_id == tracked.parent.info.experiment_id


FEED = """
import runpy, sys
from harness.tracking.tracker import MlflowTracker
file, uri, folder = sys.argv[1:]
tracker = MlflowTracker({"enabled": True, "experiment": None, "uri": uri}, "mixed-sft")
runpy.run_path(file)["feed"](tracker, folder)
if tracker.uri is None:
    sys.exit("tracking has failed")
"""


def start(folder, name):
    """Start a process that writes a run to a store in the folder."""
    made_run = str(ROOT / "tests" / "support" / "example_run.py")
    arguments = [sys.executable, "-c", FEED, made_run, f"sqlite:///{folder}/mlflow.db", f"{folder}/runs/{name}"]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder)


@pytest.mark.slow
def test_two_concurrent_runs_share_new_store_and_print_nothing(tmp_path):
    started = [start(tmp_path, name) for name in ("both-1", "both-2")]
    assert [process.communicate(timeout=200) for process in started] == [("", ""), ("", "")]
    assert [process.returncode for process in started] == [0, 0]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["mlartifacts", "mlflow.db", "runs"]


# -- stores that fail -------------------------------------------------------------------------------------------------


def test_disabled_tracking_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracker = MlflowTracker(settings(None, enabled=False), "mixed-sft")
    example_run.feed(tracker, tmp_path / "runs" / "a")
    assert tracker.run_id is None
    assert tracker.uri is None
    assert [one.name for one in tmp_path.iterdir()] == ["runs"]
    assert not (tmp_path / "runs" / "a" / "mlflow.json").exists()


@pytest.fixture
def under_a_file(tmp_path):
    (tmp_path / "file").write_text("no folder")
    return f"sqlite:///{tmp_path}/file/mlflow.db"


@pytest.fixture
def no_database(tmp_path):
    (tmp_path / "mlflow.db").write_text("no database at all, and longer than the header of one " * 40)
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def unknown_scheme():
    return "carrier-pigeon://coop"


@pytest.fixture
def retired_file_store(tmp_path):
    return f"file://{tmp_path}/mlruns"


@pytest.fixture
def nobody_listens(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://me:hunter2@127.0.0.1:{free.getsockname()[1]}"


BAD = ["under_a_file", "no_database", "unknown_scheme", "retired_file_store", "nobody_listens"]


@pytest.mark.parametrize("bad", BAD)
def test_unusable_store_gives_one_warning_and_takes_little_time(bad, request, tmp_path):
    uri = request.getfixturevalue(bad)
    warnings = []
    tracker = MlflowTracker(settings(uri), "mixed-sft", warnings.append)
    import mlflow  # noqa: F401  (the time of its import does not count)

    started = time.monotonic()
    example_run.feed(tracker, tmp_path / "runs" / "a", stages=2)
    assert time.monotonic() - started < 20
    (warning,) = warnings
    assert "MLflow tracking at" in warning
    assert f"the run continues and saves all results in {tmp_path}/runs/a" in warning
    assert "\n" not in warning
    assert "hunter2" not in warning
    assert len(warning.replace(str(tmp_path), "")) < 500
    assert tracker.run_id is None
    assert tracker.uri is None
    assert (tmp_path / "runs" / "a" / "report.json").exists()


def test_silent_server_is_waited_for_once(tmp_path, monkeypatch):
    monkeypatch.setattr(background, "START_TIMEOUT", 1.0)
    warnings = []
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        tracker = MlflowTracker(settings(f"http://127.0.0.1:{deaf.getsockname()[1]}"), "mixed-sft", warnings.append)
        started = time.monotonic()
        example_run.feed(tracker, tmp_path / "runs" / "a")
        assert time.monotonic() - started < 15
    (warning,) = warnings
    assert "no answer within 1 s" in warning


@pytest.mark.slow
def test_store_that_fails_during_run_is_not_used_again(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    calls = []

    def full(self, *arguments, **options):
        calls.append(arguments)
        raise OSError("database or disk is full")

    monkeypatch.setattr(MlflowClient, "log_inputs", full)
    warnings = []
    tracker = MlflowTracker(settings(f"sqlite:///{tmp_path}/mlflow.db"), "mixed-sft", warnings.append)
    example_run.feed(tracker, tmp_path / "runs" / "a", stages=2)
    assert len(calls) == 1
    (warning,) = warnings
    assert "OSError: database or disk is full" in warning
    assert tracker.uri is None
    assert tracker.run_id is not None


def test_a_reason_keeps_its_last_words():
    pool = "HTTPConnectionPool(host='127.0.0.1', port=5000): Max retries exceeded with url: /api/2.0/mlflow/experiments"
    caused = f"API request to http://127.0.0.1:5000 failed with exception {pool} (Caused by: Connection refused)"
    assert mlflow_store.error_summary(OSError(caused)).endswith("(Caused by: Connection refused)")
    assert len(mlflow_store.error_summary(OSError(caused))) < 220
    page = f"API request to endpoint failed with error code 502 != 200. Response body: '<html>{'x' * 5000}</html>'"
    assert (
        mlflow_store.error_summary(OSError(page))
        == "OSError: API request to endpoint failed with error code 502 != 200."
    )
    assert mlflow_store.error_summary(OSError("disk is full\n[SQL: INSERT]")) == "OSError: disk is full"


def test_malformed_event_gives_one_warning(tmp_path):
    warnings = []
    tracker = MlflowTracker(settings(f"sqlite:///{tmp_path}/mlflow.db"), "mixed-sft", warnings.append)
    tracker.harness_on_event(events.RunStarted(name=1, id=2, folder=3, spec=4, plan=5, environment=6))
    tracker.harness_on_event(events.DataPrepared(counts=1, stages=2, shares=3, digests=4, template=5))
    assert len(warnings) == 1


def test_warning_is_on_error_stream_by_default(tmp_path, capsys):
    tracker = MlflowTracker(settings("carrier-pigeon://coop"), "mixed-sft")
    example_run.feed(tracker, tmp_path / "runs" / "a")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("warning: MLflow tracking at carrier-pigeon://coop has stopped: ")
    assert shown.err.count("\n") == 1


def test_user_settings_of_mlflow_are_respected(monkeypatch):
    mlflow_store.import_mlflow()  # MLflow sets levels of its own when it is first imported
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")
    monkeypatch.setenv("MLFLOW_LOGGING_LEVEL", "INFO")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    logging.getLogger("alembic").setLevel(logging.INFO)
    mlflow_store.import_mlflow()
    import os

    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "5"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "10"
    assert logging.getLogger("alembic").level == logging.INFO


# -- where, and under which names -------------------------------------------------------------------------------------


def test_store_is_from_spec_then_environment_then_local_file(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there")
    assert mlflow_store.tracking_uri("http://given") == "http://given"
    assert mlflow_store.tracking_uri(None) == "http://there"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert mlflow_store.tracking_uri(None) == "sqlite:///mlflow.db"


def test_artifacts_are_next_to_database_or_chosen_by_server(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert mlflow_store.artifact_location("sqlite:///mlflow.db") == (tmp_path / "mlartifacts").as_uri()
    assert (
        mlflow_store.artifact_location(f"sqlite:///{tmp_path}/a/x.db?timeout=3")
        == (tmp_path / "a" / "mlartifacts").as_uri()
    )
    assert mlflow_store.artifact_location("http://there") is None
    assert mlflow_store.artifact_location("postgresql://there/db") is None


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("helpdesk/rougeL", "helpdesk/rougeL"),
        ("a@b+c", "a_b_c"),
        ("../up//x", "__/up/x"),
        ("客服/rouge", "客服/rouge"),
        ("$schema", "_schema"),
        ("x" * 300, "x" * 250),
        ("", "_"),
    ],
)
def test_name_is_changed_to_valid_mlflow_name(given, name):
    from mlflow.utils.validation import _validate_metric_name

    assert redaction.mlflow_name(given) == name
    _validate_metric_name(name)


def test_keys_with_equal_mlflow_names_stay_distinct():
    assert redaction.flatten_settings({"a+b": 1, "a@b": 2, "a_b": 3}) == {"a_b": "1", "a_b_": "2", "a_b__": "3"}


def test_stage_params_include_requested_shares():
    parts = (StageSource("a", "domain", 50), StageSource("b", "general"), StageSource("c", "general"))
    asked = Share(("b", "c"), 0.25, "rows", weights=(1.0, 3.0), upsample=True)
    assert mlflow_entries.stage_parameters(Stage("one", parts, {"epochs": 2}, (asked,))) == {
        "train.epochs": "2",
        "sources.a": "domain",
        "sources.b": "general",
        "sources.c": "general",
        "limits.a": "50",
        "shares.b_c.amount": "0.25",
        "shares.b_c.unit": "rows",
        "shares.b_c.weights": "[1.0, 3.0]",
        "shares.b_c.upsample": "true",
    }
    assert mlflow_entries.stage_parameters(Stage("one", parts[1:], {})) == {
        "train": "{}", "sources.b": "general", "sources.c": "general"
    }  # fmt: skip


# -- the background thread --------------------------------------------------------------------------------------------


def test_jobs_run_in_order_without_blocking():
    work, done, gate = WorkerThread("test"), [], threading.Event()
    work.submit(gate.wait)
    for number in range(50):
        work.submit(lambda number=number: done.append(number))
    assert done == []
    gate.set()
    work.wait(10)
    assert done == list(range(50))
    assert work.error is None


def test_no_job_runs_after_a_failed_one():
    work, done = WorkerThread("test"), []
    gate = threading.Event()
    work.submit(gate.wait)
    work.submit(lambda: 1 / 0)
    work.submit(lambda: done.append(1))
    gate.set()
    work.wait(10)
    work.submit(lambda: done.append(2))
    work.wait(10)
    assert isinstance(work.error, ZeroDivisionError)
    assert done == []


def test_timeout_counts_from_last_finished_job():
    work = WorkerThread("test")
    for _ in range(4):
        work.submit(lambda: time.sleep(0.2))
    work.wait(0.6)
    assert work.error is None
    gate = threading.Event()
    work.submit(gate.wait)
    work.wait(0.1)
    assert isinstance(work.error, TimeoutError)
    with contextlib.suppress(Exception):
        gate.set()


def test_tracker_imports_neither_mlflow_nor_torch():
    script = (
        "import sys, harness.tracking.tracker; print([n for n in ('mlflow', 'torch', 'numpy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
