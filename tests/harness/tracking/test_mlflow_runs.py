"""The runs of an experiment, resumed runs, and the tags, artifacts and models that a run stores in MLflow."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import example_run

from harness import events
from harness.comparison import compare
from harness.gate import GateResult
from harness.report.arm_comparison import ArmComparison
from harness.report.arm_score import ArmScore
from harness.report.intransigence import Intransigence
from harness.report.recommendation import ArmPoint, Recommendation
from harness.statistics.intervals import Estimate
from harness.tracking import mlflow_entries, mlflow_store
from harness.tracking.artifacts import load_step_metrics
from harness.tracking.experiment_tracker import ExperimentTracker
from harness.tracking.tracker import MlflowTracker


def track_settings(uri, experiment, **changes):
    return {"enabled": True, "experiment": experiment, "uri": uri, **changes}


def track_run(uri, folder, experiment, *, tracker_options=None, changes=None, **run_options):
    """Track a whole run without a warning and return its tracker."""
    settings = track_settings(uri, experiment, **(changes or {}))
    tracker = MlflowTracker(settings, "mixed-sft", pytest.fail, **(tracker_options or {}))
    example_run.feed(tracker, folder, **run_options)
    return tracker


def metric_history(client, run_id, key):
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run_id, key))


def child_runs(client, run_id):
    run = client.get_run(run_id)
    children = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
    return sorted(children, key=lambda child: child.info.run_name)


def artifact_paths(client, run_id, path=None):
    paths = []
    for entry in client.list_artifacts(run_id, path):
        paths += artifact_paths(client, run_id, entry.path) if entry.is_dir else [entry.path]
    return sorted(paths)


def read_artifact(client, run_id, name, folder):
    return Path(client.download_artifacts(run_id, name, str(folder))).read_text(encoding="utf-8")


# -- tags, tables and artifacts ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_tags_contain_the_versions_the_model_and_the_data_of_a_run(uri, client, tmp_path):
    environment = {
        "harness": "0.2.0",
        "model": {"path": "some/model", "digest": "c" * 64},
        "git": {"commit": "d" * 40, "changed": False},
    }
    tracker = track_run(uri, tmp_path / "a", "tags", started={"environment": environment})
    tags = client.get_run(tracker.run_id).data.tags
    assert tags["harness.version"] == "0.2.0"
    assert tags["model.digest"] == "c" * 64
    assert tags["mlflow.source.git.commit"] == "d" * 40
    assert tags["data/helpdesk"] == "sha256:" + "a" * 64
    assert tags["harness.kind"] == "run"
    assert "gate" not in tags, "the spec has no gate"
    assert "arm" not in tags


@pytest.mark.parametrize(("passed", "tag"), [(True, "passed"), (False, "failed")])
def test_the_result_of_the_gate_is_a_tag(uri, client, tmp_path, monkeypatch, passed, tag):
    build_report = example_run.made_report
    gate_result = GateResult("general/rougeL falls at most 0.1", "passed" if passed else "failed", 0.0, 0.0, 0.1, 40)

    def build_report_with_gate(*arguments):
        return dataclasses.replace(build_report(*arguments), gate=(gate_result,))

    monkeypatch.setitem(example_run.feed.__globals__, "made_report", build_report_with_gate)
    tracker = track_run(uri, tmp_path / "a", "gate")
    assert client.get_run(tracker.run_id).data.tags["gate"] == tag


def test_measured_shares_are_metrics_of_each_stage_by_epoch(uri, client, tmp_path):
    epochs = [[{"general": {"rows": 0.1}}, {"general": {"rows": 0.12}}], [{"general": {"rows": 0.2}}]]
    data = {"epoch_shares": epochs, "lengths": {"x": 1}}
    tracker = track_run(uri, tmp_path / "a", "epochs", stages=2, steps=3, data=data)
    first, second = child_runs(client, tracker.run_id)
    assert metric_history(client, first.info.run_id, "epoch_share/general/rows") == [(1, 0.1), (2, 0.12)]
    assert metric_history(client, second.info.run_id, "epoch_share/general/rows") == [(1, 0.2)]


def test_answers_are_stored_as_tables_that_mlflow_displays(uri, client, tmp_path):
    tracker = track_run(uri, tmp_path / "a", "tables", steps=1)
    table = json.loads(read_artifact(client, tracker.run_id, "tables/helpdesk.json", tmp_path))
    assert table["columns"] == ["id", "prompt", "reference", "base answer", "answer", "finish", "rougeL"]
    assert len(table["data"]) == 40
    first = dict(zip(table["columns"], table["data"][0], strict=True))
    assert first["base answer"] == "stage 0 says 0"
    assert first["answer"] == "stage 1 says 0"
    assert first["rougeL"] == pytest.approx(0.4)
    logged_artifacts = json.loads(client.get_run(tracker.run_id).data.tags["mlflow.loggedArtifacts"])
    assert {"path": "tables/helpdesk.json", "type": "table"} in logged_artifacts
    frame = client._read_from_file(client.download_artifacts(tracker.run_id, "tables/helpdesk.json", str(tmp_path)))
    assert frame["answer"][0] == "stage 1 says 0", "MLflow reads the file as a table"


def test_plots_and_the_html_report_are_artifacts(uri, client, tmp_path):
    folder = tmp_path / "a"
    (folder / "plots").mkdir(parents=True)
    (folder / "plots" / "loss.svg").write_text("<svg/>")
    (folder / "report.html").write_text("<html/>")
    tracker = track_run(uri, folder, "plots", steps=1)
    assert {"plots/loss.svg", "report.html"} <= set(artifact_paths(client, tracker.run_id))


def test_system_metrics_are_sampled_if_the_spec_enables_them(uri, client, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    tracker = MlflowTracker(track_settings(uri, "system", system_metrics=True), "mixed-sft", pytest.fail)
    tracker.harness_on_event(events.RunStarted(**run_started_fields(tmp_path / "a")))
    deadline = time.monotonic() + 60
    tracker._queue.wait(60)
    (system,) = child_runs(client, tracker.run_id)
    assert system.info.run_name == "system/a"
    while "system/cpu_utilization_percentage" not in client.get_run(system.info.run_id).data.metrics:
        assert time.monotonic() < deadline, "MLflow has received no sample"
        time.sleep(0.1)
    tracker.harness_on_event(events.RunFailed(error="stopped"))
    names = [thread.name for thread in threading.enumerate()]
    assert "SystemMetricsMonitor" not in names
    assert {client.get_run(run_id).info.status for run_id in (tracker.run_id, system.info.run_id)} == {"FAILED"}
    assert client.get_run(tracker.run_id).data.metrics == {}, "Compare of MLflow shows scores first"
    # A resumed run continues its samples in the same child run.
    resume_info = json.loads((tmp_path / "a" / "mlflow.json").read_text())
    resumed = MlflowTracker(
        track_settings(uri, "system", system_metrics=True), "mixed-sft", pytest.fail, resume_info=resume_info
    )
    resumed.harness_on_event(events.RunStarted(**run_started_fields(tmp_path / "a")))
    resumed.harness_on_event(events.RunFailed(error="stopped"))
    assert [run.info.run_id for run in child_runs(client, tracker.run_id)] == [system.info.run_id]


@pytest.mark.parametrize(
    ("folder", "overrides", "name"),
    [
        ("tiny-20260101-120000-ab12", [], "ab12 tiny 20260101-120000"),
        (
            "a-b-20260101-120000-ab12",
            ["train.learning_rate=1e-5", "name=a-b", "track.mlflow.uri=http://me:pass-word-1@there", "seed=2"],
            "learning_rate=1e-5 seed=2 ab12 a-b 20260101-120000",
        ),
        ("lora,seed=1", [], "lora,seed=1"),
    ],
)
def test_the_name_of_a_run_starts_with_what_differs(folder, overrides, name):
    assert mlflow_entries.run_name(folder, overrides) == name


def test_only_what_differs_from_the_defaults_and_the_learning_rate_are_parameters(uri, client, tmp_path):
    changed = {"mitigations": {"lora": {"rank": 4}}, "sources": {"a": {"jsonl": {"api_key": "hunter22"}}}}
    started = {"changed": changed, "environment": {"overrides": ["train.steps=9"]}}
    tracker = track_run(uri, tmp_path / "a", "changed", steps=1, started=started)
    run = client.get_run(tracker.run_id)
    assert run.data.params == {
        "mitigations.lora.rank": "4",
        "sources.a.jsonl.api_key": "(left out)",
        "train.learning_rate": "0.0002",
    }
    assert run.info.run_name == "steps=9 a"
    stored = json.loads(read_artifact(client, tracker.run_id, "spec.json", tmp_path))
    assert stored["seed"] == 0, "the artifact has the whole spec"
    shutil.rmtree(tmp_path / "a")  # `compare` reads the spec from the artifact
    (summary,) = compare.compare_runs([tracker.run_id], "changed", uri).runs
    assert (summary.parameters["seed"], summary.name) == ("0", "a")


def test_the_description_of_a_run_is_its_verdict(uri, client, tmp_path):
    tracker = track_run(uri, tmp_path / "a", "note", steps=1)
    verdict = example_run.made_report(tmp_path / "a").verdict
    note = client.get_run(tracker.run_id).data.tags["mlflow.note.content"]
    assert note.splitlines()[0] == verdict.headline
    assert note.splitlines()[2:] == [f"- {statement.text}" for statement in verdict.statements]


def test_the_view_shows_the_primary_scores_with_the_general_ones_first(uri, client, tmp_path, monkeypatch):
    build_report = example_run.made_report

    def build_report_with_margins(*arguments):
        report = build_report(*arguments)
        changes = [
            dataclasses.replace(change, margin=0.1 if change.name == "rougeL" else None) for change in report.changes
        ]
        return dataclasses.replace(report, changes=tuple(changes))

    monkeypatch.setitem(example_run.feed.__globals__, "made_report", build_report_with_margins)
    tracker = track_run(uri, tmp_path / "a", "view", steps=1)
    experiment = client.get_experiment(client.get_run(tracker.run_id).info.experiment_id)
    assert json.loads(experiment.tags["mlflow.sharedViewState.harness"])["selectedColumns"][:5] == [
        "metrics.`general/rougeL`",
        "metrics.`general/rougeL/delta`",
        "metrics.`helpdesk/rougeL`",
        "metrics.`helpdesk/rougeL/delta`",
        "params.`train.learning_rate`",
    ]
    assert tracker.pages.view.endswith(f"/#/experiments/{experiment.experiment_id}/runs?viewStateShareKey=harness")
    assert tracker.pages.command == f"mlflow ui --backend-store-uri {uri}"


def run_started_fields(folder, **changes):
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
        **changes,
    }


# -- arms -------------------------------------------------------------------------------------------------------------


def build_comparison(folder, **gains_and_losses):
    """Return a comparison of arms with the given (gain, loss) of each arm."""

    def estimate(value):
        return Estimate(value, 0.01, value - 0.02, value + 0.02, 40)

    points = [
        ArmPoint(arm, estimate(gain), estimate(loss), None if arm == "naive" else 0.5, True)
        for arm, (gain, loss) in gains_and_losses.items()
    ]
    return ArmComparison(
        name="sweep",
        folder=str(folder),
        baseline="naive",
        arms={},
        scores=(
            arm_score("naive", "helpdesk", "domain", 0.5, 0.3),
            arm_score("mix=0.1", "helpdesk", "domain", 0.49, 0.29),
            arm_score("mix=0.1", "general", "general", 0.45, -0.05),
        ),
        gain="helpdesk/rougeL",
        forgetting="general/rougeL",
        gain_margin=0.02,
        forgetting_margin=0.02,
        points=tuple(points),
        missing={"ewc": "cut"},
        advised=Recommendation("mix", arm="mix=0.1"),
        joint="joint",
        intransigence=(Intransigence("naive", "rougeL", ("helpdesk",), estimate(0.1)),),
    )


SWEEP_SPEC = {"name": "sweep", "mode": {"mixed": {}}, "arms": {"matrix": {"train.steps": [3, 4]}}}
SWEEP_ARMS = [
    {"name": name, "changes": {"mitigations.mixing.share": share, "sources.x.jsonl.token": "hunter22"}}
    for name, share in (("naive", 0.0), ("mix=0.1", 0.1))
]


def arm_score(arm, suite, role, after, change):
    """Return the change of ROUGE-L of an arm."""

    def estimate(value):
        return Estimate(value, 0.01, value - 0.02, value + 0.02, 40)

    values = {"before": estimate(after - change), "after": estimate(after), "change": estimate(change)}
    return ArmScore(arm, suite, role, "rougeL", True, 40, **values, against=None, p=None, p_holm=None, verdict=None)


@pytest.fixture(scope="module")
def sweep(uri, tmp_path_factory):
    """A finished experiment of two arms."""
    folder = tmp_path_factory.mktemp("sweep") / "sweep-1"
    folder.mkdir()
    parent = ExperimentTracker(track_settings(uri, "sweep"), "sweep", folder, pytest.fail)
    parent.start(SWEEP_SPEC, SWEEP_ARMS)
    arms = []
    for arm in SWEEP_ARMS:
        arms.append(
            track_run(
                uri, folder / "arms" / arm["name"], "sweep", steps=2,
                tracker_options={"parent_run_id": parent.run_id}, started={"arm": arm},
            )
        )  # fmt: skip
    (folder / "arms.json").write_text("{}")
    (folder / "plots").mkdir()
    (folder / "plots" / "gain.svg").write_text("<svg/>")
    parent.finish(build_comparison(folder, **{"naive": (0.3, 0.2), "mix=0.1": (0.29, 0.05)}))
    return SimpleNamespace(parent=parent, arms=arms, folder=folder)


def test_arms_are_child_runs_of_their_experiment_with_the_swept_keys_as_parameters(client, sweep):
    names = [run.info.run_name for run in child_runs(client, sweep.parent.run_id)]
    assert names == ["mix=0.1", "naive"]
    arm = client.get_run(sweep.arms[1].run_id)
    assert arm.data.tags["arm"] == "mix=0.1"
    assert arm.data.params["arm/mitigations.mixing.share"] == "0.1"
    assert arm.data.params["arm/sources.x.jsonl.token"] == "(left out)"
    (stage,) = child_runs(client, sweep.arms[1].run_id)
    assert stage.info.run_name == "stage-1/mix=0.1"


def test_the_experiment_stores_the_results_of_the_comparison(client, sweep):
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
            "helpdesk/rougeL": 0.49,
            "helpdesk/rougeL/delta": 0.29,
            "general/rougeL": 0.45,
            "general/rougeL/delta": -0.05,
        }
    )
    view = json.loads(client.get_experiment(run.info.experiment_id).tags["mlflow.sharedViewState.harness"])
    assert view["selectedColumns"] == [
        "metrics.`general/rougeL`",
        "metrics.`general/rougeL/delta`",
        "metrics.`helpdesk/rougeL`",
        "metrics.`helpdesk/rougeL/delta`",
        "params.`arm/mitigations.mixing.share`",
        "params.`arm/sources.x.jsonl.token`",
        "tags.`gate`",
        "tags.`mode`",
        "tags.`mitigations`",
    ]
    assert run.data.tags["recommended"] == "mix=0.1"
    assert run.data.tags["mlflow.note.content"] == "Mix."
    tags = run.data.tags
    assert (tags["harness.kind"], tags["baseline"], tags["advice"], tags["missing"]) == (
        "experiment", "naive", "mix", "ewc",
    )  # fmt: skip
    assert artifact_paths(client, sweep.parent.run_id) == ["arms.json", "plots/gain.svg", "spec.json"]
    run_info = json.loads((sweep.folder / "mlflow.json").read_text())
    assert run_info["run_id"] == sweep.parent.run_id


def test_comparing_an_experiment_compares_its_arms_and_not_the_experiment_run(uri, sweep):
    for names in (["sweep-1"], [str(sweep.folder)], []):
        comparison = compare.compare_runs(names, "sweep", uri, items=0)
        assert [run.name for run in comparison.runs] == ["naive", "mix=0.1"]
    assert "arm/mitigations.mixing.share" not in comparison.differences, "the spec already contains this key"


def test_a_resumed_experiment_is_the_same_run(uri, client, sweep):
    run_info = json.loads((sweep.folder / "mlflow.json").read_text())
    resumed = ExperimentTracker(track_settings(uri, "sweep"), "sweep", sweep.folder, pytest.fail, resume_info=run_info)
    resumed.start(SWEEP_SPEC, SWEEP_ARMS)
    assert resumed.run_id == sweep.parent.run_id
    assert client.get_run(resumed.run_id).info.status == "RUNNING"
    resumed.fail(RuntimeError("the arm 'ewc' failed at http://me:hunter22@there"))
    run = client.get_run(resumed.run_id)
    assert run.info.status == "FAILED"
    assert run.data.tags["error"] == "RuntimeError: the arm 'ewc' failed at http://there"


def test_an_experiment_whose_store_cannot_be_opened_gives_one_warning(tmp_path):
    warnings = []
    tracker = ExperimentTracker(track_settings("carrier-pigeon://coop", None), "sweep", tmp_path, warnings.append)
    tracker.start({}, [{"name": "a", "changes": {}}])
    tracker.finish(build_comparison(tmp_path, naive=(0.1, 0.1)))
    assert (tracker.run_id, tracker.uri, len(warnings)) == (None, None, 1)


def test_an_experiment_with_tracking_disabled_gives_no_warning(tmp_path):
    disabled = ExperimentTracker({"enabled": False, "experiment": None, "uri": None}, "sweep", tmp_path, pytest.fail)
    disabled.start({}, [{"name": "a", "changes": {}}])
    disabled.finish(build_comparison(tmp_path, naive=(0.1, 0.1)))
    assert (disabled.run_id, disabled.uri) == (None, None)


# -- resumed runs -----------------------------------------------------------------------------------------------------


class SimulatedRun:
    """A run of two stages that can be interrupted and resumed, as with `harness run --resume`."""

    def __init__(self, uri, folder, name):
        self.uri, self.folder, self.name = uri, folder, name
        self.evaluations = example_run.made_evaluations(2)
        self.stages = example_run.made_plan(2).stages
        self.warnings = []

    def start(self, resume_info=None, **changes):
        settings = track_settings(self.uri, self.name)
        self.tracker = MlflowTracker(settings, "mixed-sft", self.warnings.append, resume_info=resume_info)
        resuming = resume_info is not None
        self.emit(events.RunStarted, 0, **run_started_fields(self.folder, resuming=resuming, **changes))
        self.emit(events.DataPrepared, 0, counts={}, stages=list(self.stages), shares=[], digests={}, template="f" * 64)
        self.emit(events.SuitesEvaluated, 0, evaluations=self.evaluations[0])
        return self.tracker

    def emit(self, event_class, stage_index=0, /, **fields):
        self.tracker.harness_on_event(event_class(stage_index=stage_index, **fields))

    def train(self, number, first, last):
        """Log the updates of a stage, both in the run's folder and as events."""
        file = self.folder / "stages" / self.stages[number - 1].name / "steps.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        for step in range(first, last + 1):
            with file.open("a") as lines:
                lines.write(json.dumps({"step": step, "loss": 3.0 / step}) + "\n")
            self.emit(events.StepLogged, number, step=step, metrics={"loss": 3.0 / step})

    def finish_stage(self, number, first=1, last=30, emit_start=True):
        if emit_start:
            self.emit(events.StageStarted, number, stage=self.stages[number - 1], steps=last)
        self.train(number, first, last)
        self.emit(events.SuitesEvaluated, number, evaluations=self.evaluations[number])
        trained = SimpleNamespace(steps=last, loss=0.5, seconds=1.0, tokens=100)
        self.emit(events.StageFinished, number, stage=self.stages[number - 1], trained=trained)


