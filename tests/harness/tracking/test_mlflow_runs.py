"""Runs that belong to an experiment, runs that are gone on with, and what a run leaves beside its numbers."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import example_run

from harness.comparison import compare
from harness.gate import GateResult
from harness.report.arm_comparison import ArmComparison
from harness.report.intransigence import Intransigence
from harness.report.recommendation import ArmPoint, Recommendation
from harness.statistics.intervals import Estimate
from harness.tracking import mlflow_store
from harness.tracking.artifacts import load_step_metrics
from harness.tracking.experiment_tracker import ExperimentTracker
from harness.tracking.tracker import Tracker
from harness.types import Event


def settings(uri, experiment, **more):
    return {"enabled": True, "experiment": experiment, "uri": uri, **more}


def fed(uri, folder, experiment, *, tracker=None, track=None, **options):
    """The tracker of a whole run, which warned of nothing."""
    made = Tracker(settings(uri, experiment, **(track or {})), "mixed-sft", pytest.fail, **(tracker or {}))
    example_run.feed(made, folder, **options)
    return made


def history(client, run_id, key):
    return sorted((one.step, one.value) for one in client.get_metric_history(run_id, key))


def children(client, run_id):
    run = client.get_run(run_id)
    found = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
    return sorted(found, key=lambda one: one.info.run_name)


def artifacts(client, run_id, path=None):
    found = []
    for one in client.list_artifacts(run_id, path):
        found += artifacts(client, run_id, one.path) if one.is_dir else [one.path]
    return sorted(found)


def read(client, run_id, name, folder):
    return Path(client.download_artifacts(run_id, name, str(folder))).read_text(encoding="utf-8")


# -- what a run leaves ------------------------------------------------------------------------------------------------


def test_tags_say_what_the_run_was_made_with_and_on(uri, client, tmp_path):
    environment = {
        "harness": "0.2.0",
        "model": {"path": "some/model", "digest": "c" * 64},
        "git": {"commit": "d" * 40, "changed": False},
    }
    made = fed(uri, tmp_path / "a", "tags", started={"environment": environment})
    tags = client.get_run(made.run_id).data.tags
    assert tags["harness.version"] == "0.2.0"
    assert tags["model.digest"] == "c" * 64
    assert tags["mlflow.source.git.commit"] == "d" * 40
    assert tags["data/helpdesk"] == "sha256:" + "a" * 64
    assert tags["harness.kind"] == "run"
    assert "gate" not in tags, "the spec has none"
    assert "arm" not in tags


@pytest.mark.parametrize(("passed", "told"), [(True, "passed"), (False, "failed")])
def test_the_gate_is_a_tag(uri, client, tmp_path, monkeypatch, passed, told):
    made = example_run.made_report
    judged = GateResult("general/rougeL falls at most 0.1", passed, 0.0, 0.0, 0.1, 40)
    monkeypatch.setitem(
        example_run.feed.__globals__, "made_report", lambda *given: dataclasses.replace(made(*given), gate=(judged,))
    )
    run = fed(uri, tmp_path / "a", "gate")
    assert client.get_run(run.run_id).data.tags["gate"] == told


def test_realised_shares_are_metrics_of_the_stage_by_epoch(uri, client, tmp_path):
    epochs = [[{"general": {"rows": 0.1}}, {"general": {"rows": 0.12}}], [{"general": {"rows": 0.2}}]]
    made = fed(uri, tmp_path / "a", "epochs", stages=2, steps=3, data={"epoch_shares": epochs, "lengths": {"x": 1}})
    first, second = children(client, made.run_id)
    assert history(client, first.info.run_id, "epoch_share/general/rows") == [(1, 0.1), (2, 0.12)]
    assert history(client, second.info.run_id, "epoch_share/general/rows") == [(1, 0.2)]


def test_answers_are_tables_that_the_page_shows_as_such(uri, client, tmp_path):
    made = fed(uri, tmp_path / "a", "tables", steps=1)
    table = json.loads(read(client, made.run_id, "tables/helpdesk.json", tmp_path))
    assert table["columns"] == ["id", "prompt", "reference", "base answer", "answer", "finish", "rougeL"]
    assert len(table["data"]) == 40
    first = dict(zip(table["columns"], table["data"][0], strict=True))
    assert first["base answer"] == "stage 0 says 0"
    assert first["answer"] == "stage 1 says 0"
    assert first["rougeL"] == pytest.approx(0.4)
    listed = json.loads(client.get_run(made.run_id).data.tags["mlflow.loggedArtifacts"])
    assert {"path": "tables/helpdesk.json", "type": "table"} in listed
    frame = client._read_from_file(client.download_artifacts(made.run_id, "tables/helpdesk.json", str(tmp_path)))
    assert frame["answer"][0] == "stage 1 says 0", "MLflow reads it as one of its own"


def test_plots_and_the_page_are_artifacts(uri, client, tmp_path):
    folder = tmp_path / "a"
    (folder / "plots").mkdir(parents=True)
    (folder / "plots" / "loss.svg").write_text("<svg/>")
    (folder / "report.html").write_text("<html/>")
    made = fed(uri, folder, "plots", steps=1)
    assert {"plots/loss.svg", "report.html"} <= set(artifacts(client, made.run_id))


def test_the_machine_is_watched_where_the_spec_asks_for_it(uri, client, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    made = Tracker(settings(uri, "system", system_metrics=True), "mixed-sft", pytest.fail)
    made.harness_on_event(Event("run_started", 0, started(tmp_path / "a")))
    deadline = time.monotonic() + 60
    while "system/cpu_utilization_percentage" not in client.get_run(made.run_id).data.metrics:
        assert time.monotonic() < deadline, "no sample has come"
        time.sleep(0.1)
    made.harness_on_event(Event("run_failed", 0, {"error": "enough"}))
    names = [thread.name for thread in __import__("threading").enumerate()]
    assert "SystemMetricsMonitor" not in names
    assert client.get_run(made.run_id).info.status == "FAILED"


def started(folder, **more):
    """The data of the event that a run starts with."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = {"name": "mixed-sft", "mode": {"mixed": {}}, "mitigations": {}, "train": {"learning_rate": 2e-4}}
    plan = example_run.made_plan(2)
    return {
        "name": "mixed-sft",
        "id": folder.name,
        "folder": str(folder),
        "spec": spec,
        "plan": plan,
        "environment": {},
        **more,
    }


