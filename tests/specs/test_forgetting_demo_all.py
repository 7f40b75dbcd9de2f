"""The arms that the extended forgetting demo adds, with a tiny random model: each runs and does what it states."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness import registry
from harness.runner import api
from harness.spec import schema, spec
from harness.testing.tiny_model import build_tiny_model

pytestmark = pytest.mark.slow  # the arms are trained once, for all tests

SPECS = Path(__file__).parents[2] / "specs"
SECOND = "mode.continual.stages.1"
SHARING = ["row-loss", "ema-last", "mofo", "repair"]
OWN_START = ["freeze-half", "freeze-columns", "merged-lora"]


def build_small_spec(model: Path, spec_schema) -> dict:
    """Return the extended demo with a tiny model, few rows and steps, and only `naive` and the added arms."""
    document = spec.load_spec(SPECS / "forgetting_demo_all.json", spec_schema).document
    document |= {"model": {"path": str(model)}, "output": "runs", "track": {"enabled": False}}
    for name, source in document["sources"].items():
        if not name.endswith("heldout"):
            source["jsonl"]["limit"] = 48
    first, second = document["mode"]["continual"]["stages"]
    first["train"], second["train"] = {"steps": 3, "learning_rate": 1e-3}, {"steps": 3, "learning_rate": 3e-3}
    document["train"] |= {"max_length": 512, "batch_size": 16, "evaluate_steps": 1}
    for suite in document["evaluate"].values():
        suite["limit"] = 6
    arms = document["arms"]
    earlier = json.loads((SPECS / "forgetting_demo.json").read_text(encoding="utf-8"))["arms"]["named"]
    assert arms["named"].keys() == {*earlier, *SHARING, *OWN_START}
    arms["named"] = {name: arms["named"][name] for name in ("naive", *SHARING, *OWN_START)}
    arms["named"]["merged-lora"] = {"mitigations.merged_lora": {"rank": 16}}  # at the rates above
    arms["named"]["ema-last"][f"{SECOND}.train.save_steps"] = 1
    arms["named"]["repair"][f"{SECOND}.train.learning_rate"] = 0.3  # so high that the help desk gets worse
    return document | {"arms": {**arms, "seeds": None, "baseline": ["naive"]}}


@pytest.fixture(scope="module")
def demo(tmp_path_factory, tokenizer):
    """Run the small experiment; return its comparison and a loader of the JSON files and lines of an arm."""
    folder = tmp_path_factory.mktemp("demo")
    build_tiny_model(tokenizer).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HARNESS_NO_THIRD_PARTY", "1")
        patch.setenv("HARNESS_CACHE", str(folder / "cache"))
        plugins = registry.discover_plugins()
        spec_schema = schema.compose_schema(plugins)
        file = folder / "spec.json"
        file.write_text(json.dumps(build_small_spec(folder / "model", spec_schema)))

        def load_arm_spec(overrides):
            return spec.load_spec(file, spec_schema, [*overrides, "arms=null"])

        comparison = api.run_experiment(spec.load_spec(file, spec_schema), plugins, load_arm_spec)
    experiment_folder = folder / comparison.folder

    def load_lines(arm, name):
        return [json.loads(line) for line in (experiment_folder / "arms" / arm / name).read_text().splitlines()]

    return SimpleNamespace(comparison=comparison, folder=experiment_folder, load_lines=load_lines)


def scores_by_stage(demo, arm):
    """Return the response NLL of each suite, of the base model and after each stage."""
    stages = json.loads((demo.folder / "arms" / arm / "scores.json").read_text())["stages"]
    return [
        {
            suite: score["value"]
            for suite, evaluation in stage["suites"].items()
            for score in evaluation["scores"]
            if score["name"] == "response_nll"
        }
        for stage in stages
    ]


def test_every_added_arm_finishes_and_is_compared(demo):
    arms = ["naive", *SHARING, *OWN_START]
    assert list(demo.comparison.arms) == arms
    assert demo.comparison.missing == {}
    assert {point.arm for point in demo.comparison.points} == set(arms)


def test_arms_that_act_in_the_second_stage_start_it_from_the_weights_of_naive(demo):
    naive = scores_by_stage(demo, "naive")
    for arm in SHARING:
        assert scores_by_stage(demo, arm)[:2] == naive[:2], arm
    for arm in OWN_START:
        assert scores_by_stage(demo, arm)[0] == naive[0], arm
        assert scores_by_stage(demo, arm)[1] != naive[1], arm


def test_every_added_arm_trains_its_second_stage_differently_from_naive(demo):
    naive = scores_by_stage(demo, "naive")[2]
    for arm in (*SHARING, *OWN_START):
        assert scores_by_stage(demo, arm)[2] != naive, arm


def test_the_repairs_are_logged_and_follow_the_help_desk(demo):
    start = json.loads((demo.folder / "arms/repair/scores.json").read_text())["stages"][1]["suites"]["helpdesk"]
    (before,) = (score["value"] for score in start["scores"] if score["name"] == "response_perplexity")
    pulls = 0
    for line in demo.load_lines("repair", "stages/lists/evaluations.jsonl"):
        pulls += line["scores"]["helpdesk/response_perplexity"] > 1.05 * before  # the margin of a perplexity
        assert line["mitigations"]["repair/pulls"] == pulls
    assert pulls > 0


def test_rows_weigh_less_the_higher_their_loss(demo):
    steps = demo.load_lines("row-loss", "stages/lists/steps.jsonl")
    assert all(step["loss"] < step["nll"] for step in steps)
