"""Choose the device, the dtype and the attention implementation that a model is loaded with.

The choice follows the hardware's capabilities: a dtype that a device only emulates is not chosen.
"""

from __future__ import annotations

import importlib.util
import os

import torch

from harness.errors import HarnessError
from harness.utils.formatting import join_names

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_FLASH = "flash_attention_2"
_ATTENTIONS = ("auto", "sdpa", "eager", _FLASH)
_CPU_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory")


def select_device() -> torch.device:
    """Return the CUDA device of this process (`LOCAL_RANK` under torchrun and accelerate), or the CPU without CUDA."""
    if torch.cuda.is_available():
        rank = os.environ.get("LOCAL_RANK")
        return torch.device("cuda", int(rank) if rank else torch.cuda.current_device())
    return torch.device("cpu")


def resolve_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype that `precision` means on the device.

    `auto` is bfloat16 on a CUDA device with hardware support for it, else float32. It is never float16, whose range
    needs loss scaling, and never bfloat16 on a CPU, where bfloat16 can be a hundred times slower than float32.

    Args:
        precision: `auto`, `float32`, `bfloat16` or `float16`.
        device: The device that computes.

    Raises:
        HarnessError: The precision is unknown, or the device does not support it.
    """
    has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "auto":
        return torch.bfloat16 if has_bfloat16 else torch.float32
    if precision not in _DTYPES:
        hint = f"choose auto or one of {join_names(_DTYPES)}"
        raise HarnessError("train.precision", f"'{precision}' is not a precision", hint)
    if precision == "bfloat16" and device.type == "cuda" and not has_bfloat16:
        name = torch.cuda.get_device_name(device)
        raise HarnessError("train.precision", f"{name} does not support bfloat16", "use auto or float32")
    if precision == "float16" and device.type == "cpu":
        raise HarnessError("train.precision", "float16 needs a GPU", "use auto or float32")
    return _DTYPES[precision]


def set_tf32(enabled: bool) -> None:
    """Set whether float32 matrix products on a GPU round their inputs to TF32. A CPU is not concerned."""
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high" if enabled else "highest")


def uses_tf32() -> bool:
    """Return whether float32 matrix products on a GPU round their inputs to TF32."""
    return torch.cuda.is_available() and torch.get_float32_matmul_precision() != "highest"


def resolve_attention(name: str, device: torch.device) -> str | None:
    """Return the attention implementation to request from transformers.

    `auto` is None: transformers then chooses `sdpa`, or `eager` for a model that does not support `sdpa`, e.g. Gemma 2,
    gpt-oss, GPT-J, GPT-Neo, BLOOM, MPT and XGLM.

    Raises:
        HarnessError: The name is unknown, or flash attention lacks its package or a CUDA device.
    """
    if name not in _ATTENTIONS:
        hint = f"choose one of {join_names(_ATTENTIONS)}"
        raise HarnessError("model.attention", f"'{name}' is not an attention implementation", hint)
    if name == _FLASH:
        if device.type != "cuda":
            raise HarnessError("model.attention", f"{_FLASH} needs a CUDA device", "use sdpa")
        if importlib.util.find_spec("flash_attn") is None:
            raise HarnessError(
                "model.attention", f"{_FLASH} needs the package flash-attn", "pip install flash-attn, or use sdpa"
            )
    return None if name == "auto" else name


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the error reports that a device has no memory left; a CPU raises a plain RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _CPU_OUT_OF_MEMORY)
