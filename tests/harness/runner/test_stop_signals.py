"""SIGINT, SIGTERM and SIGUSR1 stop a run with a checkpoint, a command that resumes it, and their exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import signal

import pytest

from harness.errors import RunError
from harness.evaluation import scoring
from harness.runner import evaluate_stages
from harness.tracking import mlflow_store
from harness.training.stage_trainer import StageTrainer
from harness.utils import stop_signals


@pytest.fixture
def signal_at_step(monkeypatch):
    """(signal name, step): the process sends the signal to itself in the middle of this optimizer step."""

    def send(name, step):
        steps = iter(range(1, 1000))
        real = StageTrainer.after_optimizer_step

        def step_with_signal(self, learning_rate):
            if next(steps) == step:
                os.kill(os.getpid(), getattr(signal, name))
            real(self, learning_rate)

        monkeypatch.setattr(StageTrainer, "after_optimizer_step", step_with_signal)

    yield send
    monkeypatch.undo()


def error_line(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("harness: ")][-1]


@pytest.fixture(scope="module")
def whole(desk):
    """The folder of the uninterrupted run of `without_checkpoints`."""
    return desk.start(without_checkpoints(desk))


def without_checkpoints(desk):
    document = desk.continual()
    document["train"]["save_steps"] = None
    return document


@pytest.mark.parametrize(
    ("name", "code"), [("SIGTERM", 75), pytest.param("SIGUSR1", 75, marks=pytest.mark.slow), ("SIGINT", 130)]
)
def test_a_stopped_run_saves_a_checkpoint_and_resumes_bit_for_bit(
    desk, whole, same, signal_at_step, monkeypatch, capsys, name, code
):
    document = without_checkpoints(desk)
    signal_at_step(name, 7)
    assert desk.command("run", desk.write(document)) == code
    folder = desk.newest()
    assert error_line(capsys) == f"harness: interrupted by {name}; to resume: harness run --resume {folder}"
    assert [path.name for path in (folder / "stages/b/checkpoints").iterdir()] == ["checkpoint-3"]
    monkeypatch.undo()
    assert desk.command("run", "--quiet", "--resume", folder) == 0
    assert len((folder / "stages/b/steps.jsonl").read_text().splitlines()) == 4
    same(whole, folder)


def test_a_signal_that_an_exception_handler_loses_stops_the_run_later(desk, monkeypatch, capsys):
    """As during the garbage collection, where Python ignores exceptions."""
    real = evaluate_stages.StageEvaluator.evaluate_stage

    def lose_signal(self, *arguments):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        return real(self, *arguments)

    monkeypatch.setattr(evaluate_stages.StageEvaluator, "evaluate_stage", lose_signal)
    assert desk.command("run", desk.write(desk.document())) == 130
    assert error_line(capsys).startswith("harness: interrupted by SIGINT; to resume: harness run --resume ")


@pytest.mark.slow
def test_a_stopped_experiment_names_its_own_folder_and_ends_its_mlflow_runs_as_killed(
    desk, signal_at_step, tmp_path, capsys
):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    document = desk.document(arms={"named": {"a": {}, "b": {"train.steps": 3}}}, track={"mlflow": {"uri": uri}})
    signal_at_step("SIGTERM", 4)
    assert desk.command("run", "--quiet", desk.write(document)) == 75
    folder = desk.newest()
    assert error_line(capsys) == f"harness: interrupted by SIGTERM; to resume: harness run --resume {folder}"
    client = mlflow_store.open_store(uri)
    statuses = {}
    for path in (folder, folder / "arms/a", folder / "arms/b"):
        run = client.get_run(json.loads((path / "mlflow.json").read_text())["run_id"])
        statuses[path.name] = run.info.status
    assert statuses == {folder.name: "KILLED", "a": "FINISHED", "b": "KILLED"}


def test_second_interrupt_stops_a_deferred_section_at_once():
    reached = []

    def receive_signals():
        with stop_signals.handle_stop_signals(), stop_signals.deferred():
            signal.raise_signal(signal.SIGTERM)
            reached.append("after SIGTERM")
            assert stop_signals.is_requested()
            stop_signals.raise_if_requested()
            signal.raise_signal(signal.SIGTERM)
            reached.append("after the second SIGTERM")
            signal.raise_signal(signal.SIGINT)
            reached.append("after SIGINT")

    with pytest.raises(stop_signals.Interrupted):
        receive_signals()
    assert reached == ["after SIGTERM", "after the second SIGTERM"]
    assert not stop_signals.is_requested(), "the next command starts without a signal"


def test_a_failed_run_stores_its_error_and_traceback(desk, monkeypatch, capsys):
    def fail(*_):
        raise ValueError("not my\nbest day, token=hf_abcdefghijklmnopqrstuvwxyz")

    monkeypatch.setattr(evaluate_stages.StageEvaluator, "evaluate_stage", fail)
    assert desk.command("run", "--quiet", desk.write(desk.document())) == 1
    assert "this is a fault of harness: ValueError: not my best day" in capsys.readouterr().err
    folder = desk.newest()
    first, blank, *trace = (folder / "error.txt").read_text().splitlines()
    assert first.startswith("ValueError: not my best day")
    assert "hf_abc" not in first
    assert [blank, trace[0][:9]] == ["", "Traceback"]
    capsys.readouterr()
    assert desk.command("runs", folder.parent) == 0
    listed = capsys.readouterr().out
    assert "ValueError: not my best day" in listed
    assert "failed" in listed
    assert "--resume" in listed
    monkeypatch.undo()
    assert desk.command("run", "--quiet", "--resume", folder) == 0
    assert not (folder / "error.txt").exists()


def test_a_run_that_violates_a_limit_is_listed_as_failed_with_its_error(desk, monkeypatch, capsys):
    def violate(*_, **__):
        raise RunError("evaluate.domain", "9 of 10 answers are empty", "raise the limit")

    monkeypatch.setattr(scoring, "raise_on_violations", violate)
    for command in ("run", "evaluate"):
        assert desk.command(command, desk.write(desk.document())) == 1
        folder = desk.newest()
        assert "9 of 10 answers are empty" in (folder / "error.txt").read_text().splitlines()[0]
        capsys.readouterr()
        assert desk.command("runs", folder.parent) == 0
        listed = " ".join(capsys.readouterr().out.split())
        assert "failed" in listed
        assert "9 of 10 answers are empty" in listed
        assert "--resume" not in listed, "its results are complete"
