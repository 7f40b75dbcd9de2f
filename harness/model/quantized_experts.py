"""Experts with quantized weights: `model.quantization.bitsandbytes.experts`.

Transformers stacks the experts of a layer in weights of three dimensions. They are parameters of a module of experts
and not linear layers, which are all that bitsandbytes replaces. Here a parametrization of torch stores such a weight
quantized, and dequantizes it while the module computes:

    experts.gate_up_proj                               (E, 2 f, d)   exists during a pass of the module
    experts.parametrizations.gate_up_proj.original     (E f d, 1)    4 bits: two weights a byte
                                                       (2 E f, d)    8 bits: a scale for each row

The backward pass dequantizes again, as bitsandbytes' linear layers do. Gradient checkpointing computes it again anyway.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from harness.model.quantization_settings import quantizes_experts

BLOCK = 64
"""Weights in 4 bits that share a scale."""
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def expert_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the stacked weights of experts that are not quantized, by name, each of shape (E, k, d)."""
    return {
        f"{path}.{name}": weight
        for path, module in model.named_modules()
        if "expert" in f"{path}.{type(module).__name__}".lower() and not isinstance(module, _CONVOLUTIONS)
        for name, weight in module._parameters.items()
        if weight is not None and weight.dim() == 3 and min(weight.shape) > 1
    }


def expert_names(model: nn.Module) -> list[str]:
    """Return the names of all stacked weights of experts, quantized or not."""
    paths = {module: path for path, module in model.named_modules()}
    quantized = (
        f"{paths[module]}.{name}" for module in _quantized_modules(model) for name, _ in _quantized_weights(module)
    )
    return [*expert_weights(model), *quantized]


def largest_experts(model: nn.Module) -> int:
    """Return the largest number of weights that a module of unquantized experts has; 0 without experts."""
    sizes: dict[str, int] = {}
    for name, weight in expert_weights(model).items():
        path = name.rpartition(".")[0]
        sizes[path] = sizes.get(path, 0) + weight.numel()
    return max(sizes.values(), default=0)


def has_adapted_experts(model: nn.Module) -> bool:
    """Return whether an adapter is added to stacked weights of experts."""
    if not hasattr(model, "peft_config"):
        return False
    from peft.tuners.lora.layer import ParamWrapper

    return any(isinstance(module, ParamWrapper) for module in model.modules())


def dequantized_bytes(model: nn.Module) -> int:
    """Return the bytes of the dequantized weights of the largest module of experts, which exist while it computes.

    With an adapter on experts, twice as many: the gradient exists too.
    """
    sizes = (
        sum(value.shape.numel() * value.dtype.itemsize for _, value in _quantized_weights(module))
        for module in _quantized_modules(model)
    )
    return max(sizes, default=0) * (2 if has_adapted_experts(model) else 1)


def has_quantized_experts(model: nn.Module) -> bool:
    """Return whether a weight of experts is quantized."""
    return any(True for _ in _quantized_modules(model))


# -- quantize ---------------------------------------------------------------------------------------------------------


class _FourBits(nn.Module):
    """Dequantizes blocks of `BLOCK` weights in 4 bits."""

    def __init__(self, state: Any, shape: torch.Size) -> None:
        super().__init__()
        self.state = state
        self.shape, self.dtype = shape, state.dtype

    @torch.no_grad()
    def forward(self, quantized: Tensor) -> Tensor:
        from bitsandbytes import functional

        weight: Tensor = functional.dequantize_4bit(quantized, self.state)
        return weight.reshape(self.shape)


class _EightBits(nn.Module):
    """Dequantizes rows of weights in 8 bits, each with its scale."""

    def __init__(self, scales: Tensor, shape: torch.Size, dtype: torch.dtype) -> None:
        super().__init__()
        self.scales, self.shape, self.dtype = scales, shape, dtype

    @torch.no_grad()
    def forward(self, quantized: Tensor) -> Tensor:
        from bitsandbytes import functional

        weight: Tensor = functional.int8_vectorwise_dequant(quantized, self.scales)
        return weight.reshape(self.shape).to(self.dtype)


@torch.no_grad()
def _quantize(weight: Tensor, config: Any) -> tuple[Tensor, nn.Module]:
    """Return a quantized weight and what dequantizes it. config: transformers' `BitsAndBytesConfig`."""
    from bitsandbytes import functional

    if config.load_in_8bit:
        rows = weight.reshape(-1, weight.shape[-1]).half()  # bitsandbytes' linear layers are rounded alike
        quantized, scales, _ = functional.int8_vectorwise_quant(rows)
        return quantized, _EightBits(scales, weight.shape, weight.dtype)
    # Blocks as rows, or one row: with AVX-512, bitsandbytes 0.50.2 reads other rows wrong that end within a block.
    rows = weight.reshape(-1, BLOCK) if weight.numel() % BLOCK == 0 else weight.reshape(1, -1)
    quantized, state = functional.quantize_4bit(
        rows,
        blocksize=BLOCK,
        compress_statistics=config.bnb_4bit_use_double_quant,
        quant_type=config.bnb_4bit_quant_type,
    )
    return quantized, _FourBits(state, weight.shape)


