"""Runs with `repair`: the order of evaluation, repair and checkpoint, early stopping, and resumed runs."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.event_recorder import EventRecorder
from support.stage_runs import mid_stage_lines, same, start

from harness import events, registry
from harness.errors import HarnessError
from harness.runner import api, early_stopping
from harness.runner.staged_model import StagedModel
from harness.spec import schema, spec
from harness.training.stage_trainer import StageTrainer
from harness.utils import stop_signals

WORDS = ("amber", "basil", "clay", "dune", "ember", "fern", "grove", "hazel", "iris", "jade", "kelp", "lilac", "moss")


@pytest.fixture
def document(tmp_path, monkeypatch, tiny_model, tokenizer):
    monkeypatch.chdir(tmp_path)
    tiny_model.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    for name, output in (("a", "{} is here"), ("b", "98765 43210 56789 01234 97531 86420 13579 {}")):
        rows = [{"instruction": f"Where is {word}?", "output": output.format(word)} for word in WORDS]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite = {"metrics": {"response_perplexity": {}}, "max_new_tokens": 4}
    return {
        "name": "tiny",
        "model": {"path": "./tiny"},
        "template": "chatml",
        "sources": {name: {"jsonl": {"path": f"{name}.jsonl", "held_out": 0.3}} for name in ("a", "b")},
        "mode": {"domain": {"sources": ["a"]}},
        "mitigations": {"repair": {"pull": 0.5}},
        "train": {"steps": 6, "batch_size": 2, "learning_rate": 0.02, "scheduler": "constant", "evaluate_steps": 2},
        "evaluate": {"a": {"source": "a", **suite}, "b": {"source": "b", "role": "general", **suite}},
        "track": {"enabled": False},
    }


def resume(folder):
    found = registry.discover_plugins()
    return api.resume_run(spec.load_spec(folder / "spec.json", schema.compose_schema(found)), found, folder)


def folder_of(report):
    return Path(report.run_info["folder"])


def weights(folder):
    (file,) = (Path(folder) / "model").glob("*model.safetensors")
    return load_file(file)


@pytest.fixture
def drift_at(monkeypatch):
    """A function that makes the general suite worse by 1000 after the given steps, and equal after the others."""
    compare = early_stopping.EarlyStopper._compare_with_start

    def set_steps(*steps):
        def compare_with_drift(self, evaluation):
            scores = compare(self, evaluation)
            if evaluation.suite != "b":
                return scores
            rise = 1000.0 if self._unlogged_event.step in steps else 0.0
            return replace(scores, now={name: value + rise for name, value in scores.start.items()})

        monkeypatch.setattr(early_stopping.EarlyStopper, "_compare_with_start", compare_with_drift)

    return set_steps


def test_a_repair_after_the_last_step_is_the_interpolation_of_base_and_trained_weights(document, tmp_path, drift_at):
    drift_at(6)
    listener = EventRecorder()
    repaired = folder_of(start(document, tmp_path, listener))
    document["mitigations"] = {}
    plain = folder_of(start(document, tmp_path))
    base, trained, result = load_file(tmp_path / "tiny/model.safetensors"), weights(plain), weights(repaired)
    squares = 0.0
    for name, weight in trained.items():
        assert torch.allclose(result[name], weight + 0.5 * (base[name] - weight), atol=1e-6), name
        squares += float((weight - base[name]).double().square().sum())
    assert not same(result, trained)
    told = [one.mitigations for one in listener.of(events.MidStageEvaluated)]
    assert told == [one["mitigations"] for one in mid_stage_lines(repaired)]
    assert told[:2] == [{"repair/pulls": 0}, {"repair/pulls": 0}]
    assert told[2] == {"repair/pulls": 1, "repair/distance": pytest.approx(squares**0.5, rel=1e-4),
                       "repair/triggered.b": 1.0}  # fmt: skip
    assert [one["scores"] for one in mid_stage_lines(repaired)] == [one["scores"] for one in mid_stage_lines(plain)], (
        "before the repair"
    )


def test_the_scores_of_the_evaluations_decide_about_repairs(document, tmp_path):
    """Without invented scores: a repair follows if and only if the measured score is worse than before the stage."""
    document["mitigations"]["repair"] |= {"suites": ["b"], "tolerance": 0.05}
    report = start(document, tmp_path)
    change = next(one for one in report.changes if (one.suite, one.name) == ("b", "response_perplexity"))
    expected, pulls = [], 0
    for line in mid_stage_lines(folder_of(report)):
        pulls += line["scores"]["b/response_perplexity"] - change.before.value > 0.05
        expected.append(pulls)
    assert [line["mitigations"]["repair/pulls"] for line in mid_stage_lines(folder_of(report))] == expected
    assert pulls > 0, "training on other rows makes the general suite worse"


@pytest.mark.slow
def test_the_factors_of_an_adapter_move_and_nothing_else(document, tmp_path, drift_at):
    drift_at(6)
    lora = {"rank": 2, "dropout": 0.0}
    document["mitigations"] |= {"lora": lora}
    repaired = weights(folder_of(start(document, tmp_path)))
    document["mitigations"] = {"lora": lora}
    plain = weights(folder_of(start(document, tmp_path)))
    b_factors = [name for name in plain if "lora_B" in name]
    assert b_factors
    assert all(torch.allclose(repaired[name], 0.5 * plain[name], atol=1e-7) for name in b_factors), "B starts at 0"


INTERRUPTIONS = {
    "before the evaluation": (early_stopping.EarlyStopper, "_evaluate_step"),
    "between evaluation and repair": (StagedModel, "react_to_evaluation"),
    "after the repair": (early_stopping.EarlyStopper, "log_evaluation"),
    "before the checkpoint of the step": (StageTrainer, "_save_checkpoint"),
}


@pytest.mark.slow
@pytest.mark.parametrize("interruption", INTERRUPTIONS)
def test_an_interrupted_run_has_every_repair_once(document, tmp_path, drift_at, monkeypatch, interruption):
    """Evaluations, repairs and checkpoints fall on the same steps. The second of them is interrupted."""
    drift_at(2, 4)
    document["train"] |= {"save_steps": 2}
    document["mitigations"] |= {"lora": {"rank": 2, "dropout": 0.2}}
    whole = folder_of(start(document, tmp_path))
    owner, name = INTERRUPTIONS[interruption]
    real, calls = getattr(owner, name), []

    def interrupted(self, *arguments, **options):
        calls.append(name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, *arguments, **options)

    listener = EventRecorder()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            start(document, tmp_path, listener)
    place = Path(listener.of(events.RunStarted)[0].folder)
    resume(place)
    assert [line["mitigations"]["repair/pulls"] for line in mid_stage_lines(place)] == [1, 2, 2]
    assert mid_stage_lines(place) == mid_stage_lines(whole)
    assert same(weights(place), weights(whole))


@pytest.mark.slow
@pytest.mark.parametrize("step", [4, 6])
def test_a_repair_that_a_signal_prevents_is_made_when_the_run_resumes(document, tmp_path, drift_at, monkeypatch, step):
    """The checkpoint has the weights before the repair. The last step too: nothing is trained after it."""
    drift_at(step)
    whole = folder_of(start(document, tmp_path))
    real = StageTrainer.after_optimizer_step

    def step_with_signal(self, learning_rate):
        if self.state.global_step == step - 1:
            signal.raise_signal(signal.SIGTERM)
        real(self, learning_rate)

    listener = EventRecorder()
    with monkeypatch.context() as patch, stop_signals.handle_stop_signals():
        patch.setattr(StageTrainer, "after_optimizer_step", step_with_signal)
        with pytest.raises(stop_signals.Interrupted):
            start(document, tmp_path, listener)
    place = Path(listener.of(events.RunStarted)[0].folder)
    assert all(line["step"] < step for line in mid_stage_lines(place))
    resume(place)
    assert mid_stage_lines(place) == mid_stage_lines(whole)
    assert mid_stage_lines(place)[-1]["mitigations"]["repair/pulls"] == 1
    assert same(weights(place), weights(whole))


@pytest.mark.slow
def test_early_stopping_sees_the_score_before_the_repair_and_restores_those_weights(
    document, tmp_path, drift_at, monkeypatch
):
    drift_at(6)
    document["train"]["early_stopping"] = {"scores": {"a/response_perplexity": 1}, "patience": 9}
    combined = iter([0.1, 0.2, 0.3])
    monkeypatch.setattr(early_stopping, "combined_score", lambda *given: next(combined))
    listener = EventRecorder()
    restored = folder_of(start(document, tmp_path, listener))
    assert [line["mitigations"]["repair/pulls"] for line in mid_stage_lines(restored)] == [0, 0, 1]
    assert [one.step for one in listener.of(events.BestWeightsRestored)] == [6]
    document["mitigations"], document["train"]["early_stopping"] = {}, None
    assert same(weights(restored), weights(folder_of(start(document, tmp_path))))


@pytest.mark.slow
def test_repair_composes_with_mixing_and_ewc(document, tmp_path, drift_at):
    drift_at(2, 6)
    document["mode"] = {"mixed": {"domain": ["a"], "general": ["b"]}}
    document["mitigations"] |= {
        "lora": {"rank": 2},
        "mixing": {"share": 0.5, "unit": "rows", "upsample": True},
        "ewc": {"source": "b", "samples": 4},
    }
    report = start(document, tmp_path)
    (file,) = folder_of(report).glob("stages/*/evaluations.jsonl")
    pulls = [json.loads(line)["mitigations"]["repair/pulls"] for line in file.read_text().splitlines()]
    assert pulls == [1, 1, 2]


@pytest.mark.parametrize(
    ("mitigation", "train", "evaluate", "problem"),
    [
        ({}, {"evaluate_steps": None}, {}, "the stage 'domain' has no mid-stage evaluation, after which 'repair'"),
        ({"suites": ["c"]}, {}, {}, "there is no suite 'c'"),
        ({"suites": ["b"]}, {"evaluate_suites": ["a"]}, {}, "do not measure the primary score of the suite 'b'"),
        ({}, {"evaluate_suites": ["a"]}, {}, "measure no primary score of a general suite"),
        ({"suites": ["b"]}, {}, {"metrics": {"exact_match": {}, "response_perplexity": {}}}, "of the suite 'b'"),
        ({"suites": ["b"]}, {}, {"metrics": {"length_ratio": {}}}, "the suite 'b' has no score with a better direct"),
        ({}, {"sharding": "fsdp2"}, {}, "the mitigation 'repair' reads or changes whole weights"),
        ({"pull": 0}, {}, {}, "repair.pull"),
        ({"max_repairs": 0}, {}, {}, "repair.max_repairs"),
    ],
)
def test_a_spec_in_which_repair_cannot_work_is_refused(document, tmp_path, mitigation, train, evaluate, problem):
    document["mitigations"]["repair"] = mitigation
    document["train"] |= train
    document["evaluate"]["b"] |= evaluate
    with pytest.raises(HarnessError) as error:
        start(document, tmp_path)
    (line,) = str(error.value).splitlines()
    assert problem in line
    assert not (tmp_path / "runs").exists()


def test_a_stage_with_a_new_adapter_has_no_score_at_its_start(document, tmp_path):
    document["mitigations"] |= {"lora": {"rank": 2}}
    document["mode"] = {
        "continual": {
            "stages": [
                {"name": "one", "domain": ["a"]},
                {"name": "two", "domain": ["b"], "adapter": "new"},
            ]
        }
    }
    with pytest.raises(HarnessError, match="the stage 'two' begins with a new adapter"):
        start(document, tmp_path)


@pytest.mark.slow
def test_the_start_of_a_later_stage_is_the_evaluation_after_the_stage_before(document, tmp_path, monkeypatch):
    document["mitigations"]["repair"] |= {"suites": ["a"], "tolerance": 1e9}
    document["mode"] = {"continual": {"stages": [{"name": "one", "domain": ["a"]}, {"name": "two", "domain": ["b"]}]}}
    document["train"] |= {"steps": 2}
    received, react = {}, StagedModel.react_to_evaluation

    def record(self, stage_index, scores):
        received[stage_index] = scores
        return react(self, stage_index, scores)

    monkeypatch.setattr(StagedModel, "react_to_evaluation", record)
    report = start(document, tmp_path)
    matrix = json.loads((folder_of(report) / "scores.json").read_text())["stages"]
    values = [
        {score["name"]: score["value"] for score in stage["suites"]["a"]["scores"]} for stage in matrix
    ]  # before, after one, after two
    for stage_index in (1, 2):
        scores = received[stage_index]["a"]
        assert dict(scores.start) == values[stage_index - 1]
        assert dict(scores.now) == pytest.approx(values[stage_index], rel=1e-5), "the last step is evaluated"
        assert (scores.role, scores.primary) == ("domain", "response_perplexity")
        assert scores.margin == pytest.approx(0.05 * scores.start["response_perplexity"])
        worsening = scores.now["response_perplexity"] - scores.start["response_perplexity"]
        assert scores.worsening("response_perplexity") == pytest.approx(worsening)
