"""Models with quantized weights (FP8, MXFP4, bitsandbytes, GPTQ, ...): what can be trained and saved.

Transformers either keeps the weights of such a checkpoint quantized, or dequantizes them while it loads: an FP8
checkpoint on a CPU, MXFP4 without its kernels. A dequantized model is made an ordinary one here. A model whose weights
stay quantized can only be trained with an adapter.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from harness.errors import HarnessError


def quantization_method(model: Any) -> str | None:
    """Return the name of the method that the model's weights are quantized with, e.g. `fp8`; None if they are not."""
    get_base_model = getattr(model, "get_base_model", None)
    model = get_base_model() if callable(get_base_model) else model
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        return None
    method = quantizer.quantization_config.quant_method
    return str(getattr(method, "value", method))


def finish_dequantization(model: Any, checkpoint_config: Any, dtype: torch.dtype) -> None:
    """Make a model whose weights were dequantized while it was loaded an ordinary model, in place.

    Its weights get the requested dtype; transformers leaves them in bfloat16. It is saved as it is; transformers would
    quantize the weights again and write a config that does not say so. Any other model does not change.

    Args:
        model: The loaded model.
        checkpoint_config: The config of its checkpoint.
        dtype: The dtype that was requested.
    """
    if getattr(checkpoint_config, "quantization_config", None) is None or quantization_method(model) is not None:
        return
    if dtype == torch.float32:
        model.float()
    model._weight_conversions = None  # what was done to the weights of the checkpoint, to be reverted when it is saved


def reject_trained_weights(model: Any, *, is_adapter: bool) -> None:
    """Reject a model whose quantized weights would be trained.

    Args:
        model: The model as it will be trained.
        is_adapter: Whether the training result is an adapter.

    Raises:
        HarnessError: The weights are quantized, and the result is not an adapter.
    """
    method = quantization_method(model)
    if method is not None and not is_adapter:
        what = f"its weights are quantized ({method}) and cannot be trained themselves"
        raise HarnessError("model.path", what, 'add "lora" to the mitigations, or give the unquantized model')


def reject_merge(model: Any, adapter_policies: Iterable[str | None]) -> None:
    """Reject a plan that merges an adapter into quantized weights.

    Args:
        model: The model as loaded.
        adapter_policies: What each stage does with the adapter before it: `continue`, `merge`, `new`, or None.

    Raises:
        HarnessError: The weights are quantized, and one of the policies is `merge`.
    """
    method = quantization_method(model)
    if method is not None and "merge" in adapter_policies:
        what = f"an adapter cannot be merged into weights that are quantized ({method})"
        raise HarnessError("mode.continual", what, """set 'adapter' to "continue", or give the unquantized model""")
