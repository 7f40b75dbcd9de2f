"""The model on its way through the stages: which adapter it carries, which mitigations are at work, what is saved."""

from __future__ import annotations

import json

import pytest
import torch

from harness import registry
from harness.errors import HarnessError, RunError
from harness.runner import staged_model
from harness.spec import plan, schema, spec

LORA = {"lora": {"rank": 2}}
ASK = "<|im_start|>user\nWhere is jade?<|im_end|>\n<|im_start|>assistant\n"


def logits(model, tokenizer):
    with torch.no_grad():
        return model.eval()(**tokenizer(ASK, return_tensors="pt", add_special_tokens=False)).logits


def plain(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def adapted(base, folder):
    from peft import PeftModel

    return PeftModel.from_pretrained(plain(base), folder)


@pytest.fixture
def whole(monkeypatch):
    """A list that gets the logits of each model that is about to be saved as it is, and as it was before merging."""
    seen = []
    real = staged_model.StagedModel.final_model

    def kept(self):
        before = logits(self.model, self.tokenizer)
        made = real(self)
        seen.append((before, made))
        return made

    monkeypatch.setattr(staged_model.StagedModel, "final_model", kept)
    return seen


def test_one_adapter_goes_on_through_the_stages_and_each_ones_is_kept(desk, tokenizer, untrained):
    place = desk.start(desk.continual(mitigations=LORA))
    first = logits(adapted(untrained, place / "stages/a/model"), tokenizer)
    last = logits(adapted(untrained, place / "model"), tokenizer)
    assert not torch.equal(first, logits(plain(untrained), tokenizer))
    assert not torch.equal(first, last)
    assert not (place / "stages/b/model").exists(), "the last stage's is the run's"
    assert json.loads((place / "model/adapter_config.json").read_text())["base_model_name_or_path"] == str(untrained)


def test_a_merged_adapter_changes_the_base_and_the_result_is_a_whole_model(
    desk, tokenizer, untrained, monkeypatch, whole
):
    monkeypatch.setattr(staged_model.StagedModel, "tokenizer", tokenizer, raising=False)
    place = desk.start(desk.continual({"adapter": "merge"}, mitigations=LORA))
    assert not (place / "model/adapter_config.json").exists()
    ((before, _),) = whole
    saved = plain(place / "model")
    torch.testing.assert_close(logits(saved, tokenizer), before, rtol=1e-4, atol=1e-5)
    weight = "model.layers.0.self_attn.q_proj.weight"
    moved = saved.state_dict()[weight] - plain(untrained).state_dict()[weight]
    assert torch.linalg.matrix_rank(moved, rtol=1e-3) == 4, "two adapters of rank 2, from different beginnings"
    assert (place / "stages/a/model/adapter_config.json").is_file()


def test_a_mitigation_that_does_not_fit_into_memory_is_named(desk, monkeypatch):
    def refuse(mitigation, model):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 128000000000 bytes.")

    monkeypatch.setattr("harness_mitigations.lora.Lora.prepare_model", refuse)
    with pytest.raises(RunError, match=r"mitigations\.lora: what it puts beside the weights does not fit into memory"):
        desk.start(desk.continual({}, mitigations=LORA))


def test_an_adapter_on_merged_weights_is_not_saved_as_if_it_were_the_bases(desk):
    stages = [
        {"name": "a", "domain": ["domain"]},
        {"name": "b", "domain": ["second"], "adapter": "merge"},
        {"name": "c", "domain": ["general"], "adapter": "merge"},
    ]
    place = desk.start(desk.document(mode={"continual": {"stages": stages}}, mitigations=LORA))
    assert [one.parent.name for one in place.glob("stages/*/model")] == ["a"]
    assert plain(place / "model") is not None


def test_a_new_adapter_begins_at_the_base_and_each_stages_is_saved(desk, tokenizer, untrained):
    both = desk.start(desk.continual({"adapter": "new"}, mitigations=LORA))
    other = desk.continual({"adapter": "new"}, mitigations=LORA)
    other["mode"]["continual"]["stages"][0]["domain"] = ["general"]
    another = desk.start(other)
    second = [(one / "model/adapter_model.safetensors").read_bytes() for one in (both, another)]
    assert second[0] == second[1], "what stage a learned leaves no trace in stage b's adapter"
    first = [(one / "stages/a/model/adapter_model.safetensors").read_bytes() for one in (both, another)]
    assert first[0] != first[1]
    assert not torch.equal(
        logits(adapted(untrained, both / "stages/a/model"), tokenizer),
        logits(adapted(untrained, both / "model"), tokenizer),
    )


def test_osf_goes_on_through_the_stages_and_the_result_is_saved_whole(desk, tokenizer, monkeypatch, whole):
    monkeypatch.setattr(staged_model.StagedModel, "tokenizer", tokenizer, raising=False)
    place = desk.start(desk.continual(mitigations={"osf": {}}))
    ((before, _),) = whole
    torch.testing.assert_close(logits(plain(place / "model"), tokenizer), before, rtol=1e-4, atol=1e-5)
    assert not (place / "model/adapter_config.json").exists()
    assert not (place / "stages/a/model").exists(), "a whole model is not saved for every stage"


def test_osf_merged_may_hold_more_in_the_next_stage(desk, tokenizer, untrained, monkeypatch, whole):
    monkeypatch.setattr(staged_model.StagedModel, "tokenizer", tokenizer, raising=False)
    ends = []
    real = staged_model.StagedModel._remove_adapter

    def left(self, *, merge):
        real(self, merge=merge)
        ends.append(self.model.model.layers[0].mlp.up_proj.weight.detach().clone())

    monkeypatch.setattr(staged_model.StagedModel, "_remove_adapter", left)
    second = {"adapter": "merge", "mitigations": {"osf": {"preserve": 0.75}}}
    place = desk.start(desk.continual(second, mitigations={"osf": {"preserve": 0.25}}))
    ((before, _),) = whole
    saved = plain(place / "model")
    torch.testing.assert_close(logits(saved, tokenizer), before, rtol=1e-4, atol=1e-5)
    weights = [plain(untrained).model.layers[0].mlp.up_proj.weight.detach(), *ends]
    weights.append(saved.model.layers[0].mlp.up_proj.weight.detach())
    for begun, ended, held in zip(weights, weights[1:], (4, 12), strict=False):
        strongest = torch.linalg.svd(begun, full_matrices=False).U[:, :held]
        assert float((ended - begun).norm()) > 1e-3
        assert float((strongest.T @ (ended - begun)).norm()) < 1e-5


def test_osf_anew_begins_at_the_base(desk, tokenizer):
    runs = []
    for first in ("domain", "general"):
        document = desk.continual({"adapter": "new"}, mitigations={"osf": {}})
        document["mode"]["continual"]["stages"][0]["domain"] = [first]
        runs.append(desk.start(document))
    assert len({(one / "model/model.safetensors").read_bytes() for one in runs}) == 1
    assert len({(one / "scores.json").read_bytes() for one in runs}) == 2, "what stage a learned is measured, and left"


def test_a_stage_without_lora_after_a_merge_trains_all_weights(desk, untrained):
    second = {"adapter": "merge", "mitigations": {"lora": None}}
    place = desk.start(desk.continual(second, mitigations=LORA))
    before, after = plain(untrained).state_dict(), plain(place / "model").state_dict()
    norm = "model.layers.0.input_layernorm.weight"
    assert not torch.equal(before[norm], after[norm]), "no adapter touches it"


# -- mitigations by stage ---------------------------------------------------------------------------------------------


def penalties(place, stage):
    lines = [json.loads(line) for line in (place / f"stages/{stage}/steps.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key.startswith("penalty/")} for line in lines]


def test_a_stage_inherits_changes_and_takes_out_mitigations(desk):
    stages = [
        {"name": "a", "domain": ["domain"]},
        {"name": "b", "domain": ["second"], "mitigations": {"l2sp": {"strength": 2.0}}},
        {"name": "c", "domain": ["general"], "mitigations": {"l2sp": None}},
    ]
    mitigations = {"l2sp": {"strength": 1.0}, "ewc": {"source": "general", "samples": 4}}
    document = desk.document(mode={"continual": {"stages": stages}}, mitigations=mitigations)
    place = desk.start(document)
    assert set(penalties(place, "a")[-1]) == set(penalties(place, "b")[-1]) == {"penalty/l2sp", "penalty/ewc"}
    assert set(penalties(place, "c")[-1]) == {"penalty/ewc"}


def test_a_mitigation_keeps_its_state_over_stages_with_other_options(desk):
    """EWC in stage b pulls to where stage a ended, whether stage b gives it another strength or not."""
    mitigations = {"ewc": {"source": "general", "samples": 4, "strength": 3.0}}
    same = desk.start(desk.continual(mitigations=mitigations))
    other = desk.start(desk.continual({"mitigations": {"ewc": {"strength": 6.0}}}, mitigations=mitigations))
    (first, *_), (twice, *_) = penalties(same, "b"), penalties(other, "b")
    assert first["penalty/ewc"] == 0.0 == twice["penalty/ewc"], "at the beginning of b nothing has moved from a's end"
    one, two = penalties(same, "b")[1], penalties(other, "b")[1]
    assert two["penalty/ewc"] == pytest.approx(2 * one["penalty/ewc"], rel=1e-4)


@pytest.mark.parametrize(
    ("second", "mitigations", "told"),
    [
        ({"adapter": "merge"}, {}, "the previous stage trains no adapter"),
        ({"adapter": "new"}, {"l2sp": {}}, "the previous stage trains no adapter"),
        ({"mitigations": {"lora": {"rank": 3}}}, LORA, "the options of 'lora' but continues the same weights"),
        ({"mitigations": {"lora": None}}, LORA, "the options of 'lora' but continues the same weights"),
        ({"mitigations": {"lora": {}}}, {}, "the options of 'lora' but continues the same weights"),
        ({"mitigations": {"freeze": {"layers": 1}}}, {}, "the options of 'freeze' but continues the same weights"),
    ],
)
def test_a_chain_that_cannot_be_is_refused_by_the_plan(desk, second, mitigations, told):
    found = registry.discover_plugins()
    read = spec.load_spec(desk.write(desk.continual(second, mitigations=mitigations)), schema.compose_schema(found))
    with pytest.raises(HarnessError) as caught:
        plan.build_plan(read, found)
    assert told in caught.value.what
    assert "mode.continual.stages.1" in caught.value.where


def test_frozen_weights_are_no_adapter_and_that_is_said_before_anything_is_trained(desk, listener):
    heard = listener()
    with pytest.raises(HarnessError, match="the previous stage trains no adapter"):
        desk.start(desk.continual({"adapter": "merge"}, mitigations={"freeze": {"layers": 1}}), heard)
    assert "evaluated" not in heard.kinds()


# -- what is measured beside ------------------------------------------------------------------------------------------


def test_variants_are_measured_kept_and_shown_and_leave_the_model_as_it_is(desk, capsys):
    swept = {"wise_ft": {"alpha": 1.0, "alphas": [0.0, 1.0]}}
    code = desk.command("run", desk.write(desk.document(mitigations=swept)))
    assert code == 0
    place = desk.newest()
    found = json.loads((place / "variants.json").read_text())["variants"]
    assert [(one["stage"], one["mitigation"], one["variant"]) for one in found] == [
        ("domain", "wise_ft", "alpha=0"), ("domain", "wise_ft", "alpha=1"),
    ]  # fmt: skip
    stages = json.loads((place / "scores.json").read_text())["stages"]
    for one, stage in zip(found, stages, strict=True):  # alpha 0 is the base model, alpha 1 the trained one
        for score in one["scores"]:
            (same,) = (s for s in stage["suites"][score["suite"]]["scores"] if s["name"] == score["score"])
            assert score["value"] == same["value"]
    assert "alpha=0" in capsys.readouterr().out
    plain_run = desk.start(desk.document())
    assert (place / "model/model.safetensors").read_bytes() == (plain_run / "model/model.safetensors").read_bytes()


@pytest.mark.parametrize(("mitigations", "copies"), [({}, 2), (LORA, 1), ({"osf": {}}, 1)])
def test_the_distance_to_the_base_is_measured_with_and_without_an_adapter(desk, monkeypatch, mitigations, copies):
    from harness.model import load as model_module

    loaded = []
    real = model_module.load_model
    monkeypatch.setattr(model_module, "load_model", lambda *a, **k: loaded.append(1) or real(*a, **k))
    document = desk.document(mitigations=mitigations)
    document["evaluate"]["general"]["metrics"] = {"kl_to_base": {}}
    place = desk.start(document)
    (change,) = (
        one for one in json.loads((place / "report.json").read_text())["changes"] if one["name"] == "kl_to_base"
    )
    assert change["before"]["value"] == 0.0
    assert change["after"]["value"] > 1e-6
    assert len(loaded) == copies
