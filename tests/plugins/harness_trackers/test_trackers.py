"""The built-in trackers, with stand-ins for the packages that they need."""

from __future__ import annotations

import sys
import types

import pytest
from harness_trackers.tensorboard import TensorBoard
from harness_trackers.weights_and_biases import WeightsAndBiases
from support import example_run

from harness import events
from harness.errors import HarnessError
from harness.plugin_listener import read_only


class Listener:
    """Hands events to a tracker as a run does: read-only."""

    def __init__(self, tracker):
        self.tracker = tracker

    def harness_on_event(self, event):
        self.tracker.on_event(read_only(event))


@pytest.fixture
def writers(monkeypatch):
    """The writers that TensorBoard's stand-in has created."""
    created = []

    class SummaryWriter:
        def __init__(self, folder, purge_step=None):
            self.folder, self.purge_step, self.scalars, self.closed = folder, purge_step, {}, False
            created.append(self)

        def add_scalar(self, name, value, step):
            self.scalars[name, step] = value

        def flush(self):
            pass

        def close(self):
            self.closed = True

    module = types.ModuleType("torch.utils.tensorboard.writer")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.ModuleType("torch.utils.tensorboard"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", module)
    return created


@pytest.fixture
def wandb_runs(monkeypatch):
    """The runs that the stand-in of `wandb` has created."""
    created = []

    class Run:
        def __init__(self, options):
            self.options, self.logged, self.axes, self.exit_code = options, [], {}, None

        def define_metric(self, name, step_metric):
            self.axes[name] = step_metric

        def log(self, values):
            self.logged.append(values)

        def finish(self, exit_code):
            self.exit_code = exit_code

    def init(**options):
        created.append(Run(options))
        return created[-1]

    module = types.ModuleType("wandb")
    module.init, module.Settings = init, dict
    monkeypatch.setitem(sys.modules, "wandb", module)
    return created


def test_tensorboard_has_steps_by_stage_and_scores_by_stage(writers, tmp_path):
    example_run.feed(Listener(TensorBoard(None)), tmp_path / "a", steps=4, measured=2)
    stage = example_run.made_plan(1).stages[0].name
    scores, steps = writers
    assert [scores.folder, steps.folder] == [
        str(tmp_path / "a" / "tensorboard"),
        str(tmp_path / "a" / "tensorboard" / stage),
    ]
    assert scores.closed
    assert steps.closed
    assert steps.scalars[f"{stage}/loss", 4] == 0.75
    assert steps.scalars[f"{stage}/during/helpdesk/rougeL", 2] == 0.02
    assert steps.scalars[f"{stage}/repair/pulls", 2] == 1
    assert {step for name, step in scores.scalars if name == "helpdesk/rougeL"} == {0, 1}
    assert [scores.purge_step, steps.purge_step] == [None, None]


def test_tensorboard_replaces_the_steps_that_a_resumed_run_trains_again(writers, tmp_path):
    plan, tracker = example_run.made_plan(1), TensorBoard(None)
    stage = plan.stages[0]
    start = {"name": "x", "id": "a", "folder": str(tmp_path / "a"), "spec": {}, "plan": plan, "environment": {}}
    tracker.on_event(events.RunStarted(**start, resuming=True))
    tracker.on_event(events.SuitesEvaluated(stage_index=0, evaluations=()))
    tracker.on_event(events.StageStarted(stage_index=1, stage=stage, steps=9))
    tracker.on_event(events.StepLogged(stage_index=1, step=5, metrics={"loss": 1.0}))
    assert [writer.purge_step for writer in writers] == [0, 5]


def test_tensorboard_has_a_folder_for_each_run_of_an_experiment(writers, tmp_path):
    arm = {"name": "low", "changes": {}}
    example_run.feed(
        Listener(TensorBoard(str(tmp_path / "all"))), tmp_path / "sweep" / "arms" / "low", steps=1, started={"arm": arm}
    )
    assert writers[0].folder == str(tmp_path / "all" / "sweep" / "low")


@pytest.mark.parametrize(("fail", "exit_code"), [(False, 0), (True, 1)])
def test_wandb_gets_the_run_and_its_end(wandb_runs, tmp_path, fail, exit_code):
    tracker = WeightsAndBiases(project=None, entity="us", mode="offline")
    example_run.feed(Listener(tracker), tmp_path / "a", steps=3, fail=fail)
    (run,) = wandb_runs
    assert run.options["project"] == "mixed-sft"
    assert run.options["id"] == "a"
    assert run.options["resume"] == "allow"
    assert run.options["mode"] == "offline"
    assert run.options["config"]["mitigations"] == {"mixing": {"share": 0.1}, "lora": {"rank": 16}}
    assert type(run.options["config"]["mitigations"]) is dict
    stage = example_run.made_plan(1).stages[0].name
    losses = [(values[f"{stage}/step"], values[f"{stage}/loss"]) for values in run.logged if f"{stage}/loss" in values]
    assert losses == [(1, 3.0), (2, 1.5), (3, 1.0)]
    assert run.axes[f"{stage}/*"] == f"{stage}/step"
    stages = [values["helpdesk/stage"] for values in run.logged if "helpdesk/rougeL" in values]
    assert stages == ([0] if fail else [0, 1])
    assert run.exit_code == exit_code


def test_wandb_does_not_log_again_what_an_interrupted_run_has_logged(wandb_runs, tmp_path):
    stage = example_run.made_plan(1).stages[0].name
    folder = tmp_path / "a" / "stages" / stage
    folder.mkdir(parents=True)
    (folder / "steps.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    (tmp_path / "a" / "scores.json").write_text('{"stages": [{"name": "base"}]}')
    tracker = WeightsAndBiases(project=None, entity=None, mode="offline")
    example_run.feed(Listener(tracker), tmp_path / "a", steps=4, started={"resuming": True})
    (run,) = wandb_runs
    assert [values[f"{stage}/step"] for values in run.logged if f"{stage}/loss" in values] == [3, 4]
    assert [values["helpdesk/stage"] for values in run.logged if "helpdesk/rougeL" in values] == [1]


@pytest.mark.parametrize(
    ("tracker", "package"),
    [(TensorBoard(None), "tensorboard"), (WeightsAndBiases(None, None, "online"), "wandb")],
    ids=["tensorboard", "wandb"],
)
def test_a_missing_package_is_an_error_with_the_command_that_installs_it(monkeypatch, tracker, package):
    monkeypatch.setattr(f"{type(tracker).__module__}.find_spec", lambda name: None)
    with pytest.raises(HarnessError, match=f"the package '{package}' is not installed; pip install {package}"):
        tracker.check_available()