def test_a_resumed_run_is_one_run_without_duplicate_metrics(uri, client, tmp_path):
    simulated = SimulatedRun(uri, tmp_path / "run-1", "again")
    run_id = simulated.start().run_id
    simulated.finish_stage(1)
    simulated.emit(events.StageStarted, 2, stage=simulated.stages[1], steps=30)
    simulated.train(2, 1, 25)  # 20 updates are sent; the other 5 are still queued when the process is killed
    simulated.tracker._queue._work.wait(30)
    assert client.get_run(run_id).info.status == "RUNNING"

    run_info = json.loads((simulated.folder / "mlflow.json").read_text())
    tracker = simulated.start(resume_info=run_info)
    assert tracker.run_id == run_id
    simulated.emit(events.StageStarted, 1, stage=simulated.stages[0], steps=30, reused=True)
    trained = SimpleNamespace(steps=30, loss=0.5, seconds=1.0, tokens=100)
    simulated.emit(events.SuitesEvaluated, 1, evaluations=simulated.evaluations[1])
    simulated.emit(events.StageFinished, 1, stage=simulated.stages[0], trained=trained)
    simulated.emit(events.StageStarted, 2, stage=simulated.stages[1], steps=30)
    simulated.finish_stage(2, first=16, emit_start=False)  # from the checkpoint at 15
    report = example_run.made_report(simulated.folder, 2)
    simulated.emit(events.RunFinished, 2, report=report, seconds=3.0)

    assert simulated.warnings == []
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["harness.resumed"] == "1"
    assert [step for step, _ in metric_history(client, run_id, "helpdesk/rougeL")] == [0, 1, 2]
    first, second = child_runs(client, run_id)
    assert {first.info.status, second.info.status} == {"FINISHED"}
    for child in (first, second):
        assert [step for step, _ in metric_history(client, child.info.run_id, "loss")] == list(range(1, 31))
        assert len(metric_history(client, child.info.run_id, "stage/loss")) == 1


