"""What a run leaves in an MLflow store, and that a store which fails costs a run one warning."""

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

from harness.tracking import mlflow_entries, mlflow_store
from harness.tracking import tracker as tracker_module
from harness.tracking.background import WorkerThread
from harness.tracking.tracker import Tracker
from harness.types import Event, Share, Stage, StageSource
from harness.utils import redaction


def settings(uri, experiment=None, enabled=True):
    return {"enabled": enabled, "experiment": experiment, "uri": uri}


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A run of two stages in a new SQLite store, with its parent, children and client."""
    folder = tmp_path_factory.mktemp("tracked")
    uri = f"sqlite:///{folder}/deep/mlflow.db"
    warnings = []
    tracker = Tracker(settings(uri), "mixed-sft", warnings.append)
    spec = {
        "track": settings("https://me:hunter2@track.example"),
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


def test_a_run_is_a_parent_with_one_child_a_stage(tracked):
    assert tracked.warnings == []
    assert tracked.parent.info.run_name == "mixed-sft-a1"
    assert [run.info.run_name for run in tracked.children] == ["mixed-sft-a1/stage-1", "mixed-sft-a1/stage-2"]
    assert {run.data.tags["mlflow.parentRunId"] for run in tracked.children} == {tracked.tracker.run_id}
    assert {run.info.status for run in (tracked.parent, *tracked.children)} == {"FINISHED"}


def test_the_run_says_how_it_trained(tracked):
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


def test_realised_shares_are_written_of_the_whole_stage_and_by_epoch(tracked):
    def history(name):
        found = tracked.client.get_metric_history(tracked.children[0].info.run_id, name)
        return [(entry.step, entry.value) for entry in found]

    assert history("share/general/loss_tokens") == [(0, 0.102)]
    assert history("epoch_share/general/loss_tokens") == [(1, 0.101), (2, 0.103)]


def test_every_parameter_is_kept_and_a_long_one_is_cut_with_a_note(tracked):
    params = tracked.parent.data.params
    assert [params[f"many.key{i:03}"] for i in range(250)] == [str(i) for i in range(250)]
    assert len(params["description"]) == 500
    assert params["description"].endswith("x… (truncated; see spec.json)")
    assert params["sources.café_1.jsonl.path"] == "a.jsonl"
    assert params["sources.café_1.jsonl.columns"] == "{}"


def test_no_secret_is_anywhere_in_the_store(tracked):
    assert tracked.parent.data.params["track.uri"] == "https://track.example"
    assert tracked.parent.data.params["sources.café_1.jsonl.api_key"] == "(left out)"
    files = [file for file in (tracked.folder / "deep").rglob("*") if file.is_file()]
    assert len(files) > 5
    for file in files:
        assert b"hunter2" not in file.read_bytes(), file


def test_every_step_of_a_stage_is_a_metric_of_its_child(tracked):
    for child in tracked.children:
        assert values(tracked, child, "loss") == [(step, 3.0 / step) for step in range(1, 46)]
        assert len(values(tracked, child, "penalty/ewc")) == 45
        assert values(tracked, child, "stage/tokens") == [(45, 100.0)]
    assert "loss" not in tracked.parent.data.metrics


def test_evaluations_within_a_stage_are_metrics_of_its_child_by_update(tracked):
    for child in tracked.children:
        assert values(tracked, child, "during/helpdesk/rougeL") == [(20, pytest.approx(0.2)), (40, pytest.approx(0.4))]
        assert values(tracked, child, "during/combined") == [(20, pytest.approx(0.4)), (40, pytest.approx(0.8))]


def test_scores_of_the_parent_have_the_stage_as_step_and_their_difference_at_the_end(tracked):
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


def test_what_the_stages_forgot_is_a_metric_a_summary(tracked):
    report = example_run.made_report(tracked.folder, stages=2)
    summaries = {
        f"forgetting/{matrix.score}/{name}": estimate.value
        for matrix in report.matrices
        for name, estimate in matrix.summaries.items()
    }
    metrics = tracked.parent.data.metrics
    assert {key: metrics[key] for key in metrics if key.startswith("forgetting/")} == pytest.approx(summaries)
    assert "forgetting/rougeL/average_accuracy" in summaries


def test_data_sets_are_inputs_with_their_digests(tracked):
    inputs = {
        (one.dataset.name, one.tags[0].value): one.dataset
        for one in tracked.client.get_run(tracked.parent.info.run_id).inputs.dataset_inputs
    }
    assert {name for name, _ in inputs} == {"helpdesk", "general"}
    assert inputs["helpdesk", "training"].digest == "a" * 36
    assert json.loads(inputs["general", "training"].source) == {"path": "data/general.jsonl"}
    children = tracked.client.get_run(tracked.children[0].info.run_id).inputs.dataset_inputs
    assert {one.dataset.name for one in children} == {"helpdesk", "general"}


def test_files_of_the_run_are_artifacts_beside_the_database(tracked):
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


def test_the_runs_folder_says_where_it_is_tracked(tracked):
    written = json.loads((tracked.folder / "runs" / "mixed-sft-a1" / "mlflow.json").read_text())
    assert written == {"uri": tracked.uri, "experiment": "mixed-sft", "run_id": tracked.tracker.run_id}
    assert tracked.tracker.uri == tracked.uri


def test_a_failed_run_ends_as_failed_with_what_it_has(tracked):
    tracker = Tracker(settings(tracked.uri, "broken"), "mixed-sft")
    example_run.feed(tracker, tracked.folder / "runs" / "mixed-sft-f1", fail=True)
    client = tracked.client
    parent = client.get_run(tracker.run_id)
    assert parent.info.status == "FAILED"
    assert parent.data.tags["error"] == "RuntimeError: out of memory"
    (child,) = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{tracker.run_id}'")
    assert child.info.status == "FAILED"
    assert len(client.get_metric_history(child.info.run_id, "loss")) == 50
    assert "predictions/helpdesk-stage0.jsonl" in artifacts(client, tracker.run_id)


def test_a_second_run_joins_the_experiment_of_the_first(tracked):
    tracker = Tracker(settings(tracked.uri), "mixed-sft")
    example_run.feed(tracker, tracked.folder / "runs" / "mixed-sft-a2")
    assert tracked.client.get_run(tracker.run_id).info.experiment_id == tracked.parent.info.experiment_id


FEED = """
import runpy, sys
from harness.tracking.tracker import Tracker
file, uri, folder = sys.argv[1:]
tracker = Tracker({"enabled": True, "experiment": None, "uri": uri}, "mixed-sft")
runpy.run_path(file)["feed"](tracker, folder)
if tracker.uri is None:
    sys.exit("tracking has failed")
