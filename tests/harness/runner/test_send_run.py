"""`harness track` sends a run's folder later: MLflow gets what a live run would have logged, and nothing twice."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness import events
from harness.tracking import background, mlflow_store


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A second store, for what is sent later."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('other')}/mlflow.db"
    return SimpleNamespace(uri=uri, client=mlflow_store.open_store(uri, create=True))


def tracked(uri, **changes):
    return {"track": {"mlflow": {"experiment": "later", "uri": uri, "system_metrics": False, **changes}}}


def run_of(client, folder):
    return client.get_run(json.loads((folder / "mlflow.json").read_text())["run_id"])


def children(client, run):
    query = f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
    return sorted(client.search_runs([run.info.experiment_id], query), key=lambda child: child.info.run_name)


def artifact_paths(client, run_id, path=None):
    paths = []
    for entry in client.list_artifacts(run_id, path):
        paths += artifact_paths(client, run_id, entry.path) if entry.is_dir else [entry.path]
    return sorted(paths)


def everything(client, run, folder: Path):
    """Return all that a store has of a run and its child runs, without times and ids."""
    run_id = run.info.run_id
    target = folder / run_id
    target.mkdir(parents=True, exist_ok=True)
    tags = {key: value for key, value in run.data.tags.items() if key != "mlflow.parentRunId"}
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "params": run.data.params,
        "tags": tags,
        "metrics": {
            key: [(point.step, repr(point.value)) for point in client.get_metric_history(run_id, key)]
            for key in run.data.metrics
        },
        "sources": sorted(
            (entry.dataset.name, entry.dataset.digest, entry.dataset.source, entry.tags[0].value)
            for entry in client.get_run(run_id).inputs.dataset_inputs
        ),
        "files": {
            path: Path(client.download_artifacts(run_id, path, str(target))).read_bytes()
            for path in artifact_paths(client, run_id)
        },
        "children": [everything(client, child, folder) for child in children(client, run)],
    }


def all_run_ids(client):
    return {run.info.run_id for run in client.search_runs([one.experiment_id for one in client.search_experiments()])}


def assert_sent_as_live(desk, client, other, folder, tmp_path):
    """Send a run that was tracked live to another store, twice, and compare the stores."""
    live = everything(client, run_of(client, folder), tmp_path / "live")
    assert desk.command("track", folder, "--uri", other.uri) == 0
    sent_run = run_of(other.client, folder)
    assert everything(other.client, sent_run, tmp_path / "sent") == live
    ids = all_run_ids(other.client)
    assert desk.command("track", folder, "--uri", other.uri) == 0
    assert desk.command("track", folder) == 0, "mlflow.json names the store now"
    (folder / "mlflow.json").unlink()
    assert desk.command("track", folder, "--uri", other.uri) == 0
    assert all_run_ids(other.client) == ids
    assert run_of(other.client, folder).info.run_id == sent_run.info.run_id
    assert everything(other.client, run_of(other.client, folder), tmp_path / "again") == live
    return live


@pytest.mark.slow
def test_a_finished_run_is_sent_as_a_live_run_logs_it_and_never_twice(desk, uri, client, other, tmp_path, capsys):
    document = desk.continual(**tracked(uri, model="files", register="later-model"))
    document["train"]["evaluate_steps"] = 2
    folder = desk.start(document)
    live = assert_sent_as_live(desk, client, other, folder, tmp_path)
    assert len(live["children"]) == 2
    assert len(live["children"][0]["metrics"]["loss"]) == 4
    assert any(key.startswith("during/") for key in live["children"][0]["metrics"])
    assert {"report.html", "scores.json", "tables/domain.json", "model/config.json"} <= set(live["files"])
    assert len(other.client.search_model_versions("name='later-model'")) == 1
    run = run_of(other.client, folder)
    started_at, ended_at = ((folder / name).stat().st_mtime for name in ("spec.json", "report.json"))
    assert run.info.start_time == pytest.approx(1000 * started_at, abs=1)
    assert run.info.end_time == pytest.approx(1000 * ended_at, abs=60_000), "not when it was sent"
    page = f"http://127.0.0.1:5000/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    assert page in capsys.readouterr().out.splitlines()


@pytest.mark.slow
def test_an_interrupted_run_is_sent_as_killed_and_then_resumed(desk, uri, client, other, tmp_path, listener):
    def in_second_stage(event, recorder):
        """Interrupt at an event that the tracker does not record, so that it has what the folder has."""
        steps = [(logged.stage_index, logged.step) for logged in recorder.of(events.StepLogged)]
        return isinstance(event, events.ProgressUpdated) and steps[-1:] == [(2, 3)]

    document = desk.continual(**tracked(uri))
    with pytest.raises(KeyboardInterrupt):
        desk.start(document, listener(in_second_stage))
    folder = desk.newest()
    live = assert_sent_as_live(desk, client, other, folder, tmp_path)
    assert (live["status"], live["tags"]["error"]) == ("KILLED", "interrupted")
    assert [child["status"] for child in live["children"]] == ["FINISHED", "KILLED"]
    assert [step for step, _ in live["children"][1]["metrics"]["loss"]] == [1, 2, 3]
    run_id = run_of(other.client, folder).info.run_id
    desk.resume(folder)
    run = other.client.get_run(run_id)
    assert (run.info.status, "error" in run.data.tags) == ("FINISHED", False)
    assert [point.step for point in other.client.get_metric_history(run_id, "domain/chrf")] == [0, 1, 2]


@pytest.mark.slow
def test_the_arms_of_an_experiment_are_sent_below_it(desk, uri, client, other, tmp_path, capsys):
    document = desk.document(**tracked(uri), arms={"named": {"naive": {}, "slow": {"train.learning_rate": 0.001}}})
    assert desk.command("run", desk.write(document)) == 0
    folder = desk.newest()
    out = capsys.readouterr().out
    run = run_of(client, folder)
    runs_page = (
        f"mlflow ui --backend-store-uri {uri}, then http://127.0.0.1:5000/#/experiments/{run.info.experiment_id}/runs"
    )
    assert [line for line in out.splitlines() if "MLflow" in line or "curves" in line] == [
        f"live curves: {runs_page}/{run.info.run_id}",
        f"all runs in MLflow: {runs_page}?viewStateShareKey=harness",
    ]
    live = assert_sent_as_live(desk, client, other, folder, tmp_path)
    assert [child["name"] for child in live["children"]] == ["naive", "slow"]
    assert [len(child["children"]) for child in live["children"]] == [1, 1]
    ids = all_run_ids(other.client)
    for file in folder.glob("arms/*/mlflow.json"):
        file.unlink()
    assert desk.command("track", folder) == 0
    assert all_run_ids(other.client) == ids, "arms go where their experiment is"
    assert live["tags"]["mlflow.note.content"].lower().startswith(live["tags"]["advice"].lower())
    capsys.readouterr()
    assert desk.command("track", folder / "arms" / "slow") == 2
    assert f"send the experiment, with all its arms: harness track {folder}" in capsys.readouterr().err


@pytest.mark.slow
def test_the_evaluation_of_a_tuned_model_is_sent(desk, uri, client, other, tmp_path):
    document = desk.document(**tracked(uri))
    assert desk.command("evaluate", desk.write(document), "--tuned", desk.folder / "tiny") in (0, 3)
    live = assert_sent_as_live(desk, client, other, desk.newest(), tmp_path)
    assert live["children"] == []


@pytest.mark.slow
def test_a_server_that_was_not_there_loses_nothing_for_good(desk, other, capsys, monkeypatch):
    monkeypatch.setattr(background, "START_TIMEOUT", 1.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        document = desk.document(**tracked(f"http://127.0.0.1:{silent.getsockname()[1]}"))
        assert desk.command("run", "--quiet", desk.write(document)) == 0
        folder = desk.newest()
        warning = capsys.readouterr().err
        assert "has stopped: TimeoutError: no answer within 1 s; nothing of the run is sent; " in warning
        assert f"to send them later: harness track {folder}" in warning
        assert not (folder / "mlflow.json").exists()
        assert desk.command("track", folder) == 1
        error = capsys.readouterr().err
        assert f"no answer within 1 s; when it works again: harness track {folder}" in error
        assert "Traceback" not in error
    assert desk.command("track", folder, "--uri", other.uri) == 0
    run = run_of(other.client, folder)
    assert run.info.status == "FINISHED"
    assert "domain/chrf/delta" in run.data.metrics


@pytest.mark.slow
def test_a_run_whose_store_failed_is_completed(desk, other, capsys, monkeypatch, tmp_path):
    from mlflow import MlflowClient

    def fail(*_):
        raise OSError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "log_inputs", fail)
        assert desk.command("run", "--quiet", desk.write(desk.document(**tracked(other.uri)))) == 0
    folder = desk.newest()
    assert "OSError: database or disk is full; nothing that follows is sent; " in capsys.readouterr().err
    run_id = run_of(other.client, folder).info.run_id
    assert other.client.get_run(run_id).info.status == "RUNNING"
    assert desk.command("track", folder) == 0
    sent = everything(other.client, other.client.get_run(run_id), tmp_path)
    assert sent["status"] == "FINISHED"
    assert [source[0] for source in sent["sources"]] == ["domain", "general"]
    assert [step for step, _ in sent["children"][0]["metrics"]["loss"]] == [1, 2]
    assert "harness.resumed" not in sent["tags"]


@pytest.mark.slow
def test_arms_do_not_wait_for_a_server_that_the_experiment_has_not_reached(desk, capsys, monkeypatch):
    waits = []
    start_run = background.TrackingQueue.start_run

    def count(queue, *arguments):
        waits.append(queue)
        return start_run(queue, *arguments)

    monkeypatch.setattr(background.TrackingQueue, "start_run", count)
    document = desk.document(
        **tracked("carrier-pigeon://coop"), arms={"named": {"naive": {}, "other": {"train.steps": 1}}}
    )
    assert desk.command("run", "--quiet", desk.write(document)) == 0
    assert len(waits) == 1
    assert capsys.readouterr().err.count("MLflow tracking at") == 1
