"""A trainer's marks come off again, and precision is what was asked for in every stage."""

from __future__ import annotations

import copy

import pytest
import torch

from harness.interfaces.mitigation import Mitigation
from harness.training.model_state import prepared_for_trainer


class Formats(Mitigation):
    """Notes the formats of the weights, and whether the head computed in bfloat16."""

    def __init__(self, model):
        self.weights, self.products = [], []
        model.get_output_embeddings().register_forward_hook(
            lambda module, given, made: self.products.append(made.dtype)
        )

    def add_weight_penalty(self, model):
        self.weights.append({weight.dtype for weight in model.parameters() if weight.requires_grad})


@pytest.mark.parametrize("engine", ["trl", "transformers"])
def test_every_stage_computes_in_bfloat16_beside_float32_weights(engine, make_stage, fit, tiny_model):
    model = copy.deepcopy(tiny_model).bfloat16()
    formats = Formats(model)
    data = make_stage(engine=engine, precision="bfloat16")
    for _ in range(2):
        fit(data, {"formats": formats}, model=model)
    assert formats.weights == [{torch.float32}] * 6
    assert formats.products == [torch.bfloat16] * 6, "the second stage as the first"
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_small_updates_survive_within_a_bfloat16_stage(make_stage, fit, tiny_model, make_rows):
    model = copy.deepcopy(tiny_model).bfloat16()
    before = copy.deepcopy(model)
    rows = make_rows(4)
    # Each update is 1e-5, under half the distance between neighbours in bfloat16 for most weights of 0.02.
    fit(make_stage(rows, [(i % 4,) for i in range(160)], precision="bfloat16", learning_rate=1e-5), model=model)
    up, was = (m.model.layers[0].mlp.up_proj.weight.float() for m in (model, before))
    assert float((up != was).float().mean()) > 0.5


def test_without_autocast_a_half_precision_model_computes_in_float32(make_stage, fit, tiny_model):
    model = copy.deepcopy(tiny_model).bfloat16()
    model.model.embed_tokens.requires_grad_(False)
    formats = Formats(model)
    fit(make_stage(precision="float32"), {"formats": formats}, model=model)
    assert set(formats.products) == {torch.float32}
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("engine", ["trl", "transformers"])
@pytest.mark.parametrize("lora", [False, True])
def test_the_model_is_given_back_as_it_was(engine, lora, make_stage, fit, tiny_model):
    from peft import LoraConfig, get_peft_model

    model = copy.deepcopy(tiny_model)
    core = model
    if lora:
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))
    model.eval()
    held = [set(vars(module)) for module in (model, core)]
    settings, generation = core.config.to_dict(), core.generation_config.to_dict()
    fit(make_stage(engine=engine, precision="bfloat16", gradient_checkpointing=True), model=model)
    assert not model.training
    for module, names in zip((model, core), held, strict=True):
        assert set(vars(module)) - names <= {"model_tags", "_require_grads_hook", "_require_grads_hooks"}
    assert core.config.to_dict() == settings
    assert core.generation_config.to_dict() == generation
    assert all(weight.grad is None for weight in model.parameters())
    assert model.generate(input_ids=torch.tensor([[5, 6]]), max_new_tokens=2).shape == (1, 4)


def test_the_model_is_given_back_when_training_fails(tiny_model):
    class Stop(Exception):
        pass

    def fail():
        with prepared_for_trainer(tiny_model, gradient_checkpointing=True, compute_dtype=None):
            tiny_model.forward = None
            tiny_model.train()
            raise Stop

    tiny_model.eval()
    with pytest.raises(Stop):
        fail()
    assert "forward" not in vars(tiny_model)
    assert not tiny_model.training
    assert not tiny_model.model.gradient_checkpointing


def test_the_optimizers_state_is_gone_after_a_stage(make_stage, fit, monkeypatch):
    import gc
    import weakref

    import torch.optim

    made = []
    start = torch.optim.AdamW.__init__
    monkeypatch.setattr(
        torch.optim.AdamW,
        "__init__",
        lambda self, *given, **named: (made.append(weakref.ref(self)), start(self, *given, **named))[1],
    )
    gc.disable()
    try:
        fit(make_stage())
    finally:
        gc.enable()
    assert len(made) == 1
    assert made[0]() is None
