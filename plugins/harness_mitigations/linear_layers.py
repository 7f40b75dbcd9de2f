"""The layers of a model that adapters are for: linear ones.

Two kinds of layers look alike and are not: routers, which are linear layers by type but return more than a product, and
fused experts, to whose stacked weights peft adds an adapter as if each were a linear layer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from harness.errors import HarnessError
from harness.model import frozen_lora
from harness.model.precision import loaded_autocast_context

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MAMBA_KERNEL_LAYERS = ("conv1d", "dt_proj", "out_proj", "x_proj")
"""Layers whose weights Mamba's kernels read directly, so that an adapter on them has no effect. peft refuses some."""


def is_target(path: str, targets: str | Sequence[str]) -> bool:
    """Return whether peft matches the path of a module with one of the names, or with a regular expression."""
    if isinstance(targets, str):
        return re.fullmatch(targets, path) is not None
    return any(path == target or path.endswith(f".{target}") for target in targets)


def find_linear_layers(model: PreTrainedModel) -> dict[str, Any]:
    """Return the linear layers, `torch.nn.Linear` and GPT-2's `Conv1D`, by path, without the output head."""
    head = model.get_output_embeddings()
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }


def adaptable_names(model: PreTrainedModel) -> list[str]:
    """Return the last names of the linear layers on which an adapter has an effect."""
    return sorted({path.split(".")[-1] for path in find_linear_layers(model)} - set(_MAMBA_KERNEL_LAYERS))


def find_irregular_linear_layers(model: PreTrainedModel) -> list[str]:
    """Return the paths of linear layers that do not return a tensor of their number of outputs, such as routers.

    Runs the model on two tokens. Layers that do not run are regular. A model on the meta device, of a plan, cannot run:
    all its layers count as regular.
    """
    if next(model.parameters()).is_meta:
        return []
    irregular = set()

    def check_output(path: str, layer: Any, output: Any) -> None:
        width = layer.nf if isinstance(layer, Conv1D) else layer.out_features
        if not isinstance(output, torch.Tensor) or output.shape[-1] != width:
            irregular.add(path)

    handles = [
        layer.register_forward_hook(lambda module, _, output, path=path: check_output(path, module, output))
        for path, layer in find_linear_layers(model).items()
    ]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), loaded_autocast_context(model):
            model(input_ids=torch.ones(1, 2, dtype=torch.long, device=next(model.parameters()).device), use_cache=False)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return sorted(irregular)


def require_linear_adapters(where: str, model: nn.Module) -> None:
    """Reject LoRA adapters on fused experts, embeddings and convolutions.

    Args:
        where: the spec key that needs linear layers.
        model: a model with or without a LoRA adapter.

    Raises:
        HarnessError: a layer with an adapter is not a linear one. The hint has the names of those that are.
    """
    layers = frozen_lora.lora_layers(model)
    others = [path for path, layer in layers.items() if not frozen_lora.is_linear(layer)]
    if not others:
        return
    # peft reads the names of linear layers next to fused experts as names of the experts
    blocks = tuple(f"{path.rpartition('.experts')[0]}." for path in others if ".experts" in path)
    linear = [path for path in layers if path not in others and not (blocks and path.startswith(blocks))]
    names = sorted({path.split(".")[-1] for path in linear})
    kind = type(layers[others[0]].get_base_layer()).__name__
    what = f"it needs adapters on linear layers only, but {others[0].removeprefix('base_model.model.')} is a {kind}"
    own = where.removeprefix("mitigations.").split(".")[0]
    mitigation = own if own in ("orthogonal_lora", "merged_lora") else "lora"
    hint = f"set mitigations.{mitigation}.target to {json.dumps(names)}" if names else "adapt linear layers only"
    raise HarnessError(where, what, hint)


def reject_conv1d(name: str, model: PreTrainedModel, targets: str | Sequence[str]) -> None:
    """Reject an adapter of a mitigation that does not support `Conv1D`, which stores the transposed weight.

    Args:
        name: the mitigation.
        model: the model without an adapter.
        targets: "all-linear", a regular expression, or the names of modules.

    Raises:
        HarnessError: one of the modules is a `Conv1D`.
    """
    for path, layer in find_linear_layers(model).items():
        if isinstance(layer, Conv1D) and (targets == "all-linear" or is_target(path, targets)):
            what = f"the layer {path} is a Conv1D, which '{name}' does not support"
            raise HarnessError(f"mitigations.{name}", what, f"replace '{name}' by 'lora' or 'orthogonal_lora'")
