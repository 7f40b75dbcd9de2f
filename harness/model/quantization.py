"""Models with quantized weights (bitsandbytes, FP8, MXFP4, GPTQ, ...): how they are loaded, trained and dequantized.

`model.quantization` quantizes an ordinary checkpoint with bitsandbytes while it is loaded: every linear layer but the
output head. With `experts` the stacked weights of experts too, see `quantized_experts`. A checkpoint may bring its own
quantization. Transformers keeps such weights quantized, or dequantizes them while it loads: an FP8 checkpoint on a CPU,
MXFP4 without its kernels, and any with `model.dequantize`. A dequantized model is made an ordinary one here. A model
whose weights stay quantized can only be trained with an adapter.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import HarnessError
from harness.model import quantized_experts
from harness.model.quantization_settings import load_quantization as load_quantization
from harness.model.quantization_settings import quantizes_experts
from harness.model.quantized_experts import expert_names as expert_names
from harness.model.quantized_experts import experts_as_parameters as experts_as_parameters
from harness.utils.silence import silence_libraries

BITSANDBYTES = "bitsandbytes"
"""The method of `model.quantization`, and its name in checkpoints."""

WHERE = "model.quantization"
DEQUANTIZE = "model.dequantize"

DEQUANTIZED_ATTRIBUTE = "harness_dequantized"
"""Attribute of a loaded model: the method with which the weights of its checkpoint are quantized."""


def quantization_method(model: Any) -> str | None:
    """Return the name of the method that the model's weights are quantized with, e.g. `fp8`; None if they are not."""
    get_base_model = getattr(model, "get_base_model", None)
    model = get_base_model() if callable(get_base_model) else model
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is None:
        return None
    return _method_name(quantizer.quantization_config.quant_method)


def _method_name(method: Any) -> str:
    return str(getattr(method, "value", method))


# -- load -------------------------------------------------------------------------------------------------------------


def require_bitsandbytes() -> None:
    """Raise HarnessError unless the package of `model.quantization` is installed."""
    if importlib.util.find_spec(BITSANDBYTES) is None:
        hint = 'pip install "harness-sft[quantization]", or remove model.quantization'
        raise HarnessError(WHERE, "the package bitsandbytes is not installed", hint)


def bitsandbytes_config(options: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """Return transformers' `BitsAndBytesConfig`.

    Args:
        options: The spec's `model.quantization.bitsandbytes`.
        dtype: The dtype of the matrix products with 4-bit weights.
    """
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(**_config_arguments(options), bnb_4bit_compute_dtype=dtype)


def _config_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    if options["bits"] == 8:
        return {"load_in_8bit": True}
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": options["type"],
        "bnb_4bit_use_double_quant": options["double"],
    }


def config_source(quantization: Mapping[str, Any], dtype: str) -> str:
    """Return the line of Python that builds the config of a quantized base model.

    Args:
        quantization: The spec's `model.quantization`.
        dtype: The name of the dtype of the matrix products.
    """
    arguments = {**_config_arguments(quantization[BITSANDBYTES]), "bnb_4bit_compute_dtype": dtype}
    return f"quantization = BitsAndBytesConfig({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def loading_options(quantization: Mapping[str, Any] | None, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Return the options of `from_pretrained` for a quantized model; none without quantization.

    The weights are quantized on the device one after the other, so the unquantized model never is on it as a whole.

    Args:
        quantization: The spec's `model.quantization`.
        dtype: See `bitsandbytes_config`.
        device: The device of the model.

    Raises:
        HarnessError: bitsandbytes is not installed.
    """
    if not quantization:
        return {}
    require_bitsandbytes()
    return {
        "quantization_config": bitsandbytes_config(quantization[BITSANDBYTES], dtype),
        "device_map": {"": str(device)},
    }


def dequantizing_options(checkpoint_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `from_pretrained` with which transformers dequantizes a checkpoint while it loads.

    There are none for an ordinary checkpoint, and for bitsandbytes, whose weights `dequantize` makes ordinary ones.

    Args:
        checkpoint_config: The content of its config.json.

    Raises:
        HarnessError: Transformers cannot dequantize the method.
        ImportError, ValueError: Its package is not installed, or the method is not known.
    """
    own = checkpoint_config.get("quantization_config")
    method = _own_method(checkpoint_config)
    if not isinstance(own, Mapping) or method == BITSANDBYTES:
        return {}
    from transformers.quantizers.auto import AutoQuantizationConfig

    config = AutoQuantizationConfig.from_dict(dict(own))
    if not _can_be_dequantized(config):
        what = f"transformers cannot dequantize weights of the method {method}"
        raise HarnessError(DEQUANTIZE, what, "remove model.dequantize, or give the unquantized model")
    config.dequantize = True
    return {"quantization_config": config}


