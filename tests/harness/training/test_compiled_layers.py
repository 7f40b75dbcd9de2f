"""`train.compile`: layers are compiled for the steps of a stage, and only where torch has a compiler."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from harness.errors import HarnessError
from harness.training import compiled_layers as module
from harness.training.compiled_layers import can_compile, compiled_layers

CUDA = torch.device("cuda")


def has_triton(monkeypatch, is_installed):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        module, "find_spec", lambda name: (object() if is_installed else None) if name == "triton" else real(name)
    )


def test_a_cpu_trains_without_compilation_and_with_a_warning(tiny_model, make_stage, fit):
    with pytest.warns(UserWarning, match="train.compile has no effect on cpu"):
        trained, _, _ = fit(make_stage(compile=True))
    plain, _, _ = fit(make_stage())
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), plain.parameters(), strict=True))


def test_a_gpu_without_triton_or_too_old_for_it_is_refused(monkeypatch):
    has_triton(monkeypatch, False)
    with pytest.raises(HarnessError, match=r"train.compile: torch.compile needs Triton; pip install triton"):
        can_compile(CUDA)
    has_triton(monkeypatch, True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    with pytest.raises(HarnessError, match=r"no code for this GPU, of compute capability 6.1; set it to false"):
        can_compile(CUDA)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert can_compile(CUDA)


def test_a_model_without_a_list_of_layers_is_refused(tiny_model, monkeypatch):
    monkeypatch.setattr(module, "can_compile", lambda device: True)
    del tiny_model.model.layers[1]
    with (
        pytest.raises(HarnessError, match="a llama model has no list of layers that could be compiled"),
        compiled_layers(tiny_model, True),
    ):
        pass


@pytest.mark.slow
def test_compiled_layers_train_the_same_and_evaluations_are_not_compiled(make_stage, fit, monkeypatch, tiny_model):
    monkeypatch.setattr(module, "BACKEND", "eager")  # torch's tracer, without generated code
    monkeypatch.setattr(module, "can_compile", lambda device: True)
    frames = torch._dynamo.utils.counters["frames"]
    frames.clear()
    seen = []

    def evaluate(step):
        before = dict(frames)
        trained.eval()(input_ids=torch.tensor([[5, 6, 7, 8]]))
        seen.append(before == dict(frames))
        return False

    trained = tiny_model
    fit(make_stage(compile=True, precision="float32"), model=trained, stop_check=evaluate)
    assert frames["ok"] > 0, "something was compiled"
    assert seen == [True, True, True]
    assert all(layer._compiled_call_impl is None for layer in trained.model.layers)


@pytest.mark.slow
def test_compiled_layers_give_the_losses_of_others(make_stage, fit, monkeypatch):
    monkeypatch.setattr(module, "BACKEND", "eager")
    monkeypatch.setattr(module, "can_compile", lambda device: True)
    _, compiled, _ = fit(make_stage(compile=True, precision="float32"))
    _, plain, _ = fit(make_stage(precision="float32"))
    assert [entry["loss"] for entry in compiled.log] == pytest.approx([entry["loss"] for entry in plain.log], rel=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_compiled_layers_on_cuda_give_the_loss_of_others(tiny_model):
    model = tiny_model.cuda()
    ids = torch.arange(10, 42, device="cuda")[None]
    plain = model(input_ids=ids, labels=ids).loss
    with compiled_layers(model, True) as is_compiled:
        assert is_compiled
        compiled = model(input_ids=ids, labels=ids).loss
    assert torch.allclose(compiled, plain, rtol=1e-4)