def test_resuming_a_failed_run_removes_its_error(uri, client, tmp_path):
    simulated = SimulatedRun(uri, tmp_path / "run-2", "again")
    run_id = simulated.start().run_id
    simulated.emit(events.StageStarted, 1, stage=simulated.stages[0], steps=30)
    simulated.emit(events.RunFailed, 1, error="RuntimeError: out of memory")
    assert client.get_run(run_id).data.tags["error"]
    simulated.start(resume_info=json.loads((simulated.folder / "mlflow.json").read_text()))
    run = client.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert "error" not in run.data.tags
    simulated.emit(events.RunFailed, 0, error="stopped")


def test_changed_settings_of_a_resumed_run_do_not_stop_its_tracking(uri, client, tmp_path):
    simulated = SimulatedRun(uri, tmp_path / "run-3", "again")
    run_id = simulated.start().run_id
    simulated.emit(events.RunFailed, 0, error="x")
    changed_spec = {
        "name": "mixed-sft",
        "mode": {"mixed": {}},
        "mitigations": {},
        "train": {"learning_rate": 9.0, "epochs": 1},
    }
    simulated.start(resume_info=json.loads((simulated.folder / "mlflow.json").read_text()), spec=changed_spec)
    simulated.emit(events.RunFailed, 0, error="y")
    assert simulated.warnings == []
    params = client.get_run(run_id).data.params
    assert (params["train.learning_rate"], params["train.epochs"]) == ("0.0002", "1")