"""


def start(folder, name):
    """A process that feeds a run to a store in the folder."""
    made_run = str(ROOT / "tests" / "support" / "example_run.py")
    arguments = [sys.executable, "-c", FEED, made_run, f"sqlite:///{folder}/mlflow.db", f"{folder}/runs/{name}"]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder)


def test_two_runs_that_start_at_once_share_a_new_store_and_print_nothing(tmp_path):
    started = [start(tmp_path, name) for name in ("both-1", "both-2")]
    assert [process.communicate(timeout=200) for process in started] == [("", ""), ("", "")]
    assert [process.returncode for process in started] == [0, 0]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["mlartifacts", "mlflow.db", "runs"]


# -- stores that fail -------------------------------------------------------------------------------------------------


def test_tracking_that_is_off_touches_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracker = Tracker(settings(None, enabled=False), "mixed-sft")
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
def test_a_store_that_cannot_be_used_costs_one_warning_and_little_time(bad, request, tmp_path):
    uri = request.getfixturevalue(bad)
    warnings = []
    tracker = Tracker(settings(uri), "mixed-sft", warnings.append)
    import mlflow  # noqa: F401  (its import is no part of the time that counts)

    started = time.monotonic()
    example_run.feed(tracker, tmp_path / "runs" / "a", stages=2)
    assert time.monotonic() - started < 20
    (warning,) = warnings
    assert "MLflow tracking at" in warning
    assert f"the run continues and saves all results in {tmp_path}/runs/a" in warning
    assert "\n" not in warning
    assert "hunter2" not in warning
    assert len(warning) < 600
    assert tracker.run_id is None
    assert tracker.uri is None
    assert (tmp_path / "runs" / "a" / "report.json").exists()


def test_a_server_that_never_answers_is_waited_for_once(tmp_path, monkeypatch):
    monkeypatch.setattr(tracker_module, "START_TIMEOUT", 1.0)
    warnings = []
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        tracker = Tracker(settings(f"http://127.0.0.1:{deaf.getsockname()[1]}"), "mixed-sft", warnings.append)
        started = time.monotonic()
        example_run.feed(tracker, tmp_path / "runs" / "a")
        assert time.monotonic() - started < 15
    (warning,) = warnings
    assert "no answer within 1 s" in warning


def test_a_store_that_breaks_in_mid_run_is_left_alone_from_there_on(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    calls = []

    def full(self, *arguments, **options):
        calls.append(arguments)
        raise OSError("database or disk is full")

    monkeypatch.setattr(MlflowClient, "log_inputs", full)
    warnings = []
    tracker = Tracker(settings(f"sqlite:///{tmp_path}/mlflow.db"), "mixed-sft", warnings.append)
    example_run.feed(tracker, tmp_path / "runs" / "a", stages=2)
    assert len(calls) == 1
    (warning,) = warnings
    assert "OSError: database or disk is full" in warning
    assert tracker.uri is None
    assert tracker.run_id is not None


def test_an_event_that_the_tracker_cannot_read_is_a_warning_too(tmp_path):
    warnings = []
    tracker = Tracker(settings(f"sqlite:///{tmp_path}/mlflow.db"), "mixed-sft", warnings.append)
    tracker.harness_on_event(Event("run_started", 0, {"wrong": 1}))
    tracker.harness_on_event(Event("data", 0, {}))
    assert len(warnings) == 1


def test_the_warning_is_on_the_error_stream_when_nobody_asks_for_it(tmp_path, capsys):
    tracker = Tracker(settings("carrier-pigeon://coop"), "mixed-sft")
    example_run.feed(tracker, tmp_path / "runs" / "a")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("warning: MLflow tracking at carrier-pigeon://coop has stopped: ")
    assert shown.err.count("\n") == 1


def test_the_users_own_settings_of_mlflow_hold(monkeypatch):
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


def test_the_store_is_the_specs_else_the_environments_else_a_file_here(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there")
    assert mlflow_store.tracking_uri("http://given") == "http://given"
    assert mlflow_store.tracking_uri(None) == "http://there"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert mlflow_store.tracking_uri(None) == "sqlite:///mlflow.db"


def test_artifacts_lie_beside_a_database_and_where_a_server_wants_them(tmp_path, monkeypatch):
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
def test_a_name_becomes_one_that_mlflow_takes(given, name):
    from mlflow.utils.validation import _validate_metric_name

    assert redaction.mlflow_name(given) == name
    _validate_metric_name(name)


def test_two_keys_that_become_one_name_stay_apart():
    assert redaction.flatten_settings({"a+b": 1, "a@b": 2, "a_b": 3}) == {"a_b": "1", "a_b_": "2", "a_b__": "3"}


def test_a_stage_names_the_shares_that_were_asked_for():
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


def test_jobs_are_done_in_order_and_nobody_waits_for_them():
    work, done, gate = WorkerThread("test"), [], threading.Event()
    work.submit(gate.wait)
    for number in range(50):
        work.submit(lambda number=number: done.append(number))
    assert done == []
    gate.set()
    work.wait(10)
    assert done == list(range(50))
    assert work.error is None


def test_after_a_failed_job_no_other_is_done():
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


def test_patience_is_counted_from_the_last_job_that_was_done():
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


def test_importing_the_tracker_imports_neither_mlflow_nor_torch():
    script = (
        "import sys, harness.tracking.tracker; print([n for n in ('mlflow', 'torch', 'numpy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
