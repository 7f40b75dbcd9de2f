"""The forgetting demo in small: a tiny random model, few rows, the same arms. Asserts invariants, not effect sizes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.event_recorder import EventRecorder

from harness import events, registry
from harness.runner import api
from harness.spec import schema, spec

ROOT = Path(__file__).parents[2]
SECOND = "mode.continual.stages.1"
MITIGATIONS = f"{SECOND}.mitigations"


def small(model: Path) -> dict:
    """The shipped spec with a tiny model, few rows and updates, both ends of WiSE-FT, and an arm that cannot move."""
    document = json.loads((ROOT / "specs" / "forgetting_demo.json").read_text(encoding="utf-8"))
    del document["$schema"]
    document["model"] = {"path": str(model)}
    document["output"] = "runs"
    document["track"] = {"enabled": False}
    for name, source in document["sources"].items():
        source["jsonl"]["path"] = str(ROOT / "specs" / source["jsonl"]["path"])
        if not name.endswith("heldout"):
            source["jsonl"]["limit"] = 48
    first, second = document["mode"]["continual"]["stages"]
    first["train"] = {"steps": 3, "learning_rate": 1e-3}
    second["train"] = {"epochs": 1, "learning_rate": 3e-3}
    document["train"] |= {"max_length": 512, "batch_size": 16}
    for suite in document["evaluate"].values():
        suite["limit"] = 6
    named = document["arms"]["named"]
    named["lora"][f"{SECOND}.train.learning_rate"] = 9e-3
    named["ewc"][MITIGATIONS]["ewc"]["samples"] = 8
    named["wise-ft"][MITIGATIONS]["wise_ft"]["alphas"] = [0, 1]
    named["held"] = {MITIGATIONS: {"l2sp": {"strength": 1e12, "coupling": "proximal", "anchor": "stage"}}}
    return document


@pytest.fixture(scope="module")
def demo(tmp_path_factory, tokenizer):
    """The small experiment, run: its comparison, its folder, its events, and `read` for a file of one arm."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("demo")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    file = folder / "spec.json"
    file.write_text(json.dumps(small(folder / "model")))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HARNESS_NO_THIRD_PARTY", "1")
        patch.setenv("HARNESS_CACHE", str(folder / "cache"))
        found = registry.discover_plugins()
        listener = EventRecorder()
        found.manager.register(listener)
        composed = schema.compose_schema(found)

        def load(overrides):
            return spec.load_spec(file, composed, [*overrides, "arms=null"])

        made = api.run_experiment(spec.load_spec(file, composed), found, load)
    place = folder / made.folder

    def read(arm, name):
        return json.loads((place / "arms" / arm / name).read_text())

    return SimpleNamespace(made=made, place=place, read=read, events=listener.events)


def scores(demo, arm):
    """Stage by stage, the base first: suite/score -> value."""
    return [
        {f"{suite}/{one['name']}": one["value"] for suite, found in stage["suites"].items() for one in found["scores"]}
        for stage in demo.read(arm, "scores.json")["stages"]
    ]


