"""Which stages arms have in common, what one hands to the next, and how a first adapter comes after whole weights."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from support.paths import ROOT

from harness import registry
from harness.errors import HarnessError
from harness.model import save
from harness.runner import arms
from harness.runner.staged_model import StagedModel
from harness.spec import plan, schema, spec

DEMO = ROOT / "specs" / "forgetting_demo.json"
SECOND = "mode.continual.stages.1"


@pytest.fixture(scope="module")
def found():
    return registry.discover_plugins(
        [pair for pair in registry.installed_entry_points() if pair[0] == registry.CORE_DISTRIBUTION]
    )


@pytest.fixture(scope="module")
def planned(found):
    """Plans the demo with overrides."""
    composed = schema.compose_schema(found)
    return lambda *overrides: plan.build_plan(spec.load_spec(DEMO, composed, [*overrides, "arms=null"]), found)


@pytest.mark.parametrize(
    ("override", "count"),
    [
        (None, 2),
        (f"{SECOND}.train.learning_rate=1e-5", 1),
        (f'{SECOND}.mitigations={{"replay": {{}}}}', 1),
        (f'{SECOND}.mitigations={{"lr_scale": {{}}}}', 1),
        ("mode.continual.stages.0.train.steps=3", 0),
        ("train.weight_decay=0.1", 0),
        ('mitigations={"ema": {}}', 0),
        ("seed=1", 0),
        ("sources.helpdesk.jsonl.limit=9", 0),
        ("template=alpaca", 0),
        ("model.path=other/model", 0),
    ],
)
def test_stages_are_alike_up_to_the_first_difference(planned, found, override, count):
    other = planned(*([override] if override else []))
    assert arms.shared_stage_count(planned(), other, found) == count
    assert arms.shared_stage_count(other, planned(), found) == count


def test_a_stage_that_offers_variants_is_not_shared_whoever_has_it(planned, found):
    varied = planned(f'{SECOND}.mitigations={{"wise_ft": {{"alphas": [0, 1]}}}}')
    assert arms.shared_stage_count(varied, varied, found) == 1
    everywhere = planned('mitigations={"wise_ft": {"alphas": [0, 1]}}')
    assert arms.shared_stage_count(everywhere, everywhere, found) == 0


def arm(folder, *stages, ended=True):
    """An arm's folder as a run leaves it: the ends of some stages, and the answers of all."""
    (folder / "predictions").mkdir(parents=True)
    for number, name in enumerate(stages, start=1):
        (folder / "stages" / name / "end").mkdir(parents=True)
        (folder / "stages" / name / "end" / "weights.safetensors").write_text(f"{folder.name} {name}")
        (folder / "stages" / name / "trained.json").write_text("{}")
        (folder / "stages" / name / "steps.jsonl").write_text("")
        (folder / "predictions" / f"general-stage{number}.jsonl").write_text(folder.name)
    if ended:
        (folder / "report.json").write_text(json.dumps({}))
    return folder


def test_the_ends_of_common_stages_are_taken_over_and_only_those(planned, found, tmp_path):
    arm(tmp_path / "naive", "helpdesk", "lists")
    naive, other = planned(), planned(f"{SECOND}.train.learning_rate=1e-5")
    place = tmp_path / "lower"
    assert arms.reuse_stages(tmp_path, place, other, [("naive", naive)], found) == 1
    assert (place / "stages/helpdesk/end/weights.safetensors").read_text() == "naive helpdesk"
    assert (place / "stages/helpdesk/trained.json").is_file()
    assert not (place / "stages/lists").exists()
    assert [one.name for one in (place / "predictions").iterdir()] == ["general-stage1.jsonl"]
    assert arms.reuse_stages(tmp_path, tmp_path / "new", planned("seed=1"), [("naive", naive)], found) == 0
    assert not (tmp_path / "new").exists()


def test_an_arm_that_was_broken_off_while_it_took_over_begins_anew(planned, found, tmp_path):
    arm(tmp_path / "naive", "helpdesk")
    (tmp_path / "naive/stages/helpdesk/evaluations.jsonl").write_text("{}")
    left = tmp_path / "lower/stages/helpdesk/end"
    left.mkdir(parents=True)
    (left / "half").write_text("written")
    for _ in range(2):  # whatever was linked already
        assert arms.reuse_stages(tmp_path, tmp_path / "lower", planned(), [("naive", planned())], found) == 1
        assert [one.name for one in left.iterdir()] == ["weights.safetensors"]
        assert (left.parent / "evaluations.jsonl").is_file()
    assert (tmp_path / "naive/stages/helpdesk/end/weights.safetensors").read_text() == "naive helpdesk"


def test_a_stage_that_is_watched_is_shared_by_arms_with_the_same_suites_alone(planned, found):
    watched = planned("train.evaluate_steps=1")
    assert arms.shared_stage_count(watched, watched, found) == 2
    other = replace(watched, suites=tuple(replace(one, limit=1) for one in watched.suites))
    assert arms.shared_stage_count(watched, other, found) == 0
    plain = planned()
    assert arms.shared_stage_count(plain, replace(plain, suites=other.suites), found) == 2


def test_an_arm_whose_end_is_gone_gives_nothing(planned, found, tmp_path):
    arm(tmp_path / "naive")
    assert arms.reuse_stages(tmp_path, tmp_path / "lower", planned(), [("naive", planned())], found) == 0


def test_ends_are_cleared_of_finished_arms_alone_and_what_was_linked_stays(planned, found, tmp_path):
    arm(tmp_path / "naive", "helpdesk")
    arms.reuse_stages(tmp_path, tmp_path / "broken", planned(), [("naive", planned())], found)
    arms.delete_snapshots(tmp_path)
    assert not (tmp_path / "naive/stages/helpdesk/end").exists()
    assert (tmp_path / "broken/stages/helpdesk/end/weights.safetensors").read_text() == "naive helpdesk"


def lora(adapter):
    return f"{SECOND}.adapter={adapter}", f'{SECOND}.mitigations={{"lora": {{"rank": 2}}}}'


def test_a_first_adapter_begins_at_the_weights_that_were_trained(planned, found, tiny_model):
    import torch

    chain = StagedModel(tiny_model, planned(*lora("merge")), found)
    chain.start_stage(1, {})
    with torch.no_grad():
        for weight in chain.model.parameters():
            weight.add_(0.01)
    ids = torch.arange(6)[None]
    before = chain.model(ids).logits
    chain.finish_stage(1, [])
    chain.start_stage(2, {})
    assert save.is_peft_model(chain.model)
    assert torch.equal(chain.model(ids).logits, before)
    assert all("lora" in name for name, weight in chain.model.named_parameters() if weight.requires_grad)
    assert chain.merged, "the adapter switched off is not the base model, and nobody may take it for that"
    assert not save.is_peft_model(chain.final_model())


@pytest.mark.parametrize("overrides", [lora("new"), (f"{SECOND}.adapter=merge",)], ids=["new", "none at all"])
def test_an_adapter_is_asked_for_where_none_can_be(planned, overrides):
    with pytest.raises(HarnessError, match="the previous stage trains no adapter"):
        planned(*overrides)
