"""A run that was killed after its report is completed, and its MLflow run too."""

from __future__ import annotations

import json
import shutil

import pytest

from harness import events
from harness.errors import HarnessError
from harness.hookspecs import hookimpl
from harness.report.html import write
from harness.runner import run_stages as run_stages_module
from harness.tracking.tracker import MlflowTracker


class Killed(BaseException):
    """Simulates a killed process: nothing handles it."""


@pytest.fixture
def killed_at(monkeypatch):
    """Kills runs at an event class; from `deaf` on the tracker receives nothing, as if its queue were lost."""

    def killed_at(kind, deaf=None):
        real, lost = MlflowTracker.harness_on_event, []

        @hookimpl
        def heard(self, event):
            if type(event) is deaf:
                lost.append(event)
            if type(event) is kind:
                raise Killed
            if not isinstance(event, events.RunFailed) and not lost:
                real(self, event)

        monkeypatch.setattr(MlflowTracker, "harness_on_event", heard)

    return killed_at


def tracked(desk, uri, **changes):
    options = {"experiment": "closing", "uri": uri, "system_metrics": False}
    return desk.document(**{"track": {"mlflow": options}, **changes})


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
    """A run that was not killed."""
    return desk.start(tracked(desk, uri, train=WATCHED))


@pytest.mark.slow
@pytest.mark.parametrize("deaf", [events.RunFinished, events.StageStarted, events.SuitesEvaluated])
def test_resume_finishes_tracking_of_killed_run(desk, uri, client, whole, killed_at, monkeypatch, listener, deaf):
    """What the tracker had not sent when the process died is sent from the folder, nothing twice."""
    killed_at(events.RunFinished, deaf)
    place = kill(desk, tracked(desk, uri, train=WATCHED))
    assert (place / "report.json").is_file()
    assert run_of(client, place).info.status == "RUNNING"
    monkeypatch.undo()
    before = (place / "report.json").read_bytes()
    heard = listener()
    made = desk.resume(place, heard)
    assert heard.classes()[-1] is events.InterruptedRunCompleted
    assert heard.events[-1].completed == ("tracking",)
    assert not [one for one in heard.events if isinstance(one, events.StepLogged | events.ProgressUpdated)], (
        "nothing is trained or asked again"
    )
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


def test_resume_writes_missing_page_and_deletes_snapshots(desk, monkeypatch, capsys):
    def no(*_):
        raise Killed

    monkeypatch.setattr(run_stages_module, "write_report_page", no)
    place = kill(desk, desk.document(gate=[{"score": "general/response_perplexity", "falls_at_least": 1e9}]))
    monkeypatch.undo()
    assert list(place.glob("stages/*/end"))
    assert desk.command("run", "--resume", place) == 3, "the gate is judged as it would have been"
    assert (place / "report.html").is_file()
    assert not list(place.glob("stages/*/end"))
    told = capsys.readouterr()
    assert "completed the interrupted run: wrote report.html, deleted the stage snapshots; " in told.out
    assert "gate: NOT ENOUGH EVIDENCE" in told.err
    assert desk.command("run", "--resume", place) == 2


def test_run_that_violates_limits_stays_failed(desk, uri, client, killed_at, monkeypatch, capsys):
    suites = desk.document()["evaluate"]
    suites["domain"] = {**suites["domain"], "max_truncated": 0.0, "max_empty": 0.0}
    killed_at(events.RunFinished)
    place = kill(desk, tracked(desk, uri, evaluate=suites))
    monkeypatch.undo()
    assert desk.command("run", "--quiet", "--resume", place) == 1
    assert "the scores do not measure the model" in capsys.readouterr().err
    assert run_of(client, place).info.status == "FAILED"
    assert desk.command("run", "--quiet", "--resume", place) == 2, "it is what it is"
    assert "the run is finished" in capsys.readouterr().err


def test_interruption_after_report_is_not_a_failure(desk, uri, client, monkeypatch):
    def no(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run_stages_module, "write_report_page", no)
        with pytest.raises(KeyboardInterrupt):
            desk.start(tracked(desk, uri))
    place = desk.newest()
    assert run_of(client, place).info.status == "KILLED"
    assert desk.command("run", "--quiet", "--resume", place) == 0
    run = run_of(client, place)
    assert run.info.status == "FINISHED"
    assert "error" not in run.data.tags


def test_model_is_registered_once(desk, uri, client, killed_at, monkeypatch):
    options = {"experiment": "closing", "uri": uri, "system_metrics": False, "model": "files", "register": "closed"}
    track = {"mlflow": options}
    with monkeypatch.context() as patched:
        patched.setattr("harness.tracking.mlflow_run.MlflowRun.end", lambda self, status: None)
        place = desk.start(desk.document(track=track))
    assert run_of(client, place).info.status == "RUNNING"
    desk.resume(place)
    assert run_of(client, place).info.status == "FINISHED"
    assert len(client.search_model_versions("name='closed'")) == 1


def test_unreachable_store_is_named_and_changes_nothing(desk, uri, whole, tmp_path, capsys):
    place = shutil.copytree(whole, tmp_path / "copy")
    told = json.loads((place / "mlflow.json").read_text())
    (place / "mlflow.json").write_text(json.dumps({**told, "uri": f"sqlite:///{tmp_path}/gone.db"}))
    assert desk.command("run", "--resume", place) == 2
    line = capsys.readouterr().err
    assert "cannot read the status of the run" in line
    assert "gone.db" in line
    (place / "mlflow.json").write_text(json.dumps({**told, "run_id": "0" * 32}))
    assert desk.command("run", "--resume", place) == 2
    assert "the run is finished; show its report" in capsys.readouterr().err, "it was deleted there"


@pytest.mark.slow
def test_resumed_experiment_finishes_tracking_of_killed_arm(desk, uri, client, killed_at, monkeypatch):
    named = {"naive": {}, "slow": {"train.learning_rate": 0.001}}
    document = tracked(desk, uri, arms={"named": named})
    killed_at(events.RunFinished)
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


@pytest.mark.slow
def test_completed_continued_run_has_matrix_of_both_runs(desk, monkeypatch):
    def no(*_):
        raise Killed

    lora = {"mitigations": {"lora": {"rank": 2}}}
    first = desk.start(desk.document(**lora))
    with monkeypatch.context() as patched:
        patched.setattr(run_stages_module, "write_report_page", no)
        place = kill(desk, desk.document(model={"path": f"run:{first}"}, **lora))
    made = desk.resume(place)
    assert made.previous_run is not None
    assert len(made.stages) == 3
    assert made.to_json() == json.loads((place / "report.json").read_text())


def test_page_that_cannot_be_written_is_not_reported_as_written(desk, monkeypatch, capsys):
    def no(*_):
        raise OSError("no space left")

    place = desk.start(desk.document())
    (place / "report.html").unlink()
    (place / "stages/domain/end").mkdir()
    monkeypatch.setattr(write, "write_run_page", no)
    assert desk.command("run", "--resume", place) == 0
    told = capsys.readouterr()
    assert "cannot write report.html: no space left" in told.err
    assert "completed the interrupted run: deleted the stage snapshots; " in told.out
    assert "wrote report.html" not in told.out


def test_totals_of_another_version_are_one_error_line(desk, uri, client, killed_at, monkeypatch, capsys):
    killed_at(events.RunFinished)
    place = kill(desk, tracked(desk, uri))
    monkeypatch.undo()
    (place / "stages/domain/trained.json").write_text('{"updates": 2}')
    assert desk.command("run", "--quiet", "--resume", place) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("harness: ")]
    assert "trained.json: was written by another version" in line