def quantize_experts(model: nn.Module, config: Any) -> None:
    """Quantize the weights of the experts of a loaded model, in place.

    Args:
        model: A causal language model.
        config: The `BitsAndBytesConfig` that the model was loaded with.
    """
    for name, weight in expert_weights(model).items():
        path, _, name = name.rpartition(".")
        module = model.get_submodule(path)
        quantized, dequantization = _quantize(weight, config)
        setattr(module, name, nn.Parameter(quantized, requires_grad=False))
        _parametrize(module, name, dequantization)


def _parametrize(module: nn.Module, name: str, dequantization: nn.Module) -> None:
    """Let a weight that is stored quantized be dequantized when it is read."""
    parametrize.register_parametrization(module, name, dequantization, unsafe=True)
    module_class: Any = type(module)  # of this module alone
    if "forward" not in vars(module_class):
        module_class.forward = _dequantizing_forward(module_class)


@contextmanager
def quantized_while_loading(quantization: Mapping[str, Any] | None) -> Iterator[None]:
    """Within the context, `from_pretrained` quantizes each weight of experts as soon as it is read.

    The weights of all experts in 16 bits would need more memory than a device has for which they are quantized.

    Args:
        quantization: The spec's `model.quantization`.
    """
    if not quantizes_experts(quantization):
        yield
        return
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as QUANTIZERS

    originals = {name: QUANTIZERS[name] for name in ("bitsandbytes_4bit", "bitsandbytes_8bit")}
    QUANTIZERS.update({name: _quantizer_of_experts(original) for name, original in originals.items()})
    try:
        yield
    finally:
        QUANTIZERS.update(originals)


@cache
def _quantizer_of_experts(quantizer: Any) -> Any:
    """Return a class of transformers' quantizers that quantizes experts too."""
    from transformers.core_model_loading import ConversionOps

    class QuantizerOfExperts(quantizer):  # type: ignore[misc]
        def _process_model_before_weight_loading(self, model: Any, **options: Any) -> Any:
            self.names = tuple(expert_weights(model))
            self.dequantizations: dict[str, nn.Module] = {}
            return super()._process_model_before_weight_loading(model, **options)

        def param_needs_quantization(self, model: Any, param_name: str, **options: Any) -> bool:
            return param_name in self.names or bool(super().param_needs_quantization(model, param_name, **options))

        def get_quantize_ops(self) -> Any:
            return QuantizationOfExperts(self, super().get_quantize_ops())

        def _process_model_after_weight_loading(self, model: Any, **options: Any) -> Any:
            for full_name in self.names:  # in the order of the model, in which PEFT adds adapters
                path, _, name = full_name.rpartition(".")
                if full_name in self.dequantizations:
                    _parametrize(model.get_submodule(path), name, self.dequantizations[full_name])
            self.dequantizations = {}
            return super()._process_model_after_weight_loading(model, **options)

    class QuantizationOfExperts(ConversionOps):
        def __init__(self, quantizer: QuantizerOfExperts, of_linear_layers: Any) -> None:
            self.quantizer, self.of_linear_layers = quantizer, of_linear_layers

        def convert(  # type: ignore[override]
            self, input_dict: dict[str, Any], **options: Any
        ) -> dict[str, Any]:
            others, result = {}, {}
            for name, value in input_dict.items():
                if name not in self.quantizer.names:
                    others[name] = value
                    continue
                weight = value[0] if isinstance(value, list) else value
                quantized, dequantization = _quantize(weight, self.quantizer.quantization_config)
                self.quantizer.dequantizations[name] = dequantization
                result[name] = nn.Parameter(quantized, requires_grad=False)
            return {**result, **(self.of_linear_layers.convert(others, **options) if others else {})}

    return QuantizerOfExperts


def dequantize_experts(model: nn.Module) -> None:
    """Make the weights of experts ordinary parameters with the values that they compute with, in place."""
    for module in list(_quantized_modules(model)):
        for name, _ in list(_quantized_weights(module)):
            weight = getattr(module, name).detach()
            parametrize.remove_parametrizations(module, name, leave_parametrized=False)
            setattr(module, name, nn.Parameter(weight))