def updates(demo, arm):
    lines = (demo.place / "arms" / arm / "stages" / "lists" / "steps.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_every_arm_of_the_issue_comes_to_its_end(demo):
    wanted = ["naive", "lower-lr", "replay", "l2sp", "ewc", "lora", "wise-ft", "held"]
    assert list(demo.made.arms) == wanted
    assert demo.made.missing == {}
    assert (demo.place / "report.html").is_file()
    assert {one.arm for one in demo.made.points} == set(wanted)


def test_every_arm_begins_its_second_stage_from_the_same_weights(demo):
    naive = scores(demo, "naive")
    assert len(naive) == 3
    assert naive[0] != naive[1]
    for arm in demo.made.arms:
        assert scores(demo, arm)[:2] == naive[:2], arm


def test_the_first_stage_is_trained_once_and_is_in_every_arm_s_own_record(demo):
    trained = [demo.read(arm, "stages/helpdesk/trained.json") for arm in demo.made.arms]
    assert {one["seconds"] for one in trained} == {trained[0]["seconds"]}, (
        "a stage that was trained again took another time"
    )
    told = [event for event in demo.events if isinstance(event, events.StepLogged) and event.stage_index == 1]
    assert len(told) == 3 * len(demo.made.arms)
    again = [event.reused for event in demo.events if isinstance(event, events.StageStarted) and event.stage_index == 1]
    assert again == [False] + [True] * (len(demo.made.arms) - 1)
    assert list(demo.place.glob("arms/*/stages/*/end")) == [], "what was kept for other arms is not kept for ever"


def test_forgetting_is_what_the_first_task_lost_since_its_own_stage(demo):
    assert demo.made.forgetting == "forgetting:response_nll"
    for point in demo.made.points:
        _, learned, last = (one["helpdesk/response_nll"] for one in scores(demo, point.arm))
        assert point.forgotten.value == pytest.approx(last - learned, abs=1e-9), point.arm
        base, _, gained = (one["lists/response_nll"] for one in scores(demo, point.arm))
        assert point.gain.value == pytest.approx(base - gained, abs=1e-9), point.arm


def test_the_ends_of_wise_ft_are_its_parents_bit_for_bit(demo):
    found = {
        one["variant"]: {f"{score['suite']}/{score['score']}": score["value"] for score in one["scores"]}
        for one in demo.read("wise-ft", "variants.json")["variants"]
    }
    assert list(found) == ["alpha=0", "alpha=1"]
    assert found["alpha=0"] == scores(demo, "wise-ft")[1]
    assert found["alpha=1"] == scores(demo, "naive")[2]
    assert scores(demo, "wise-ft")[2] not in found.values()


def test_a_tenth_of_what_replay_trains_on_is_the_first_task(demo):
    data = demo.read("replay", "data.json")
    assert data["shares"][1]["helpdesk"]["loss_tokens"] == pytest.approx(0.1, abs=0.005)
    assert list(demo.read("naive", "data.json")["shares"][1]) == ["lists"]


def test_infinite_strength_stays_where_the_stage_began_and_finite_strength_does_not(demo):
    for score, value in scores(demo, "held")[2].items():
        assert value == pytest.approx(scores(demo, "held")[1][score], abs=1e-5), score
    assert abs(next(one for one in demo.made.points if one.arm == "held").forgotten.value) < 1e-5
    for arm in ("l2sp", "ewc"):
        moved = abs(scores(demo, arm)[2]["lists/response_nll"] - scores(demo, arm)[1]["lists/response_nll"])
        assert moved > 1e-4, arm
        assert updates(demo, arm)[-1][f"penalty/{arm}"] > 0


def test_the_learning_rates_are_those_of_the_protocol(demo):
    peaks = {arm: max(one["learning_rate"] for one in updates(demo, arm)) for arm in ("naive", "lower-lr", "lora")}
    assert peaks["lower-lr"] == pytest.approx(0.3 * peaks["naive"])
    assert peaks["lora"] == pytest.approx(3 * peaks["naive"])


def test_the_shipped_rates_and_shares_are_those_that_were_stated():
    document = json.loads((ROOT / "specs" / "forgetting_demo.json").read_text(encoding="utf-8"))
    first, second = document["mode"]["continual"]["stages"]
    named = document["arms"]["named"]
    assert (first["train"], second["train"]) == (
        {"steps": 24, "learning_rate": 1e-4},
        {"steps": 20, "learning_rate": 3e-4},
    )
    assert named["lora"][f"{SECOND}.train.learning_rate"] == pytest.approx(3 * 3e-4)
    assert named["lower-lr"][MITIGATIONS] == {"lr_scale": {"factor": 0.3}}
    assert named["replay"][MITIGATIONS] == {"replay": {"share": 0.1}}
    assert "no evidence" in document["description"].lower()
    assert "expected" in document["description"].lower()
