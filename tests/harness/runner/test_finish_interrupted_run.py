"""A run that was killed after its report is brought to its end, and its MLflow run with it."""

from __future__ import annotations

import json
import shutil

import pytest

from harness.errors import HarnessError
from harness.hookspecs import hookimpl
from harness.report.html import write
from harness.runner import main_process
from harness.tracking.tracker import Tracker


class Killed(BaseException):
    """Stands for a process that is gone: nobody hears of it."""


@pytest.fixture
def killed_at(monkeypatch):
    """Kills runs at the event of this kind; the tracker hears nothing from `deaf` on, as if its queue were lost."""

    def killed_at(kind, deaf=None):
        real, lost = Tracker.harness_on_event, []

        @hookimpl
        def heard(self, event):
            if event.type == deaf:
                lost.append(event)
            if event.type == kind:
                raise Killed
            if event.type != "run_failed" and not lost:
                real(self, event)

        monkeypatch.setattr(Tracker, "harness_on_event", heard)

    return killed_at


def tracked(desk, uri, **changes):
    return desk.document(**{"track": {"experiment": "closing", "uri": uri, "system_metrics": False}, **changes})


def kill(desk, document):
    with pytest.raises(Killed):
        desk.start(document)
    return desk.newest()


def run_of(client, place):
    return client.get_run(json.loads((place / "mlflow.json").read_text())["run_id"])


def children(client, run):
    query = f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
    return sorted(client.search_runs([run.info.experiment_id], query), key=lambda one: str(one.info.run_name))


def artifacts(client, run_id, path=None):
    found = []
    for one in client.list_artifacts(run_id, path):
        found += artifacts(client, run_id, one.path) if one.is_dir else [one.path]
    return sorted(found)


def history(client, run):
    return {
        key: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, key)] for key in run.data.metrics
    }


def timeless(values):
    """Without what a clock says."""
    return {key: one for key, one in values.items() if "second" not in key}


WATCHED = {"steps": 2, "batch_size": 2, "learning_rate": 0.01, "max_length": 64, "evaluate_steps": 1}


@pytest.fixture(scope="module")
def whole(desk, uri):
    """A run that nobody killed."""
    return desk.start(tracked(desk, uri, train=WATCHED))


@pytest.mark.parametrize("deaf", ["run_finished", "stage_started", "evaluated"])
def test_a_run_killed_before_its_tracking_ended_is_gone_on_with_to_a_finished_one(
    desk, uri, client, whole, killed_at, monkeypatch, listener, deaf
):
    """What the tracker had not sent when the process died is sent from the folder, and nothing twice."""
    killed_at("run_finished", deaf)
    place = kill(desk, tracked(desk, uri, train=WATCHED))
    assert (place / "report.json").is_file()
    assert run_of(client, place).info.status == "RUNNING"
    monkeypatch.undo()
    before = (place / "report.json").read_bytes()
    heard = listener()
    made = desk.resume(place, heard)
    assert heard.kinds()[-1] == "run_closed"
    assert heard.events[-1].data["lacked"] == ("tracking",)
    assert not [one for one in heard.events if one.type in ("step", "progress")], "nothing is trained or asked again"
    assert (place / "report.json").read_bytes() == before
    told = json.loads(before)
    assert made.to_json() == told, "the report made again is the one that the run wrote"

    run, other = run_of(client, place), run_of(client, whole)
    assert run.info.status == "FINISHED"
    assert history(client, run) == history(client, other)
    assert artifacts(client, run.info.run_id) == artifacts(client, other.info.run_id)
    assert {"report.html", "report.json", "tables/domain.json"} <= set(artifacts(client, run.info.run_id))
    assert {**run.data.params, "output": ""} == {**other.data.params, "output": ""}
    (child,), (its,) = children(client, run), children(client, other)
    assert child.info.status == "FINISHED"
    assert timeless(history(client, child)) == timeless(history(client, its))
    assert any(key.startswith("during/") for key in child.data.metrics)

    with pytest.raises(HarnessError, match="the run is finished"):
        desk.resume(place)
    assert run_of(client, place).data.tags["harness.resumed"] == "1"


def test_a_run_killed_while_it_made_its_page_gets_it_and_gives_the_disk_back(desk, monkeypatch, capsys):
    def no(*_):
        raise Killed

    monkeypatch.setattr(main_process, "write_report_page", no)
    place = kill(desk, desk.document(gate=[{"score": "general/response_perplexity", "falls_at_least": 1e9}]))
    monkeypatch.undo()
    assert list(place.glob("stages/*/end"))
    assert desk.command("run", "--resume", place) == 3, "the gate is judged as it would have been"
    assert (place / "report.html").is_file()
    assert not list(place.glob("stages/*/end"))
    told = capsys.readouterr()
    assert "the run was finished but for its end: its page is made, the ends of its stages are gone now" in told.out
    assert "gate: FAILED" in told.err
    assert desk.command("run", "--resume", place) == 2