def _quantized_modules(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        if parametrize.is_parametrized(module) and any(True for _ in _quantized_weights(module)):
            yield module


def _quantized_weights(module: Any) -> Iterator[tuple[str, Any]]:
    """Yield the name of each quantized weight of a module, and what dequantizes it."""
    for name, parametrizations in module.parametrizations.items():
        if isinstance(parametrizations[0], _FourBits | _EightBits):
            yield name, parametrizations[0]


# -- compute ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _View:
    """A view of a dequantized weight, which autograd stores instead of its values.

    Attributes:
        parametrizations: Has the quantized weight.
        steps: What computes the weight from it: the dequantization, and an adapter.
        size: Of the view.
        stride: Of the view.
        offset: Of the view.
    """

    parametrizations: Any
    steps: tuple[nn.Module, ...]
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    @torch.no_grad()
    def compute(self) -> Tensor:
        weight: Tensor = self.parametrizations.original
        for step in self.steps:
            weight = step(weight)
        return weight.as_strided(self.size, self.stride, self.offset)


def _dequantizing_forward(parametrized_class: Any) -> Any:
    """Return the forward pass of a module of experts, which dequantizes each weight once.

    Args:
        parametrized_class: The class that torch made for this module when its first weight was parametrized.
    """

    def forward(self: Any, *arguments: Any, **options: Any) -> Any:
        with parametrize.cached():
            weights = {name: getattr(self, name) for name in self.parametrizations}
            with _views_stored(self, weights):
                return super(parametrized_class, self).forward(*arguments, **options)

    return forward


@contextmanager
def _views_stored(module: Any, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the context, autograd stores how to compute dequantized weights again, and not the weights.

    Nothing changes under gradient checkpointing, which stores nothing, or where activations are moved or measured.
    """
    if not torch.is_grad_enabled() or torch._C._autograd._top_saved_tensors_default_hooks(True):
        yield
        return
    sources = {
        weight.untyped_storage().data_ptr(): (module.parametrizations[name], tuple(module.parametrizations[name]))
        for name, weight in weights.items()
    }

    def pack(tensor: Tensor) -> Any:
        source = sources.get(tensor.untyped_storage().data_ptr())
        return tensor if source is None else _View(*source, tensor.shape, tensor.stride(), tensor.storage_offset())

    def unpack(stored: Any) -> Tensor:
        return stored.compute() if isinstance(stored, _View) else stored

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


# -- adapters ---------------------------------------------------------------------------------------------------------


@contextmanager
def experts_as_parameters(model: nn.Module) -> Iterator[None]:
    """Within the context, PEFT can add or load an adapter on quantized experts: it finds parameters without memory.

    Afterwards the adapters are added to the dequantized weights. PEFT's own way (0.21) does so only for the first
    weight of a module, and adds it again in each pass.

    Args:
        model: A causal language model, before its adapter is added.
    """
    removed = []
    for module in list(_quantized_modules(model)):
        for name, dequantization in list(_quantized_weights(module)):
            parametrize.remove_parametrizations(module, name, leave_parametrized=False)
            quantized = getattr(module, name)
            removed.append((module, name, quantized, dequantization))
            setattr(module, name, _stand_in(dequantization, quantized.device))
    try:
        yield
    finally:
        for module, name, quantized, dequantization in removed:
            setattr(module, name, quantized)
            _parametrize(module, name, dequantization)
    if removed:
        _correct_adapters(model)


def _stand_in(dequantization: Any, device: torch.device) -> nn.Parameter:
    """Return a parameter of the shape, dtype and device of a dequantized weight that takes no memory."""
    value = torch.zeros((), dtype=dequantization.dtype, device=device).expand(dequantization.shape)
    return nn.Parameter(value, requires_grad=False)


def _correct_adapters(model: nn.Module) -> None:
    """Replace PEFT's way to add an adapter to a parametrized weight."""
    from peft.tuners.lora.layer import ParamWrapper

    for module in model.modules():
        if type(module) is ParamWrapper and parametrize.is_parametrized(module.get_base_layer(), module.parameter_name):
            module.__class__ = _adapter_of_experts()


class _AddedProducts(nn.Module):
    """Adds the product of two factors to the weight of each expert, in the dtype of the weight."""

    def __init__(self, left: Tensor, right: Tensor, scaling: float) -> None:
        super().__init__()
        self.left, self.right, self.scaling = left, right, scaling  # (E, k, r), (E, r, d)

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            return torch.baddbmm(weight, self.left, self.right, alpha=self.scaling)


@cache
def _adapter_of_experts() -> Any:
    from peft.tuners.lora.layer import ParamWrapper

    class AdapterOfExperts(ParamWrapper):
        """The adapter of a quantized weight of experts."""

        def get_param(self) -> nn.Parameter:
            """Return what has the shape, dtype and device of the weight, for which it is not dequantized."""
            experts: Any = self.get_base_layer()
            parametrizations = experts.parametrizations[self.parameter_name]
            return _stand_in(parametrizations[0], parametrizations.original.device)

        @contextmanager
        def _activate_lora(self, active_adapters: list[str]) -> Iterator[None]:
            experts: Any = self.get_base_layer()
            parametrizations = experts.parametrizations[self.parameter_name]
            wrapper: Any = self
            for adapter in active_adapters:
                if adapter in self.lora_A:
                    parametrizations.append(_AddedProducts(*wrapper.get_delta_factors(adapter)))
            try:
                yield
            finally:
                del parametrizations[1:]

    return AdapterOfExperts
