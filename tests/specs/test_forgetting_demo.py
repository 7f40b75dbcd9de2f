"""The forgetting demo with a tiny random model, few rows and the same arms. Tests invariants, not effect sizes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.event_recorder import EventRecorder

from harness import events, registry
from harness.runner import api
from harness.spec import schema, spec
from harness.testing.tiny_model import build_tiny_model

pytestmark = pytest.mark.slow  # the demo's arms are trained once, for all tests

ROOT = Path(__file__).parents[2]
SECOND = "mode.continual.stages.1"
MITIGATIONS = f"{SECOND}.mitigations"


def build_small_spec(model: Path) -> dict:
    """Return the demo spec with a tiny model, few rows and updates, WiSE-FT at 0 and 1, and a fixed arm."""
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
    document["arms"]["seeds"] = None
    named = document["arms"]["named"]
    named["lora"][f"{SECOND}.train.learning_rate"] = 9e-3
    named["ewc"][MITIGATIONS]["ewc"]["samples"] = 8
    named["wise-ft"][MITIGATIONS]["wise_ft"]["alphas"] = [0, 1]
    named["held"] = {MITIGATIONS: {"l2sp": {"strength": 1e12, "coupling": "proximal", "anchor": "stage"}}}
    return document


@pytest.fixture(scope="module")
def demo(tmp_path_factory, tokenizer):
    """Run the small experiment; return its comparison, folder, events and a JSON loader for the files of an arm."""
    folder = tmp_path_factory.mktemp("demo")
    build_tiny_model(tokenizer).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    file = folder / "spec.json"
    file.write_text(json.dumps(build_small_spec(folder / "model")))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HARNESS_NO_THIRD_PARTY", "1")
        patch.setenv("HARNESS_CACHE", str(folder / "cache"))
        plugins = registry.discover_plugins()
        recorder = EventRecorder()
        plugins.manager.register(recorder)
        spec_schema = schema.compose_schema(plugins)

        def load_arm_spec(overrides):
            return spec.load_spec(file, spec_schema, [*overrides, "arms=null"])

        comparison = api.run_experiment(spec.load_spec(file, spec_schema), plugins, load_arm_spec)
    experiment_folder = folder / comparison.folder

    def load_json(arm, name):
        return json.loads((experiment_folder / "arms" / arm / name).read_text())

    return SimpleNamespace(comparison=comparison, folder=experiment_folder, load_json=load_json, events=recorder.events)


def stage_scores(demo, arm):
    """Return suite/score -> value of the base model and of each stage."""
    return [
        {
            f"{suite}/{score['name']}": score["value"]
            for suite, evaluation in stage["suites"].items()
            for score in evaluation["scores"]
        }
        for stage in demo.load_json(arm, "scores.json")["stages"]
    ]


def logged_steps(demo, arm):
    """Return the logged metrics of each step of the second stage."""
    lines = (demo.folder / "arms" / arm / "stages" / "lists" / "steps.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_every_arm_finishes(demo):
    arms = ["naive", "lower-lr", "lower-lr-0.1", "replay", "l2sp", "ewc", "lora", "wise-ft", "held"]
    assert list(demo.comparison.arms) == arms
    assert demo.comparison.missing == {}
    assert (demo.folder / "report.html").is_file()
    assert {point.arm for point in demo.comparison.points} == set(arms)


def test_every_arm_starts_its_second_stage_from_the_same_weights(demo):
    naive_scores = stage_scores(demo, "naive")
    assert len(naive_scores) == 3
    assert naive_scores[0] != naive_scores[1]
    for arm in demo.comparison.arms:
        assert stage_scores(demo, arm)[:2] == naive_scores[:2], arm


def test_the_first_stage_is_trained_once_and_recorded_in_every_arm(demo):
    training_records = [demo.load_json(arm, "stages/helpdesk/trained.json") for arm in demo.comparison.arms]
    # A stage that is trained again would have another duration.
    assert {record["seconds"] for record in training_records} == {training_records[0]["seconds"]}
    step_events = [event for event in demo.events if isinstance(event, events.StepLogged) and event.stage_index == 1]
    assert len(step_events) == 3 * len(demo.comparison.arms)
    stage_starts = [event for event in demo.events if isinstance(event, events.StageStarted)]
    assert [event.reused for event in stage_starts if event.stage_index == 1] == [False] + [True] * (
        len(demo.comparison.arms) - 1
    )
    assert list(demo.folder.glob("arms/*/stages/*/end")) == [], "models stored for other arms are deleted"


def test_forgetting_is_the_loss_of_the_first_task_since_its_stage(demo):
    assert demo.comparison.forgetting == "forgetting:response_nll"
    for point in demo.comparison.points:
        _, after_first, after_second = (scores["helpdesk/response_nll"] for scores in stage_scores(demo, point.arm))
        assert point.forgotten.value == pytest.approx(after_second - after_first, abs=1e-9), point.arm
        base, _, after_second = (scores["lists/response_nll"] for scores in stage_scores(demo, point.arm))
        assert point.gain.value == pytest.approx(base - after_second, abs=1e-9), point.arm


def test_wise_ft_at_0_and_1_equals_the_two_models_that_it_averages(demo):
    variants = {
        variant["variant"]: {f"{score['suite']}/{score['score']}": score["value"] for score in variant["scores"]}
        for variant in demo.load_json("wise-ft", "variants.json")["variants"]
    }
    assert list(variants) == ["alpha=0", "alpha=1"]
    assert variants["alpha=0"] == stage_scores(demo, "wise-ft")[1]
    assert variants["alpha=1"] == stage_scores(demo, "naive")[2]
    assert stage_scores(demo, "wise-ft")[2] not in variants.values()


def test_replay_trains_one_tenth_of_its_loss_tokens_on_the_first_task(demo):
    data = demo.load_json("replay", "data.json")
    assert data["shares"][1]["helpdesk"]["loss_tokens"] == pytest.approx(0.1, abs=0.005)
    assert list(demo.load_json("naive", "data.json")["shares"][1]) == ["lists"]


def test_infinite_strength_keeps_the_weights_and_finite_strength_changes_them(demo):
    for score, value in stage_scores(demo, "held")[2].items():
        assert value == pytest.approx(stage_scores(demo, "held")[1][score], abs=1e-5), score
    assert abs(next(point for point in demo.comparison.points if point.arm == "held").forgotten.value) < 1e-5
    for arm in ("l2sp", "ewc"):
        change = abs(
            stage_scores(demo, arm)[2]["lists/response_nll"] - stage_scores(demo, arm)[1]["lists/response_nll"]
        )
        assert change > 1e-4, arm
        assert logged_steps(demo, arm)[-1][f"penalty/{arm}"] > 0


def test_the_learning_rates_are_those_of_the_protocol(demo):
    peaks = {
        arm: max(step["learning_rate"] for step in logged_steps(demo, arm)) for arm in ("naive", "lower-lr", "lora")
    }
    assert peaks["lower-lr"] == pytest.approx(0.3 * peaks["naive"])
    assert peaks["lora"] == pytest.approx(3 * peaks["naive"])


def test_the_demo_spec_has_the_stated_learning_rates_and_shares():
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
