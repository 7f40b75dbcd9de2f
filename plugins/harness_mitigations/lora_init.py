"""Initializations of an adapter's A and B, from a weight alone or from a weight and the inputs of its layer.

Each function takes a weight W of shape (d, k) and returns A of shape (rank, k) and B of shape (d, rank), float32, with
rank at most min(d, k). They differ in the part of W that s B A is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.training.collator import Collator
from harness.types import TokenizedExample

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COVARIANCE_DAMPING = 0.01
"""Added to a covariance's diagonal, as a fraction of the diagonal's mean, so that it can be inverted."""

BATCH_SIZE = 8
"""Rows of one forward pass."""

FactorPair = tuple[Tensor, Tensor]


def pissa_factors(weight: Tensor, rank: int, scaling: float) -> FactorPair:
    """Return the principal part: s B A is the best approximation of W of this rank (PiSSA, arXiv:2404.02948).

    Args:
        weight: W, (d, k).
        rank: rank of the adapter.
        scaling: s.
    """
    u, sigma, v = torch.linalg.svd(weight.detach().float(), full_matrices=False)
    root = (sigma[:rank] / scaling).sqrt()
    return root[:, None] * v[:rank], u[:, :rank] * root


def olora_factors(weight: Tensor, rank: int) -> FactorPair:
    """Return the first rows of R and columns of Q in W = Q R: B has orthonormal columns (OLoRA, arXiv:2406.01775)."""
    q, r = torch.linalg.qr(weight.detach().float())
    return r[:rank].contiguous(), q[:, :rank].contiguous()


def corda_factors(weight: Tensor, covariance: Tensor, rank: int, scaling: float) -> FactorPair:
    """Return the part that some inputs use least: CorDA in its knowledge-preserving form (arXiv:2406.05223).

    W C = U S V^T is decomposed; s B A consists of the components of the smallest S in W = U S (V^T C^-1). Each is split
    equally between A and B, as in PiSSA. The paper's split, sqrt(S) on each side, depends on the scale of C; the
    product does not.

    Args:
        weight: W, (d, k).
        covariance: C, (k, k), of the inputs that are to keep their outputs.
        rank: rank of the adapter.
        scaling: s.
    """
    c = covariance.double()
    c = c + COVARIANCE_DAMPING * c.diagonal().mean() * torch.eye(len(c), dtype=c.dtype, device=c.device)
    u, sigma, v = torch.linalg.svd(weight.detach().double() @ c, full_matrices=False)
    u, sigma, v = u[:, -rank:], sigma[-rank:], torch.linalg.solve(c, v[-rank:].T).T  # C is symmetric
    lengths = v.norm(dim=1).clamp(min=torch.finfo(v.dtype).tiny)
    root = (sigma * lengths / scaling).sqrt()
    return ((root / lengths)[:, None] * v).float(), (u * root).float()


@torch.no_grad()
def input_covariances(
    model: PreTrainedModel, layers: Mapping[str, nn.Module], rows: Sequence[TokenizedExample]
) -> dict[str, Tensor]:
    """Compute the mean of x x^T over the inputs of linear layers at the tokens of the rows, prompts included.

    The model is in evaluation mode meanwhile. Padding is excluded. Takes 4 k^2 bytes for each input of width k.

    Args:
        model: the model that contains the layers.
        layers: linear layers by name.
        rows: rows of any length.

    Returns:
        Name -> (k, k) float32. Layers with the same input share one tensor; do not change it.
    """
    device = next(model.parameters()).device
    pad_id = model.config.pad_token_id or 0
    was_training = model.training
    model.eval()
    try:
        with _collecting_inputs(layers) as collector:
            for start in range(0, len(rows), BATCH_SIZE):
                batch_rows = rows[start : start + BATCH_SIZE]
                batch = Collator(batch_rows, [(i,) for i in range(len(batch_rows))], pad_id)(range(len(batch_rows)))
                collector.is_token = batch["attention_mask"].bool().to(device)  # (B, T)
                inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
                model(**inputs, use_cache=False, logits_to_keep=1)
                collector.inputs_of_batch.clear()
    finally:
        model.train(was_training)
    token_count = sum(len(row.input_ids) for row in rows)
    means = {first_layer: total / token_count for first_layer, total in collector.sums.items()}
    return {name: means[collector.first_layer_with_input[name]] for name in layers}


class _CovarianceCollector:
    """Sums of x x^T, filled by hooks on the layers.

    Attributes:
        is_token: (B, T), true where the current batch has a token and no padding.
        inputs_of_batch: id of an input of the current batch -> the input, and the first layer that received it.
        first_layer_with_input: layer -> the first layer with the same input.
        sums: first layer -> (k, k).
    """

    def __init__(self) -> None:
        self.is_token: Any = None
        self.inputs_of_batch: dict[int, tuple[Tensor, str]] = {}
        self.first_layer_with_input: dict[str, str] = {}
        self.sums: dict[str, Tensor] = {}

    def add(self, name: str, x: Tensor) -> None:
        first_layer = self.inputs_of_batch.setdefault(id(x), (x, name))[1]
        self.first_layer_with_input[name] = first_layer
        if first_layer == name:
            token_inputs = x[self.is_token].float()  # (N, k)
            self.sums[name] = self.sums.get(name, 0) + token_inputs.T @ token_inputs


@contextmanager
def _collecting_inputs(layers: Mapping[str, nn.Module]) -> Iterator[_CovarianceCollector]:
    collector = _CovarianceCollector()
    handles = [
        layer.register_forward_pre_hook(lambda module, inputs, name=name: collector.add(name, inputs[0]))
        for name, layer in layers.items()
    ]
    try:
        yield collector
    finally:
        for handle in handles:
            handle.remove()