def test_a_run_that_failed_by_a_limit_of_its_suites_stays_failed(desk, uri, client, killed_at, monkeypatch, capsys):
    suites = desk.document()["evaluate"]
    suites["domain"] = {**suites["domain"], "max_truncated": 0.0, "max_empty": 0.0}
    killed_at("run_finished")
    place = kill(desk, tracked(desk, uri, evaluate=suites))
    monkeypatch.undo()
    assert desk.command("run", "--quiet", "--resume", place) == 1
    assert "the scores do not measure the model" in capsys.readouterr().err
    assert run_of(client, place).info.status == "FAILED"
    assert desk.command("run", "--quiet", "--resume", place) == 2, "it is what it is"
    assert "the run is finished" in capsys.readouterr().err


def test_an_interruption_after_the_report_is_no_failure_of_the_run(desk, uri, client, monkeypatch):
    def no(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(main_process, "write_report_page", no)
        with pytest.raises(KeyboardInterrupt):
            desk.start(tracked(desk, uri))
    place = desk.newest()
    assert run_of(client, place).info.status == "FAILED"
    assert desk.command("run", "--quiet", "--resume", place) == 0
    run = run_of(client, place)
    assert run.info.status == "FINISHED"
    assert "error" not in run.data.tags


def test_a_model_is_registered_once(desk, uri, client, killed_at, monkeypatch):
    track = {"experiment": "closing", "uri": uri, "system_metrics": False, "model": "files", "register": "closed"}
    with monkeypatch.context() as patched:
        patched.setattr("harness.tracking.mlflow_run.MlflowRun.end", lambda self, status: None)
        place = desk.start(desk.document(track=track))
    assert run_of(client, place).info.status == "RUNNING"
    desk.resume(place)
    assert run_of(client, place).info.status == "FINISHED"
    assert len(client.search_model_versions("name='closed'")) == 1


def test_a_store_that_does_not_answer_is_named_and_changes_nothing(desk, uri, whole, tmp_path, capsys):
    place = shutil.copytree(whole, tmp_path / "copy")
    told = json.loads((place / "mlflow.json").read_text())
    (place / "mlflow.json").write_text(json.dumps({**told, "uri": f"sqlite:///{tmp_path}/gone.db"}))
    assert desk.command("run", "--resume", place) == 2
    line = capsys.readouterr().err
    assert "cannot read the status of the run" in line
    assert "gone.db" in line
    (place / "mlflow.json").write_text(json.dumps({**told, "run_id": "0" * 32}))
    assert desk.command("run", "--resume", place) == 2
    assert "the run is finished; start another one" in capsys.readouterr().err, "it was deleted there"


def test_an_arm_killed_before_its_tracking_ended_is_closed_with_its_experiment(
    desk, uri, client, killed_at, monkeypatch
):
    named = {"naive": {}, "slow": {"train.learning_rate": 0.001}}
    document = tracked(desk, uri, arms={"named": named})
    killed_at("run_finished")
    with pytest.raises(Killed):
        desk.command("run", "--quiet", desk.write(document))
    place = desk.newest()
    arm = place / "arms/naive"
    assert (arm / "report.json").is_file()
    assert run_of(client, arm).info.status == "RUNNING"
    monkeypatch.undo()
    assert desk.command("run", "--quiet", "--resume", place) == 0
    for one in (place, arm, place / "arms/slow"):
        assert run_of(client, one).info.status == "FINISHED"
    assert run_of(client, arm).data.tags["mlflow.parentRunId"] == run_of(client, place).info.run_id
    assert not list(place.glob("arms/*/stages/*/end"))
    assert list(json.loads((place / "arms.json").read_text())["arms"]) == ["naive", "slow"]


def test_a_run_that_goes_on_from_another_is_closed_with_the_matrix_of_both(desk, monkeypatch):
    def no(*_):
        raise Killed

    lora = {"mitigations": {"lora": {"rank": 2}}}
    first = desk.start(desk.document(**lora))
    with monkeypatch.context() as patched:
        patched.setattr(main_process, "write_report_page", no)
        place = kill(desk, desk.document(model={"path": f"run:{first}"}, **lora))
    made = desk.resume(place)
    assert made.previous_run is not None
    assert len(made.stages) == 3
    assert made.to_json() == json.loads((place / "report.json").read_text())


def test_a_page_that_still_cannot_be_made_is_not_said_to_be_there(desk, monkeypatch, capsys):
    def no(*_):
        raise OSError("no space left")

    place = desk.start(desk.document())
    (place / "report.html").unlink()
    (place / "stages/domain/end").mkdir()
    monkeypatch.setattr(write, "write_run_page", no)
    assert desk.command("run", "--resume", place) == 0
    told = capsys.readouterr()
    assert "report.html could not be made: no space left" in told.err
    assert "the run was finished but for its end: the ends of its stages are gone now" in told.out
    assert "page is made" not in told.out


def test_totals_of_another_version_are_one_error_line(desk, uri, client, killed_at, monkeypatch, capsys):
    killed_at("run_finished")
    place = kill(desk, tracked(desk, uri))
    monkeypatch.undo()
    (place / "stages/domain/trained.json").write_text('{"updates": 2}')
    assert desk.command("run", "--quiet", "--resume", place) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("harness: ")]
    assert "trained.json: was written by another version" in line