# -- arms -------------------------------------------------------------------------------------------------------------


def experiment(folder, **points):
    """A comparison of arms with these gains and losses."""

    def estimate(value):
        return Estimate(value, 0.01, value - 0.02, value + 0.02, 40)

    made = [
        ArmPoint(arm, estimate(gain), estimate(lost), None if arm == "naive" else 0.5, True)
        for arm, (gain, lost) in points.items()
    ]
    return ArmComparison(
        "sweep",
        str(folder),
        "naive",
        {},
        (),
        "helpdesk/rougeL",
        "general/rougeL",
        tuple(made),
        {"ewc": "cut"},
        Recommendation("mix"),
        "joint",
        (Intransigence("naive", "rougeL", ("helpdesk",), estimate(0.1)),),
    )


@pytest.fixture(scope="module")
def sweep(uri, tmp_path_factory):
    """An experiment of two arms, run to its end."""
    folder = tmp_path_factory.mktemp("sweep") / "sweep-1"
    folder.mkdir()
    parent = ExperimentTracker(settings(uri, "sweep"), "sweep", folder, pytest.fail)
    parent.start({"name": "sweep", "mode": {"mixed": {}}, "arms": {"matrix": {"seed": [0, 1]}}}, ["naive", "mix=0.1"])
    arms = []
    for number, name in enumerate(("naive", "mix=0.1")):
        facts = {
            "name": name,
            "changes": {"mitigations.mixing.share": number / 10, "sources.x.jsonl.token": "hunter22"},
        }
        arms.append(
            fed(
                uri, folder / "arms" / name, "sweep", steps=2,
                tracker={"parent_run_id": parent.run_id}, started={"arm": facts},
            )
        )  # fmt: skip
    (folder / "arms.json").write_text("{}")
    (folder / "plots").mkdir()
    (folder / "plots" / "gain.svg").write_text("<svg/>")
    parent.finish(experiment(folder, **{"naive": (0.3, 0.2), "mix=0.1": (0.29, 0.05)}))
    return SimpleNamespace(parent=parent, arms=arms, folder=folder)


