"""A model's state is restored after training, and every stage computes in the requested precision."""

from __future__ import annotations

import copy

import pytest
import torch

from harness.interfaces.mitigation import Mitigation
from harness.training.model_state import prepared_for_trainer


class DtypeRecorder(Mitigation):
    """Records the dtypes of the weights, and those of the outputs of the head."""

    def __init__(self, model):
        self.weights, self.output_dtypes = [], []
        model.get_output_embeddings().register_forward_hook(
            lambda module, arguments, output: self.output_dtypes.append(output.dtype)
        )

    def add_weight_penalty(self, model):
        self.weights.append({weight.dtype for weight in model.parameters() if weight.requires_grad})


@pytest.mark.parametrize("engine", ["trl", "transformers"])
def test_every_stage_computes_in_bfloat16_with_float32_weights(engine, make_stage, fit, tiny_model):
    model = copy.deepcopy(tiny_model).bfloat16()
    dtypes = DtypeRecorder(model)
    data = make_stage(engine=engine, precision="bfloat16")
    for _ in range(2):
        fit(data, {"dtypes": dtypes}, model=model)
    assert dtypes.weights == [{torch.float32}] * 6
    assert set(dtypes.output_dtypes) == {torch.bfloat16}, "the second stage computes as the first"
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


@pytest.mark.slow
def test_small_updates_survive_within_a_bfloat16_stage(make_stage, fit, tiny_model, make_rows):
    model = copy.deepcopy(tiny_model).bfloat16()
    before = copy.deepcopy(model)
    rows = make_rows(4)
    # A step is 1e-5: under half the distance between neighbors in bfloat16 for most weights of 0.02.
    fit(make_stage(rows, [(i % 4,) for i in range(160)], precision="bfloat16", learning_rate=1e-5), model=model)
    after, initial = (m.model.layers[0].mlp.up_proj.weight.float() for m in (model, before))
    assert float((after != initial).float().mean()) > 0.5


def test_without_autocast_a_half_precision_model_computes_in_float32(make_stage, fit, tiny_model):
    model = copy.deepcopy(tiny_model).bfloat16()
    model.model.embed_tokens.requires_grad_(False)
    dtypes = DtypeRecorder(model)
    fit(make_stage(precision="float32"), {"dtypes": dtypes}, model=model)
    assert set(dtypes.output_dtypes) == {torch.float32}
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["trl", "transformers"])
@pytest.mark.parametrize("lora", [False, True])
def test_model_state_is_restored_after_training(engine, lora, make_stage, fit, tiny_model):
    from peft import LoraConfig, get_peft_model

    model = copy.deepcopy(tiny_model)
    causal_lm = model
    if lora:
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))
    model.eval()
    attributes = [set(vars(module)) for module in (model, causal_lm)]
    settings, generation = causal_lm.config.to_dict(), causal_lm.generation_config.to_dict()
    fit(make_stage(engine=engine, precision="bfloat16", gradient_checkpointing=True), model=model)
    assert not model.training
    for module, names in zip((model, causal_lm), attributes, strict=True):
        assert set(vars(module)) - names <= {"model_tags", "_require_grads_hook", "_require_grads_hooks"}
    assert causal_lm.config.to_dict() == settings
    assert causal_lm.generation_config.to_dict() == generation
    assert all(weight.grad is None for weight in model.parameters())
    assert model.generate(input_ids=torch.tensor([[5, 6]]), max_new_tokens=2).shape == (1, 4)


def test_model_state_is_restored_when_training_fails(tiny_model):
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


def test_optimizer_state_is_freed_after_a_stage(make_stage, fit, monkeypatch):
    import gc
    import weakref

    import torch.optim

    optimizers = []
    original_init = torch.optim.AdamW.__init__
    monkeypatch.setattr(
        torch.optim.AdamW,
        "__init__",
        lambda self, *arguments, **options: (
            optimizers.append(weakref.ref(self)),
            original_init(self, *arguments, **options),
        )[1],
    )
    gc.disable()
    try:
        fit(make_stage())
    finally:
        gc.enable()
    assert len(optimizers) == 1
    assert optimizers[0]() is None
