"""First stages that arms share, reuse of their snapshots, and a first adapter after a stage without one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from support.paths import ROOT

from harness import registry
from harness.errors import HarnessError
from harness.interfaces.component import CORE_DISTRIBUTION
from harness.model import save
from harness.runner import shared_stages
from harness.runner.staged_model import StagedModel
from harness.spec import plan, schema, spec

DEMO = ROOT / "specs" / "forgetting_demo.json"
SECOND = "mode.continual.stages.1"


@pytest.fixture(scope="module")
def found():
    return registry.discover_plugins(
        [pair for pair in registry.installed_entry_points() if pair[0] == CORE_DISTRIBUTION]
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
def test_stages_are_shared_up_to_first_difference(planned, found, override, count):
    other = planned(*([override] if override else []))
    assert shared_stages.shared_stage_count(planned(), other, found) == count
    assert shared_stages.shared_stage_count(other, planned(), found) == count


def test_stages_whose_rows_have_another_order_are_not_shared(planned, found):
    def curriculum(**options):
        return planned(f"mode={json.dumps({'curriculum': {'domain': ['helpdesk'], **options}})}", "gate=[]")

    assert shared_stages.shared_stage_count(curriculum(), curriculum(), found) == 1
    assert curriculum().stages == curriculum(descending=True).stages
    assert shared_stages.shared_stage_count(curriculum(), curriculum(descending=True), found) == 0


def test_stage_with_variants_is_never_shared(planned, found):
    varied = planned(f'{SECOND}.mitigations={{"wise_ft": {{"alphas": [0, 1]}}}}')
    assert shared_stages.shared_stage_count(varied, varied, found) == 1
    everywhere = planned('mitigations={"wise_ft": {"alphas": [0, 1]}}')
    assert shared_stages.shared_stage_count(everywhere, everywhere, found) == 0


def arm(folder, *stages, ended=True):
    """Create an arm's folder with the snapshots and answers of these stages."""
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


def test_only_snapshots_of_shared_stages_are_reused(planned, found, tmp_path):
    arm(tmp_path / "naive", "helpdesk", "lists")
    naive, other = planned(), planned(f"{SECOND}.train.learning_rate=1e-5")
    place = tmp_path / "lower"
    shared = shared_stages.find_shared_stages({"naive": naive, "lower": other}, "lower", found)
    assert (shared.earlier, shared.donor, shared.to_keep) == ({"naive": 1}, "naive", 0)
    assert shared_stages.find_shared_stages({"naive": naive, "lower": other}, "naive", found).to_keep == 1
    assert shared_stages.reuse_stages(tmp_path, place, other, shared.earlier) == 1
    assert (place / "stages/helpdesk/end/weights.safetensors").read_text() == "naive helpdesk"
    assert (place / "stages/helpdesk/trained.json").is_file()
    assert not (place / "stages/lists").exists()
    assert [one.name for one in (place / "predictions").iterdir()] == ["general-stage1.jsonl"]
    assert shared_stages.find_shared_stages({"naive": naive, "new": planned("seed=1")}, "new", found).earlier == {}
    assert shared_stages.reuse_stages(tmp_path, tmp_path / "new", planned("seed=1"), {}) == 0
    assert not (tmp_path / "new").exists()


def test_interrupted_copy_of_snapshots_is_repeated(planned, found, tmp_path):
    arm(tmp_path / "naive", "helpdesk")
    (tmp_path / "naive/stages/helpdesk/evaluations.jsonl").write_text("{}")
    left = tmp_path / "lower/stages/helpdesk/end"
    left.mkdir(parents=True)
    (left / "half").write_text("written")
    for _ in range(2):  # whatever was linked already
        assert shared_stages.reuse_stages(tmp_path, tmp_path / "lower", planned(), {"naive": 2}) == 1
        assert [one.name for one in left.iterdir()] == ["weights.safetensors"]
        assert (left.parent / "evaluations.jsonl").is_file()
    assert (tmp_path / "naive/stages/helpdesk/end/weights.safetensors").read_text() == "naive helpdesk"


def test_stage_with_mid_stage_evaluations_is_shared_only_with_same_suites(planned, found):
    watched = planned("train.evaluate_steps=1")
    assert shared_stages.shared_stage_count(watched, watched, found) == 2
    other = replace(watched, suites=tuple(replace(one, limit=1) for one in watched.suites))
    assert shared_stages.shared_stage_count(watched, other, found) == 0
    plain = planned()
    assert shared_stages.shared_stage_count(plain, replace(plain, suites=other.suites), found) == 2


def test_arm_without_snapshot_shares_nothing(planned, found, tmp_path):
    arm(tmp_path / "naive")
    assert shared_stages.reuse_stages(tmp_path, tmp_path / "lower", planned(), {"naive": 2}) == 0


def test_only_snapshots_of_finished_arms_are_deleted(planned, found, tmp_path):
    arm(tmp_path / "naive", "helpdesk")
    shared_stages.reuse_stages(tmp_path, tmp_path / "broken", planned(), {"naive": 2})
    shared_stages.delete_snapshots(tmp_path)
    assert not (tmp_path / "naive/stages/helpdesk/end").exists()
    assert (tmp_path / "broken/stages/helpdesk/end/weights.safetensors").read_text() == "naive helpdesk"


def lora(adapter):
    return f"{SECOND}.adapter={adapter}", f'{SECOND}.mitigations={{"lora": {{"rank": 2}}}}'


def test_first_adapter_starts_from_trained_weights(planned, found, tiny_model):
    import torch

    chain = StagedModel(tiny_model, planned(*lora("merge")), found, seed=0)
    chain.start_stage(1, {}, seed=0, planned_steps=1)
    with torch.no_grad():
        for weight in chain.model.parameters():
            weight.add_(0.01)
    ids = torch.arange(6)[None]
    before = chain.model(ids).logits
    chain.finish_stage(1, [])
    chain.start_stage(2, {}, seed=0, planned_steps=1)
    assert save.is_peft_model(chain.model)
    assert torch.equal(chain.model(ids).logits, before)
    assert all("lora" in name for name, weight in chain.model.named_parameters() if weight.requires_grad)
    assert chain.merged, "the adapter switched off is not the base model, and nobody may take it for that"
    assert not save.is_peft_model(chain.final_model())


@pytest.mark.parametrize("overrides", [lora("new"), (f"{SECOND}.adapter=merge",)], ids=["new", "none at all"])
def test_adapter_policy_without_adapter_is_refused(planned, overrides):
    with pytest.raises(HarnessError, match="the previous stage trains no adapter"):
        planned(*overrides)