def test_arms_are_children_of_their_experiment_with_the_swept_keys_as_parameters(client, sweep):
    names = [run.info.run_name for run in children(client, sweep.parent.run_id)]
    assert names == ["mix=0.1", "naive"]
    arm = client.get_run(sweep.arms[1].run_id)
    assert arm.data.tags["arm"] == "mix=0.1"
    assert arm.data.params["arm/mitigations.mixing.share"] == "0.1"
    assert arm.data.params["arm/sources.x.jsonl.token"] == "(left out)"
    (stage,) = children(client, sweep.arms[1].run_id)
    assert stage.info.run_name == "mix=0.1/stage-1"


def test_the_experiment_has_what_the_comparison_came_to(client, sweep):
    run = client.get_run(sweep.parent.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == pytest.approx(
        {
            "arm/naive/gain": 0.3,
            "arm/naive/forgotten": 0.2,
            "arm/mix_0.1/gain": 0.29,
            "arm/mix_0.1/forgotten": 0.05,
            "arm/mix_0.1/recovered": 0.5,
            "arm/naive/intransigence/rougeL": 0.1,
        }
    )
    tags = run.data.tags
    assert (tags["harness.kind"], tags["baseline"], tags["advice"], tags["missing"]) == (
        "experiment", "naive", "mix", "ewc",
    )  # fmt: skip
    assert artifacts(client, sweep.parent.run_id) == ["arms.json", "plots/gain.svg", "spec.json"]
    written = json.loads((sweep.folder / "mlflow.json").read_text())
    assert written["run_id"] == sweep.parent.run_id


def test_comparing_an_experiment_compares_its_arms_and_not_what_holds_them(uri, sweep):
    for named in (["sweep-1"], [str(sweep.folder)], []):
        made = compare.compare_runs(named, "sweep", uri, items=0)
        assert [run.name for run in made.runs] == ["naive", "mix=0.1"]
    assert "arm/mitigations.mixing.share" not in made.differences, "the spec itself says it"


def test_an_experiment_that_is_gone_on_with_is_the_same_run(uri, client, sweep):
    facts = json.loads((sweep.folder / "mlflow.json").read_text())
    again = ExperimentTracker(settings(uri, "sweep"), "sweep", sweep.folder, pytest.fail, resume_info=facts)
    again.start({"name": "sweep", "mode": {"mixed": {}}, "arms": {"matrix": {"seed": [0, 1]}}}, ["naive", "mix=0.1"])
    assert again.run_id == sweep.parent.run_id
    assert client.get_run(again.run_id).info.status == "RUNNING"
    again.fail(RuntimeError("the arm 'ewc' failed at http://me:hunter22@there"))
    run = client.get_run(again.run_id)
    assert run.info.status == "FAILED"
    assert run.data.tags["error"] == "RuntimeError: the arm 'ewc' failed at http://there"


def test_an_experiment_whose_store_is_not_there_costs_one_warning(tmp_path):
    warnings = []
    made = ExperimentTracker(settings("carrier-pigeon://coop", None), "sweep", tmp_path, warnings.append)
    made.start({}, ["a"])
    made.finish(experiment(tmp_path, naive=(0.1, 0.1)))
    assert (made.run_id, made.uri, len(warnings)) == (None, None, 1)
    off = ExperimentTracker({"enabled": False, "experiment": None, "uri": None}, "sweep", tmp_path, pytest.fail)
    off.start({}, ["a"])
    off.finish(experiment(tmp_path, naive=(0.1, 0.1)))
    assert (off.run_id, off.uri) == (None, None)


# -- runs that are gone on with ---------------------------------------------------------------------------------------


class Walk:
    """A run of two stages that can be cut off and gone on with, as `harness run --resume` does."""

    def __init__(self, uri, folder, name):
        self.uri, self.folder, self.name = uri, folder, name
        self.evaluations = example_run.made_evaluations(2)
        self.stages = example_run.made_plan(2).stages
        self.warnings = []

    def begin(self, again=None, **more):
        self.tracker = Tracker(settings(self.uri, self.name), "mixed-sft", self.warnings.append, resume_info=again)
        self.tell("run_started", 0, **started(self.folder, again=again is not None, **more))
        self.tell("data", 0, counts={}, stages=list(self.stages), shares=[], digests={}, template="f" * 64)
        self.tell("evaluated", 0, evaluations=self.evaluations[0])
        return self.tracker

    def tell(self, kind, number=0, /, **data):
        self.tracker.harness_on_event(Event(kind, number, data))

    def train(self, number, first, last, kept=True):
        """The updates of a stage, which the run's folder has whatever the store has."""
        file = self.folder / "stages" / self.stages[number - 1].name / "steps.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        for step in range(first, last + 1):
            if kept:
                with file.open("a") as lines:
                    lines.write(json.dumps({"step": step, "loss": 3.0 / step}) + "\n")
            self.tell("step", number, step=step, metrics={"loss": 3.0 / step})

    def stage(self, number, first=1, last=30, begin=True):
        if begin:
            self.tell("stage_started", number, stage=self.stages[number - 1], steps=last)
        self.train(number, first, last)
        self.tell("evaluated", number, evaluations=self.evaluations[number])
        trained = SimpleNamespace(steps=last, loss=0.5, seconds=1.0, tokens=100)
        self.tell("stage_finished", number, stage=self.stages[number - 1], trained=trained)


def test_a_run_that_is_gone_on_with_is_one_run_and_nothing_in_it_stands_twice(uri, client, tmp_path):
    walk = Walk(uri, tmp_path / "run-1", "again")
    run_id = walk.begin().run_id
    walk.stage(1)
    walk.tell("stage_started", 2, stage=walk.stages[1], steps=30)
    walk.train(2, 1, 25)  # 20 of them are sent; the next 5 wait to be, when the process is killed
    walk.tracker._queue._work.wait(30)
    assert client.get_run(run_id).info.status == "RUNNING"

    facts = json.loads((walk.folder / "mlflow.json").read_text())
    tracker = walk.begin(again=facts)
    assert tracker.run_id == run_id
    walk.tell("stage_started", 1, stage=walk.stages[0], steps=30, again=True)
    trained = SimpleNamespace(steps=30, loss=0.5, seconds=1.0, tokens=100)
    walk.tell("evaluated", 1, evaluations=walk.evaluations[1])
    walk.tell("stage_finished", 1, stage=walk.stages[0], trained=trained)
    walk.tell("stage_started", 2, stage=walk.stages[1], steps=30, again=False)
    walk.stage(2, first=16, begin=False)  # from the checkpoint at 15
    report = example_run.made_report(walk.folder, 2)
    walk.tell("run_finished", 2, report=report, seconds=3.0)

    assert walk.warnings == []
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["harness.resumed"] == "1"
    assert [step for step, _ in history(client, run_id, "helpdesk/rougeL")] == [0, 1, 2]
    first, second = children(client, run_id)
    assert {first.info.status, second.info.status} == {"FINISHED"}
    for child in (first, second):
        assert [step for step, _ in history(client, child.info.run_id, "loss")] == list(range(1, 31))
        assert len(history(client, child.info.run_id, "stage/loss")) == 1


def test_a_run_that_failed_and_is_gone_on_with_has_failed_no_more(uri, client, tmp_path):
    walk = Walk(uri, tmp_path / "run-2", "again")
    run_id = walk.begin().run_id
    walk.tell("stage_started", 1, stage=walk.stages[0], steps=30)
    walk.tell("run_failed", 1, error="RuntimeError: out of memory")
    assert client.get_run(run_id).data.tags["error"]
    walk.begin(again=json.loads((walk.folder / "mlflow.json").read_text()))
    run = client.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert "error" not in run.data.tags
    walk.tell("run_failed", 0, error="enough")


def test_another_setting_of_a_resumed_run_does_not_stop_its_tracking(uri, client, tmp_path):
    walk = Walk(uri, tmp_path / "run-3", "again")
    run_id = walk.begin().run_id
    walk.tell("run_failed", 0, error="x")
    other = {
        "name": "mixed-sft",
        "mode": {"mixed": {}},
        "mitigations": {},
        "train": {"learning_rate": 9.0, "epochs": 1},
    }
    walk.begin(again=json.loads((walk.folder / "mlflow.json").read_text()), spec=other)
    walk.tell("run_failed", 0, error="y")
    assert walk.warnings == []
    params = client.get_run(run_id).data.params
    assert (params["train.learning_rate"], params["train.epochs"]) == ("0.0002", "1")


def test_a_run_that_the_store_has_lost_goes_on_in_a_new_one_and_says_so(uri, client, tmp_path):
    walk = Walk(uri, tmp_path / "run-4", "again")
    lost = walk.begin().run_id
    walk.tell("run_failed", 0, error="x")
    facts = json.loads((walk.folder / "mlflow.json").read_text())
    client.delete_run(lost)
    tracker = walk.begin(again=facts)
    (warning,) = walk.warnings
    assert "MLflow has lost what was tracked before" in warning
    assert tracker.run_id not in (None, lost)
    assert json.loads((walk.folder / "mlflow.json").read_text())["run_id"] == tracker.run_id
    walk.tell("run_failed", 0, error="x")


def test_the_store_of_a_resumed_run_is_the_one_it_began_in_with_the_password_that_is_given():
    kept = {"uri": "http://there:5000", "run_id": "1"}
    assert mlflow_store.resume_uri("http://me:hunter22@there:5000", kept) == "http://me:hunter22@there:5000"
    assert mlflow_store.resume_uri("sqlite:///mlflow.db", kept) == "http://there:5000"
    assert mlflow_store.resume_uri("sqlite:///mlflow.db", None) == "sqlite:///mlflow.db"


def test_the_updates_in_a_folder_are_read_the_last_of_each_and_torn_lines_are_none(tmp_path):
    file = tmp_path / "steps.jsonl"
    file.write_text(
        '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": null, "lr": 1}\n{"step": 1, "loss": 3.0}\n{"step": 3, "lo'
    )
    assert load_step_metrics(file) == {1: {"loss": 3.0}, 2: {"lr": 1.0}}
    assert load_step_metrics(tmp_path / "none.jsonl") == {}


# -- the model --------------------------------------------------------------------------------------------------------


def test_the_model_goes_to_the_store_as_files_and_is_registered(uri, client, tmp_path):
    folder = tmp_path / "a"
    (folder / "model" / "deep").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}")
    (folder / "model" / "deep" / "weights.safetensors").write_bytes(b"\0" * 100)
    first = fed(uri, folder, "model", steps=1, track={"model": "files", "register": "desk model"})
    assert {"model/config.json", "model/deep/weights.safetensors"} <= set(artifacts(client, first.run_id))
    second = fed(uri, folder, "model", steps=1, track={"model": "files", "register": "desk model"})
    versions = {one.version: one.run_id for one in client.search_model_versions("name='desk model'")}
    assert {int(version): run for version, run in versions.items()} == {1: first.run_id, 2: second.run_id}
    assert client.get_run(second.run_id).data.tags["registered"] == "desk model 2"
    plain = fed(uri, folder, "model", steps=1)
    assert not [one for one in artifacts(client, plain.run_id) if one.startswith("model/")]


