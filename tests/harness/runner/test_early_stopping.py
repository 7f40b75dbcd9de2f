"""A run whose stage is evaluated on its way: the same weights as without, and an end when nothing gets better."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness import registry
from harness.errors import HarnessError
from harness.hookspecs import hookimpl
from harness.runner import api, early_stopping
from harness.spec import schema, spec
from harness.types import Event

WORDS = ("amber", "basil", "clay", "dune", "ember", "fern", "grove", "hazel", "iris", "jade", "kelp", "lilac", "moss")


class Listener:
    def __init__(self):
        self.events: list[Event] = []

    @hookimpl
    def harness_on_event(self, event):
        self.events.append(event)

    def of(self, kind):
        return [one for one in self.events if one.type == kind]


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


def load(document, tmp_path):
    (tmp_path / "spec.json").write_text(json.dumps(document))
    found = registry.discover_plugins()
    return spec.load_spec(tmp_path / "spec.json", schema.compose_schema(found)), found


def start(document, tmp_path, listener=None):
    given, found = load(document, tmp_path)
    if listener is not None:
        found.manager.register(listener)
    return api.run(given, found)


def weights(folder):
    return load_file(Path(folder) / "model" / "adapter_model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def lines(folder):
    return [json.loads(one) for one in (Path(folder) / "stages/domain/evaluations.jsonl").read_text().splitlines()]


@pytest.fixture
def made_up(monkeypatch):
    """(values of the combined score, in the order of the evaluations) -> what the stage believes to have measured."""

    def give(*values):
        left = iter(values)
        monkeypatch.setattr(early_stopping, "combined_score", lambda *given: next(left))

    return give


STOP = {"scores": {"a/response_perplexity": 1}, "patience": 1}


def test_a_stage_that_is_evaluated_on_its_way_trains_the_same_weights(document, tmp_path):
    listener = Listener()
    watched = start(document, tmp_path, listener)
    document["train"]["evaluate_steps"] = None
    alone = start(document, tmp_path)
    assert same(weights(watched.run_info["folder"]), weights(alone.run_info["folder"]))
    assert [one["step"] for one in lines(watched.run_info["folder"])] == [2, 4, 6]
    told = listener.of("measured")
    assert [one.data["step"] for one in told] == [2, 4, 6]
    assert all("a/response_perplexity" in one.data["scores"] for one in told)
    assert not any("chrf" in name.lower() for one in told for name in one.data["scores"]), (
        "nothing is generated unasked"
    )
    change = next(one for one in watched.changes if one.name == "response_perplexity")
    assert told[-1].data["scores"]["a/response_perplexity"] == pytest.approx(change.after.value)
    assert not (Path(alone.run_info["folder"]) / "stages/domain/evaluations.jsonl").exists()


def test_named_suites_are_measured_with_all_their_metrics(document, tmp_path):
    document["train"] |= {"evaluate_suites": ["a"], "steps": 2}
    listener = Listener()
    start(document, tmp_path, listener)
    (told,) = listener.of("measured")
    assert {"a/response_perplexity", "a/chrf"} <= set(told.data["scores"])


def test_the_combined_score_is_that_of_its_formula(document, tmp_path):
    document["train"] |= {"early_stopping": {**STOP, "patience": 9, "restore_best": False}}
    report = start(document, tmp_path)
    before = next(one for one in report.changes if one.name == "response_perplexity").before.value
    for one in lines(report.run_info["folder"]):
        assert one["combined"] == pytest.approx((before - one["scores"]["a/response_perplexity"]) / before)


def test_a_stage_ends_when_nothing_gets_better_and_goes_back_to_the_best_weights(document, tmp_path, made_up):
    document["train"] |= {"evaluate_steps": 1, "early_stopping": {**STOP, "patience": 2}}
    made_up(0.1, 0.3, 0.2, 0.25)
    listener = Listener()
    report = start(document, tmp_path, listener)
    folder = Path(report.run_info["folder"])
    told = [(one["step"], one["best"], one["kept"], one["over"]) for one in lines(folder)]
    assert told == [(1, True, True, False), (2, True, True, False), (3, False, False, False), (4, False, False, True)]
    assert json.loads((folder / "stages/domain/trained.json").read_text())["steps"] == 4
    assert [one.data["over"] for one in listener.of("measured")] == [False, False, False, True]
    assert [one.data["step"] for one in listener.of("restored")] == [2]
    after = next(one for one in report.changes if one.name == "response_perplexity").after.value
    found = {one["step"]: one["scores"]["a/response_perplexity"] for one in lines(folder)}
    assert after == pytest.approx(found[2], rel=1e-6)
    assert after != pytest.approx(found[4], rel=1e-6)
    assert not (folder / "stages/domain/best").exists()


def test_a_stage_may_end_without_going_back(document, tmp_path, made_up):
    document["train"] |= {"evaluate_steps": 1, "early_stopping": {**STOP, "restore_best": False}}
    made_up(0.3, 0.2)
    report = start(document, tmp_path)
    after = next(one for one in report.changes if one.name == "response_perplexity").after.value
    assert after == pytest.approx(lines(report.run_info["folder"])[-1]["scores"]["a/response_perplexity"], rel=1e-6)
    told = [(one["best"], one["kept"]) for one in lines(report.run_info["folder"])]
    assert told == [(True, False), (False, False)], "no weights are put aside that are not to be put back"


@pytest.mark.parametrize("broken_at", [3, 4])
def test_a_stage_that_was_broken_off_ends_as_if_it_had_not_been(document, tmp_path, made_up, monkeypatch, broken_at):
    document["train"] |= {"evaluate_steps": 1, "save_steps": 2, "early_stopping": {**STOP, "patience": 2}}
    values = (0.1, 0.3, 0.2, 0.25)
    made_up(*values)
    whole = start(document, tmp_path)

    look = early_stopping.EarlyStopper._evaluate_step

    def broken(self, step):
        if step == broken_at:
            raise KeyboardInterrupt
        look(self, step)

    made_up(*values)
    monkeypatch.setattr(early_stopping.EarlyStopper, "_evaluate_step", broken)
    listener = Listener()
    with pytest.raises(KeyboardInterrupt):
        start(document, tmp_path, listener)
    monkeypatch.setattr(early_stopping.EarlyStopper, "_evaluate_step", look)
    place = Path(listener.of("run_started")[0].data["folder"])
    made_up(*values[2:])  # gone on with from the checkpoint after update 2
    found = registry.discover_plugins()
    again = api.resume_run(spec.load_spec(place / "spec.json", schema.compose_schema(found)), found, place)
    assert same(weights(place), weights(whole.run_info["folder"]))
    assert lines(place) == lines(whole.run_info["folder"])
    assert [one.after.value for one in again.changes] == [one.after.value for one in whole.changes]


def test_a_run_that_ended_early_at_its_checkpoint_is_not_trained_on(document, tmp_path, made_up, monkeypatch):
    document["train"] |= {"evaluate_steps": 1, "save_steps": 2, "early_stopping": {**STOP, "patience": 2}}
    made_up(0.1, 0.3, 0.2, 0.25)
    whole = start(document, tmp_path)
    made_up(0.1, 0.3, 0.2, 0.25)

    def broken(self, net, done):
        raise KeyboardInterrupt

    listener = Listener()
    with monkeypatch.context() as patch:
        patch.setattr(early_stopping.EarlyStopper, "restore_best_weights", broken)
        with pytest.raises(KeyboardInterrupt):
            start(document, tmp_path, listener)
    place = Path(listener.of("run_started")[0].data["folder"])
    made_up()  # nothing is measured any more
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
def test_settings_that_make_no_sense_are_told_before_the_model_is_loaded(document, tmp_path, train, told):
    document["train"] |= train
    with pytest.raises(HarnessError, match=told):
        start(document, tmp_path)
    assert not (tmp_path / "runs").exists()