def test_resuming_a_run_that_the_store_has_deleted_warns_and_starts_a_new_one(uri, client, tmp_path):
    simulated = SimulatedRun(uri, tmp_path / "run-4", "again")
    deleted_run_id = simulated.start().run_id
    simulated.emit(events.RunFailed, 0, error="x")
    run_info = json.loads((simulated.folder / "mlflow.json").read_text())
    client.delete_run(deleted_run_id)
    tracker = simulated.start(resume_info=run_info)
    (warning,) = simulated.warnings
    assert "MLflow does not have the run any more" in warning
    assert tracker.run_id not in (None, deleted_run_id)
    assert json.loads((simulated.folder / "mlflow.json").read_text())["run_id"] == tracker.run_id
    simulated.emit(events.RunFailed, 0, error="x")


def test_a_resumed_run_uses_its_original_store_with_the_password_of_the_new_uri():
    run_info = {"uri": "http://there:5000", "run_id": "1"}
    assert mlflow_store.resume_uri("http://me:hunter22@there:5000", run_info) == "http://me:hunter22@there:5000"
    assert mlflow_store.resume_uri("sqlite:///mlflow.db", run_info) == "http://there:5000"
    assert mlflow_store.resume_uri("sqlite:///mlflow.db", None) == "sqlite:///mlflow.db"


