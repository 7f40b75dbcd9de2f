"""What this machine can do: the device, the dtype and the attention that a model is loaded with.

Chosen by capability, never by name: a dtype that a device only emulates is not chosen.
"""

from __future__ import annotations

import importlib.util
import os

import torch

from harness.errors import HarnessError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_FLASH = "flash_attention_2"
_ATTENTIONS = ("auto", "sdpa", "eager", _FLASH)


def select_device() -> torch.device:
    """The CUDA device of this process (`LOCAL_RANK` says which, under torchrun and accelerate), else the CPU."""
    if torch.cuda.is_available():
        rank = os.environ.get("LOCAL_RANK")
        return torch.device("cuda", int(rank) if rank else torch.cuda.current_device())
    return torch.device("cpu")


def resolve_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype that `precision` (`auto`, `float32`, `bfloat16`, `float16`) means on the device.

    `auto` is bfloat16 on a CUDA device that has it in hardware, else float32; never float16, whose range needs loss
    scaling, and never bfloat16 on a CPU, where it can be a hundred times slower than float32.
    Raises HarnessError for another word, and for a dtype that the device cannot compute in.
    """
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "auto":
        return torch.bfloat16 if native else torch.float32
    if precision not in _DTYPES:
        raise HarnessError(
            "train.precision", f"there is no '{precision}'", f"choose auto or one of {', '.join(_DTYPES)}"
        )
    if precision == "bfloat16" and device.type == "cuda" and not native:
        name = torch.cuda.get_device_name(device)
        raise HarnessError("train.precision", f"{name} has no bfloat16", "use auto or float32")
    if precision == "float16" and device.type == "cpu":
        raise HarnessError("train.precision", "float16 needs a GPU", "use auto or float32")
    return _DTYPES[precision]


def resolve_attention(name: str, device: torch.device) -> str:
    """The attention that transformers is asked for. `auto` is `sdpa`.

    Raises HarnessError for another word, and for flash attention without its package or a CUDA device.
    """
    if name not in _ATTENTIONS:
        raise HarnessError("model.attention", f"there is no '{name}'", f"choose one of {', '.join(_ATTENTIONS)}")
    if name == _FLASH:
        if device.type != "cuda":
            raise HarnessError("model.attention", f"{_FLASH} needs a CUDA device", "use sdpa")
        if importlib.util.find_spec("flash_attn") is None:
            raise HarnessError(
                "model.attention", f"{_FLASH} needs the package flash-attn", "pip install flash-attn, or use sdpa"
            )
    return "sdpa" if name == "auto" else name


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that a device has no more memory; a CPU says it in a plain RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    said = ("can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in said)
