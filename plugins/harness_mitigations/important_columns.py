"""The columns of linear layers that some rows use most: the importance of SSU (arXiv:2512.04844), from Wanda's.

Column j of a weight multiplies input j. Its importance is |x_j| |W_j|, the product of two Euclidean norms: that of
input j over all tokens of the rows, and that of the column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from harness.training.loss import model_inputs
from harness.types import TokenizedExample
from harness.utils.rounding import round_up_count
from harness_mitigations import base_model
from harness_mitigations.linear_layers import find_linear_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH_SIZE = 8
"""Rows of one forward pass."""


def input_dimension(layer: nn.Module) -> int:
    """Return the dimension of a linear layer's weight that belongs to its inputs: 0 of GPT-2's `Conv1D`, else 1."""
    return 0 if isinstance(layer, Conv1D) else 1


@torch.no_grad()
def squared_input_norms(
    model: PreTrainedModel, layers: Mapping[str, nn.Module], rows: Sequence[TokenizedExample]
) -> dict[str, Tensor]:
    """Return the sum of x_j^2 over the tokens of the rows, prompts included, for each input j of linear layers.

    The model is in evaluation mode meanwhile. Padding is excluded.

    Args:
        model: the model that contains the layers.
        layers: linear layers by name.
        rows: rows of any length.

    Returns:
        Name -> (k,) float64 on the CPU. Layers that did not run, such as experts that no token chose, are left out.
    """
    sums: dict[str, Tensor] = {}
    is_token: Tensor | None = None  # (B, T)

    def add(name: str, x: Tensor) -> None:
        inputs = x[is_token] if is_token is not None and x.shape[:-1] == is_token.shape else x
        squares = inputs.float().square().sum(dim=tuple(range(inputs.dim() - 1))).double().cpu()  # (k,)
        sums[name] = sums.get(name, 0) + squares

    def create_hook(name: str) -> Any:
        return lambda module, inputs: add(name, inputs[0])

    handles = [layer.register_forward_pre_hook(create_hook(name)) for name, layer in layers.items()]
    try:
        with base_model.eval_mode(model):
            for start in range(0, len(rows), BATCH_SIZE):
                batch = base_model.collate_rows(model, rows[start : start + BATCH_SIZE])
                is_token = batch["attention_mask"].bool() if "attention_mask" in batch else None
                model(**model_inputs(batch), logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    return sums


def most_important_columns(weight: Tensor, squared_norms: Tensor, fraction: float, dimension: int = 1) -> Tensor:
    """Return the indices of the columns with the largest |x_j| |W_j|, ascending, int64 on the weight's device.

    Args:
        weight: W, (d, k), or (k, d) with `dimension` 0.
        squared_norms: x_j^2 summed over the tokens, (k,).
        fraction: fraction of the columns, in (0, 1), rounded up.
        dimension: that of the inputs in `weight`.
    """
    squares = weight.detach().float().square().sum(dim=1 - dimension)  # (k,)
    importance = squares * squared_norms.to(squares)
    return importance.topk(round_up_count(fraction, len(importance))).indices.sort().values


def find_important_columns(
    model: PreTrainedModel, rows: Sequence[TokenizedExample], fraction: float, excluded: Sequence[nn.Parameter]
) -> dict[str, Tensor]:
    """Return the most important columns of the linear layers, without the output head, by name of the weight.

    Args:
        model: a model without an adapter.
        rows: rows whose inputs are measured.
        fraction: see `most_important_columns`.
        excluded: weights to leave out.
    """
    excluded_ids = {id(weight) for weight in excluded}
    layers = {name: layer for name, layer in find_linear_layers(model).items() if id(layer.weight) not in excluded_ids}
    return {
        f"{name}.weight": most_important_columns(
            layers[name].weight, squared_norms, fraction, input_dimension(layers[name])
        )
        for name, squared_norms in squared_input_norms(model, layers, rows).items()
    }