def test_step_metrics_keep_the_last_line_of_each_step_and_skip_incomplete_lines(tmp_path):
    file = tmp_path / "steps.jsonl"
    file.write_text(
        '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": null, "lr": 1}\n{"step": 1, "loss": 3.0}\n{"step": 3, "lo'
    )
    metrics = load_step_metrics(file)
    assert (metrics[1], metrics[2]["lr"]) == ({"loss": 3.0}, 1.0)
    assert math.isnan(metrics[2]["loss"]), "JSON has null for numbers that are not finite"
    assert load_step_metrics(tmp_path / "none.jsonl") == {}


# -- the model --------------------------------------------------------------------------------------------------------


def test_the_model_is_stored_as_files_and_registered(uri, client, tmp_path):
    folder = tmp_path / "a"
    (folder / "model" / "deep").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}")
    (folder / "model" / "deep" / "weights.safetensors").write_bytes(b"\0" * 100)
    changes = {"model": "files", "register": "desk model"}
    first = track_run(uri, folder, "model", steps=1, changes=changes)
    assert {"model/config.json", "model/deep/weights.safetensors"} <= set(artifact_paths(client, first.run_id))
    second = track_run(uri, folder, "model", steps=1, changes=changes)
    versions = client.search_model_versions("name='desk model'")
    assert {int(version.version): version.run_id for version in versions} == {1: first.run_id, 2: second.run_id}
    assert client.get_run(second.run_id).data.tags["registered"] == "desk model 2"
    without_model = track_run(uri, folder, "model", steps=1)
    assert not [path for path in artifact_paths(client, without_model.run_id) if path.startswith("model/")]