def test_a_model_that_cannot_be_sent_costs_a_warning_and_nothing_else(uri, client, tmp_path):
    folder = tmp_path / "a"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("no config")
    warnings = []
    made = Tracker(settings(uri, "model", model="transformers"), "mixed-sft", warnings.append)
    example_run.feed(made, folder, steps=1)
    (warning,) = warnings
    assert "MLflow has no model of this run" in warning
    assert 'set track.model to "files"' in warning or "cannot load the model" in warning
    assert client.get_run(made.run_id).info.status == "FINISHED"
    assert sorted(one.name for one in folder.glob("harness-model-*")) == []


@pytest.mark.slow
def test_a_model_in_mlflows_own_form_answers_when_it_is_loaded_from_the_store(
    uri, client, tmp_path, tiny_model, tokenizer
):
    folder = tmp_path / "a"
    tiny_model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    made = fed(uri, folder, "model", steps=1, track={"model": "transformers", "register": "tiny"})
    import mlflow.transformers

    place = client.download_artifacts(made.run_id, "model", str(tmp_path))
    pipeline = mlflow.transformers.load_model(place, device="cpu")
    said = pipeline("hello", max_new_tokens=3, do_sample=False)[0]["generated_text"]
    inputs = tokenizer("hello", return_tensors="pt")
    expected = tiny_model.generate(**inputs, max_new_tokens=3, do_sample=False)[0]
    assert said == tokenizer.decode(expected, skip_special_tokens=True)
    assert len(client.search_model_versions("name='tiny'")) == 1