def dequantizing_config_class(method: str | None) -> str | None:
    """Return the name of the class of transformers whose `dequantize` dequantizes a method; None if there is none."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    if method is None or method == BITSANDBYTES:
        return None
    return str(AUTO_QUANTIZATION_CONFIG_MAPPING[method].__name__)


def _own_method(checkpoint_config: Mapping[str, Any]) -> str | None:
    """Return the method with which a checkpoint is quantized itself; None if it is not."""
    own = checkpoint_config.get("quantization_config")
    return str(own.get("quant_method", BITSANDBYTES)) if isinstance(own, Mapping) else None


def _can_be_dequantized(config: Any) -> bool:
    """Return whether `model.dequantize` dequantizes weights with this quantization config of transformers."""
    return _method_name(config.quant_method) == BITSANDBYTES or isinstance(getattr(config, "dequantize", None), bool)


def check_checkpoint(
    checkpoint_config: Mapping[str, Any] | None, quantization: Mapping[str, Any] | None, *, dequantize: bool = False
) -> None:
    """Reject a checkpoint that brings a quantization which this machine cannot load. Call it before a download.

    Args:
        checkpoint_config: The content of its config.json; None if it is not known.
        quantization: The spec's `model.quantization`.
        dequantize: The spec's `model.dequantize`.

    Raises:
        HarnessError: The checkpoint is quantized already, its method is unknown, its package or device is missing, or
            it cannot be dequantized.
    """
    method = None if checkpoint_config is None else _own_method(checkpoint_config)
    if checkpoint_config is None or method is None:
        return
    if quantization:
        what = f"the weights of the model are quantized already ({method})"
        raise HarnessError(WHERE, what, "remove model.quantization, or give the unquantized model")
    from transformers.quantizers.auto import AutoHfQuantizer, AutoQuantizationConfig

    unquantized = "give the unquantized model, and quantize it with model.quantization"
    try:
        with silence_libraries():
            options = dequantizing_options(checkpoint_config) if dequantize else {}
            own = dict(checkpoint_config["quantization_config"])
            config = options.get("quantization_config") or AutoQuantizationConfig.from_dict(own)
            quantizer = AutoHfQuantizer.from_config(config, pre_quantized=True)
            quantizer.validate_environment(device_map=None, weights_only=True)
    except (ImportError, RuntimeError, ValueError, TypeError) as error:
        text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise HarnessError("model.path", f"its weights are quantized ({method}): {text}", unquantized) from error


def require_quantized_experts(model: Any, quantization: Mapping[str, Any] | None) -> None:
    """Raise HarnessError if experts were to be quantized and the model has none.

    Args:
        model: The loaded model.
        quantization: The spec's `model.quantization`.
    """
    if quantizes_experts(quantization) and not quantized_experts.has_quantized_experts(model):
        what = f"a {model.config.model_type} model has no stacked weights of experts"
        raise HarnessError(f"{WHERE}.{BITSANDBYTES}.experts", what, "set it to false")


def prepare_quantized_layers(model: Any) -> None:
    """Let the layers of bitsandbytes compute the same in training and in evaluation.

    On CPUs with AVX512-BF16 a 4-bit layer packs its weights again in evaluation and rounds differently there.
    """
    if quantization_method(model) != BITSANDBYTES:
        return
    for layer in quantized_layers(model).values():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def finish_dequantization(model: Any, checkpoint_config: Any, dtype: torch.dtype) -> None:
    """Make a model whose weights were dequantized while it was loaded an ordinary model, in place.

    Its weights get the requested dtype; transformers leaves them in bfloat16. It is saved as it is; transformers would
    quantize the weights again and write a config that does not say so. Any other model does not change.

    Args:
        model: The loaded model.
        checkpoint_config: The config of its checkpoint.
        dtype: The dtype that was requested.
    """
    method = _own_method(checkpoint_config.to_dict())
    if method is None or quantization_method(model) is not None:
        return
    setattr(model, DEQUANTIZED_ATTRIBUTE, method)
    if dtype == torch.float32:
        model.float()
    model._weight_conversions = None  # what was done to the weights of the checkpoint, to be reverted when it is saved


# -- the weights ------------------------------------------------------------------------------------------------------


def quantized_layers(model: nn.Module) -> dict[str, Any]:
    """Return the layers of bitsandbytes by path; none if the model is not quantized with it."""
    if quantization_method(model) != BITSANDBYTES:
        return {}
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    return {path: layer for path, layer in model.named_modules() if type(layer) in (Linear4bit, Linear8bitLt)}


def dequantized_weight(layer: Any) -> Tensor:
    """Return the weight of a linear layer, (outputs, inputs), as it computes: dequantized if it is quantized.

    Raises:
        HarnessError: The weight is quantized by another method than bitsandbytes.
    """
    weight: Any = layer.weight
    if weight.is_floating_point() and weight.dtype.itemsize > 1:
        plain: Tensor = weight.detach()
        return plain
    kind = type(layer).__name__
    if kind not in ("Linear4bit", "Linear8bitLt"):
        hint = "give the unquantized model, and quantize it with model.quantization"
        raise HarnessError("model.path", f"the weights of a {kind} cannot be dequantized", hint)
    from bitsandbytes import functional

    if kind == "Linear4bit":
        values: Tensor = functional.dequantize_4bit(weight.data, weight.quant_state)
    else:
        scale = weight.SCB if weight.SCB is not None else layer.state.SCB
        values = weight.data.float() * scale[:, None] / 127
    return values


def dequantize(model: Any, dtype: torch.dtype | None = None) -> None:
    """Make a model that bitsandbytes quantized an ordinary one with the same weights, in place.

    Args:
        model: A causal language model without an adapter.
        dtype: The dtype of the weights; None: weights of 4 bits get the dtype that they were quantized from, those of
            8 bits float32.
    """
    for path, layer in quantized_layers(model).items():
        weight = dequantized_weight(layer)
        weight = weight if dtype is None else weight.to(dtype)
        linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        linear.weight = nn.Parameter(weight)
        if layer.bias is not None:
            linear.bias = nn.Parameter(layer.bias.detach())
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, linear.train(layer.training))
    quantized_experts.dequantize_experts(model)
    for config in (model.config, model.config.get_text_config()):
        if hasattr(config, "quantization_config"):
            del config.quantization_config
    for attribute in ("hf_quantizer", "quantization_method", "hf_device_map"):
        if attribute in vars(model):
            delattr(model, attribute)
    for attribute in ("is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        if hasattr(model, attribute):
            setattr(model, attribute, False)
    model._weight_conversions = None


# -- what can be trained ----------------------------------------------------------------------------------------------


def reject_trained_weights(model: Any, *, is_adapter: bool) -> None:
    """Reject a model whose quantized weights would be trained.

    Args:
        model: The model as it will be trained.
        is_adapter: Whether the training result is an adapter.

    Raises:
        HarnessError: The weights are quantized, and the result is not an adapter, or transformers cannot train one.
    """
    method = quantization_method(model)
    if method is None:
        return
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    quantizer = getattr(base, "hf_quantizer", None)
    can_be_dequantized = quantizer is not None and _can_be_dequantized(quantizer.quantization_config)
    remedy = f"set {DEQUANTIZE} to true" if can_be_dequantized else "give the unquantized model"
    if not is_adapter:
        what = f"its weights are quantized ({method}) and cannot be trained themselves"
        raise HarnessError("model.path", what, f'add "lora" to the mitigations, or {remedy}')
    if not getattr(quantizer, "is_trainable", True):
        what = f"transformers cannot train an adapter on weights that are quantized with {method}"
        raise HarnessError(
            "model.path", what, remedy if can_be_dequantized else f"{remedy}, and quantize it with {WHERE}"
        )


def reject_merge(model: Any, adapter_policies: Iterable[str | None], *, keeps_quantization: bool = True) -> None:
    """Reject a plan that merges an adapter into quantized weights.

    Args:
        model: The model as loaded.
        adapter_policies: What each stage does with the adapter before it: `continue`, `merge`, `new`, or None.
        keeps_quantization: False if the first policy may dequantize the model: the spec has no `model.quantization`,
            but the earlier run had.

    Raises:
        HarnessError: The weights are quantized, and one of the policies is `merge`.
    """
    method = quantization_method(model)
    first, *later = adapter_policies
    policies = later if method == BITSANDBYTES and not keeps_quantization else [first, *later]
    if method is not None and "merge" in policies:
        what = f"an adapter cannot be merged into weights that are quantized ({method})"
        raise HarnessError("mode.continual", what, """set 'adapter' to "continue", or give the unquantized model""")