def test_a_model_that_cannot_be_stored_gives_a_warning_and_the_run_finishes(uri, client, tmp_path):
    folder = tmp_path / "a"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("no config")
    warnings = []
    tracker = MlflowTracker(track_settings(uri, "model", model="transformers"), "mixed-sft", warnings.append)
    example_run.feed(tracker, folder, steps=1)
    (warning,) = warnings
    assert "MLflow has no model of this run" in warning
    assert 'set track.mlflow.model to "files"' in warning or "cannot load the model" in warning
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    assert sorted(path.name for path in folder.glob("harness-model-*")) == []


@pytest.mark.slow
def test_a_model_in_the_transformers_flavor_generates_when_loaded_from_the_store(
    uri, client, tmp_path, tiny_model, tokenizer
):
    folder = tmp_path / "a"
    tiny_model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    tracker = track_run(uri, folder, "model", steps=1, changes={"model": "transformers", "register": "tiny"})
    import mlflow.transformers

    downloaded = client.download_artifacts(tracker.run_id, "model", str(tmp_path))
    pipeline = mlflow.transformers.load_model(downloaded, device="cpu")
    answer = pipeline("hello", max_new_tokens=3, do_sample=False)[0]["generated_text"]
    inputs = tokenizer("hello", return_tensors="pt")
    expected = tiny_model.generate(**inputs, max_new_tokens=3, do_sample=False)[0]
    assert answer == tokenizer.decode(expected, skip_special_tokens=True)
    assert len(client.search_model_versions("name='tiny'")) == 1
