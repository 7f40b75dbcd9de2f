"""`train.offload_activations`: the inputs of layers leave the device, and change neither loss nor gradient."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from harness.training.offloaded_activations import activation_offloading

ENGINES = ("transformers", "trl")
ON = {"gradient_checkpointing": True, "offload_activations": True}


@pytest.fixture
def moved(monkeypatch):
    """Let TRL's implementation take the CPU for an accelerator; return the shapes of what it moves."""
    from trl.models import activation_offloading as trl_module

    shapes = []

    class Recording(trl_module.OffloadActivations):
        def __init__(self):
            with monkeypatch.context() as patch:
                patch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cpu"))
                super().__init__(use_pin_memory=False, use_streams=False)
            pack = self.pack_hook

            def recording_pack(tensor):
                key = pack(tensor)
                if self.tracker[key][1]:
                    shapes.append(tuple(tensor.shape))
                return key

            self.pack_hook = recording_pack

    monkeypatch.setattr(trl_module, "OffloadActivations", Recording)
    monkeypatch.setattr(torch.cpu, "empty_cache", lambda: None, raising=False)  # called if bitsandbytes is imported
    monkeypatch.setattr(
        "harness.training.train_stage.activation_offloading",
        lambda model, settings, device: activation_offloading(model, settings, torch.device("meta")),
    )
    return shapes


def largest_difference(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_inputs_of_layers_are_moved_and_no_bit_of_the_weights_changes(engine, make_stage, fit, moved):
    settings = {"engine": engine, "batch_size": 2, "accumulation": 2}
    plain, result, _ = fit(make_stage(**settings, gradient_checkpointing=True))
    assert moved == []
    offloaded, same, _ = fit(make_stage(**settings, **ON))
    layers, width = plain.config.num_hidden_layers, plain.config.hidden_size
    inputs = [shape for shape in moved if shape[-1:] == (width,)]
    assert len(inputs) >= layers * 2 * same.steps, "each layer of each micro-batch"
    assert not any(plain.config.vocab_size in shape for shape in moved), "neither logits nor the gradient of the head"
    assert [entry["loss"] for entry in same.log] == [entry["loss"] for entry in result.log]
    assert [entry["grad_norm"] for entry in same.log] == [entry["grad_norm"] for entry in result.log]
    assert largest_difference(plain, offloaded) == 0


def test_on_a_cpu_nothing_is_moved_and_a_warning_says_so(make_stage, fit):
    with pytest.warns(UserWarning, match=r"train\.offload_activations has no effect on a CPU"):
        fit(make_stage(**ON))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("engine", ENGINES)
def test_on_a_gpu_the_weights_are_those_without_it(engine, make_stage, fit, tiny_model):
    settings = {"engine": engine, "precision": "float32", "batch_size": 2, "gradient_checkpointing": True}
    plain, _, _ = fit(make_stage(**settings), model=copy.deepcopy(tiny_model).cuda())
    offloaded, _, _ = fit(make_stage(**settings, offload_activations=True), model=copy.deepcopy(tiny_model).cuda())
    assert largest_difference(plain, offloaded) < 1e-6
