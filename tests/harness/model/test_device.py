"""Device, dtype and attention follow the hardware."""

from __future__ import annotations

import pytest
import torch

from harness.errors import HarnessError
from harness.model import device as device_module
from harness.model.device import is_out_of_memory, resolve_dtype, select_device

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def simulate_cuda(monkeypatch):
    """Return a function that simulates a CUDA device with or without bfloat16 support."""

    def simulate(*, bfloat16: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla V100")
        # torch counts emulation as support by default
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or bfloat16
        )

    return simulate


def test_device_is_the_cpu_without_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert select_device() == CPU


def test_device_is_that_of_the_local_rank_with_cuda(simulate_cuda, monkeypatch):
    simulate_cuda(bfloat16=True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert select_device() == CUDA
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert select_device() == torch.device("cuda", 3)


def test_auto_is_bfloat16_only_with_hardware_support(simulate_cuda):
    assert resolve_dtype("auto", CPU) == torch.float32
    simulate_cuda(bfloat16=True)
    assert resolve_dtype("auto", CUDA) == torch.bfloat16
    assert resolve_dtype("auto", CPU) == torch.float32
    simulate_cuda(bfloat16=False)
    assert resolve_dtype("auto", CUDA) == torch.float32


def test_requested_precision_is_used_or_rejected_but_never_replaced(simulate_cuda):
    simulate_cuda(bfloat16=False)
    assert resolve_dtype("float32", CUDA) == torch.float32
    assert resolve_dtype("float16", CUDA) == torch.float16
    assert resolve_dtype("bfloat16", CPU) == torch.bfloat16
    with pytest.raises(HarnessError, match=r"^train.precision: Tesla V100 does not support bfloat16"):
        resolve_dtype("bfloat16", CUDA)
    with pytest.raises(HarnessError, match=r"float16 needs a GPU"):
        resolve_dtype("float16", CPU)
    with pytest.raises(HarnessError, match=r"'int8' is not a precision; choose auto or one of float32"):
        resolve_dtype("int8", CPU)


def test_attention_is_requested_only_when_named_and_possible(monkeypatch):
    assert device_module.resolve_attention("auto", CPU) is None
    assert device_module.resolve_attention("eager", CUDA) == "eager"
    with pytest.raises(HarnessError, match=r"^model.attention: 'flash' is not an attention"):
        device_module.resolve_attention("flash", CUDA)
    with pytest.raises(HarnessError, match=r"needs a CUDA device"):
        device_module.resolve_attention("flash_attention_2", CPU)
    real_find_spec = __import__("importlib.util").util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: None if name == "flash_attn" else real_find_spec(name, *a)
    )
    with pytest.raises(HarnessError, match=r"pip install flash-attn"):
        device_module.resolve_attention("flash_attention_2", CUDA)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            True,
        ),
        (RuntimeError("shapes do not fit"), False),
        (HarnessError("a", "b"), False),
    ],
)
def test_out_of_memory_is_recognized_on_every_device(error, expected):
    assert is_out_of_memory(error) is expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_auto_dtype_multiplies_on_this_gpu():
    dtype = resolve_dtype("auto", select_device())
    square = torch.eye(16, device=select_device(), dtype=dtype)
    assert (square @ square).dtype == dtype


def test_tf32_is_set_on_a_gpu_only(monkeypatch):
    precision = torch.get_float32_matmul_precision()
    try:
        for has_gpu in (False, True):
            torch.set_float32_matmul_precision("highest")
            monkeypatch.setattr(torch.cuda, "is_available", lambda has_gpu=has_gpu: has_gpu)
            device_module.set_tf32(True)
            assert (torch.get_float32_matmul_precision() == "high") is has_gpu
            assert device_module.uses_tf32() is has_gpu
            device_module.set_tf32(False)
            assert not device_module.uses_tf32()
    finally:
        torch.set_float32_matmul_precision(precision)
