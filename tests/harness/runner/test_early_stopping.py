"""Evaluation within a stage and early stopping: unchanged weights, and a stop without improvement."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.event_recorder import EventRecorder
from support.stage_runs import mid_stage_lines, same, start

from harness import events, registry
from harness.errors import HarnessError
from harness.runner import api, early_stopping, resume
from harness.spec import schema, spec
from harness.training.stage_trainer import StageTrainer
from harness.utils import stop_signals

WORDS = ("amber", "basil", "clay", "dune", "ember", "fern", "grove", "hazel", "iris", "jade", "kelp", "lilac", "moss")


@pytest.fixture
def document(tmp_path, monkeypatch, tiny_model, tokenizer):
    monkeypatch.chdir(tmp_path)
    tiny_model.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    rows = [{"instruction": f"Where is {word}?", "output": f"{word} is here"} for word in WORDS]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "name": "tiny",
        "model": {"path": "./tiny"},
        "template": "chatml",
        "sources": {"a": {"jsonl": {"path": "a.jsonl", "held_out": 0.3}}},
        "mode": {"domain": {"sources": ["a"]}},
        "mitigations": {"lora": {"rank": 2, "dropout": 0.2}},
        "train": {"steps": 6, "batch_size": 2, "learning_rate": 0.02, "scheduler": "constant", "evaluate_steps": 2},
        "evaluate": {
            "a": {"source": "a", "metrics": {"response_perplexity": {}, "chrf": {}}, "max_new_tokens": 4},
        },
        "track": {"enabled": False},
    }


def weights(folder):
    return load_file(Path(folder) / "model" / "adapter_model.safetensors")


@pytest.fixture
def made_up(monkeypatch):
    """A function that replaces the combined scores of the next evaluations by these values."""

    def give(*values):
        left = iter(values)
        monkeypatch.setattr(early_stopping, "combined_score", lambda *given: next(left))

    return give


STOP = {"scores": {"a/response_perplexity": 1}, "patience": 1}


def test_mid_stage_evaluation_does_not_change_weights(document, tmp_path):
    listener = EventRecorder()
    watched = start(document, tmp_path, listener)
    document["train"]["evaluate_steps"] = None
    alone = start(document, tmp_path)
    assert same(weights(watched.run_info["folder"]), weights(alone.run_info["folder"]))
    assert [one["step"] for one in mid_stage_lines(watched.run_info["folder"])] == [2, 4, 6]
    told = listener.of(events.MidStageEvaluated)
    assert [one.step for one in told] == [2, 4, 6]
    assert all("a/response_perplexity" in one.scores for one in told)
    assert not any("chrf" in name.lower() for one in told for name in one.scores), (
        "without suites that need it, nothing is generated"
    )
    change = next(one for one in watched.changes if one.name == "response_perplexity")
    assert told[-1].scores["a/response_perplexity"] == pytest.approx(change.after.value)
    assert not (Path(alone.run_info["folder"]) / "stages/domain/evaluations.jsonl").exists()


def test_named_suites_use_all_their_metrics(document, tmp_path):
    document["train"] |= {"evaluate_suites": ["a"], "steps": 2}
    listener = EventRecorder()
    start(document, tmp_path, listener)
    (told,) = listener.of(events.MidStageEvaluated)
    assert {"a/response_perplexity", "a/chrf"} <= set(told.scores)


def test_combined_score_equals_its_formula(document, tmp_path):
    document["train"] |= {"early_stopping": {**STOP, "patience": 9, "restore_best": False}}
    report = start(document, tmp_path)
    before = next(one for one in report.changes if one.name == "response_perplexity").before.value
    for one in mid_stage_lines(report.run_info["folder"]):
        assert one["combined"] == pytest.approx((before - one["scores"]["a/response_perplexity"]) / before)


def test_early_stopping_restores_best_weights(document, tmp_path, made_up):
    document["train"] |= {"evaluate_steps": 1, "early_stopping": {**STOP, "patience": 2}}
    made_up(0.1, 0.3, 0.2, 0.25)
    listener = EventRecorder()
    report = start(document, tmp_path, listener)
    folder = Path(report.run_info["folder"])
    told = [(one["step"], one["best"], one["kept"], one["over"]) for one in mid_stage_lines(folder)]
    assert told == [(1, True, True, False), (2, True, True, False), (3, False, False, False), (4, False, False, True)]
    assert json.loads((folder / "stages/domain/trained.json").read_text())["steps"] == 4
    assert [one.over for one in listener.of(events.MidStageEvaluated)] == [False, False, False, True]
    assert [one.step for one in listener.of(events.BestWeightsRestored)] == [2]
    after = next(one for one in report.changes if one.name == "response_perplexity").after.value
    found = {one["step"]: one["scores"]["a/response_perplexity"] for one in mid_stage_lines(folder)}
    assert after == pytest.approx(found[2], rel=1e-6)
    assert after != pytest.approx(found[4], rel=1e-6)
    assert not (folder / "stages/domain/best").exists()


def test_early_stopping_can_keep_last_weights(document, tmp_path, made_up):
    document["train"] |= {"evaluate_steps": 1, "early_stopping": {**STOP, "restore_best": False}}
    made_up(0.3, 0.2)
    report = start(document, tmp_path)
    after = next(one for one in report.changes if one.name == "response_perplexity").after.value
    assert after == pytest.approx(
        mid_stage_lines(report.run_info["folder"])[-1]["scores"]["a/response_perplexity"], rel=1e-6
    )
    told = [(one["best"], one["kept"]) for one in mid_stage_lines(report.run_info["folder"])]
    assert told == [(True, False), (False, False)], "weights are saved only if they are to be restored"


@pytest.mark.slow
@pytest.mark.parametrize("broken_at", [3, 4])
def test_resumed_stage_stops_like_uninterrupted_stage(document, tmp_path, made_up, monkeypatch, broken_at):
    document["train"] |= {"evaluate_steps": 1, "save_steps": 2, "early_stopping": {**STOP, "patience": 2}}
    values = (0.1, 0.3, 0.2, 0.25)
    made_up(*values)
    whole = start(document, tmp_path)

    look = early_stopping.EarlyStopper._evaluate_step

    def broken(self, step):
        if step == broken_at:
            raise KeyboardInterrupt
        return look(self, step)

    made_up(*values)
    monkeypatch.setattr(early_stopping.EarlyStopper, "_evaluate_step", broken)
    listener = EventRecorder()
    with pytest.raises(KeyboardInterrupt):
        start(document, tmp_path, listener)
    monkeypatch.setattr(early_stopping.EarlyStopper, "_evaluate_step", look)
    place = Path(listener.of(events.RunStarted)[0].folder)
    made_up(*values[2:])  # resumed from the checkpoint after step 2
    found = registry.discover_plugins()
    again = api.resume_run(spec.load_spec(place / "spec.json", schema.compose_schema(found)), found, place)
    assert same(weights(place), weights(whole.run_info["folder"]))
    assert mid_stage_lines(place) == mid_stage_lines(whole.run_info["folder"])
    assert [one.after.value for one in again.changes] == [one.after.value for one in whole.changes]


@pytest.mark.slow
def test_evaluation_before_which_a_signal_stops_the_run_is_made_when_it_resumes(document, tmp_path, monkeypatch):
    whole = start(document, tmp_path)
    real = StageTrainer.after_optimizer_step

    def step_with_signal(self, learning_rate):
        if self.state.global_step == 3:  # the fourth step, after which the model is evaluated
            signal.raise_signal(signal.SIGTERM)
        real(self, learning_rate)

    listener = EventRecorder()
    with monkeypatch.context() as patch, stop_signals.handle_stop_signals():
        patch.setattr(StageTrainer, "after_optimizer_step", step_with_signal)
        with pytest.raises(stop_signals.Interrupted):
            start(document, tmp_path, listener)
    place = Path(listener.of(events.RunStarted)[0].folder)
    assert [line["step"] for line in mid_stage_lines(place)] == [2]
    found = registry.discover_plugins()
    api.resume_run(spec.load_spec(place / "spec.json", schema.compose_schema(found)), found, place)
    assert mid_stage_lines(place) == mid_stage_lines(whole.run_info["folder"])
    assert same(weights(place), weights(whole.run_info["folder"]))


def test_evaluations_after_the_checkpoint_are_deleted_with_the_scores_of_their_items(tmp_path):
    (tmp_path / "evaluations").mkdir()
    for step in (2, 4, 10):
        (tmp_path / f"evaluations/{step}.json").write_text("{}")
    (tmp_path / "evaluations.jsonl").write_text('{"step": 2}\n{"step": 4}\n')
    assert resume.load_evaluations_until(tmp_path, 2) == [{"step": 2}]
    assert [file.name for file in (tmp_path / "evaluations").iterdir()] == ["2.json"]
    assert resume.load_evaluations_until(tmp_path, 0) == []
    assert not [*(tmp_path / "evaluations").iterdir()]


@pytest.mark.slow
def test_stage_stopped_at_checkpoint_is_not_trained_further(document, tmp_path, made_up, monkeypatch):
    document["train"] |= {"evaluate_steps": 1, "save_steps": 2, "early_stopping": {**STOP, "patience": 2}}
    made_up(0.1, 0.3, 0.2, 0.25)
    whole = start(document, tmp_path)
    made_up(0.1, 0.3, 0.2, 0.25)

    def broken(self, net, done):
        raise KeyboardInterrupt

    listener = EventRecorder()
    with monkeypatch.context() as patch:
        patch.setattr(early_stopping.EarlyStopper, "restore_best_weights", broken)
        with pytest.raises(KeyboardInterrupt):
            start(document, tmp_path, listener)
    place = Path(listener.of(events.RunStarted)[0].folder)
    made_up()  # nothing is evaluated again
    found = registry.discover_plugins()
    api.resume_run(spec.load_spec(place / "spec.json", schema.compose_schema(found)), found, place)
    assert same(weights(place), weights(whole.run_info["folder"]))


@pytest.mark.parametrize(
    ("train", "told"),
    [
        ({"evaluate_steps": None, "early_stopping": STOP}, "no mid-stage evaluation is configured"),
        ({"early_stopping": {"scores": {"a/chrf": 1}}}, "'a/chrf' is not measured mid-stage"),
        ({"evaluate_suites": ["b"]}, "there is no suite 'b'"),
        ({"early_stopping": {"scores": {"a/response_perplexity": -1}}}, "out of range"),
        ({"early_stopping": {}}, "'scores' is missing"),
    ],
)
def test_invalid_early_stopping_is_refused_before_model_is_loaded(document, tmp_path, train, told):
    document["train"] |= train
    with pytest.raises(HarnessError, match=told):
        start(document, tmp_path)
    assert not (tmp_path / "runs").exists()
