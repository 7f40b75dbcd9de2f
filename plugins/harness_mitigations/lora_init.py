"""What an adapter's A and B can start from: functions of a weight alone, or of a weight and the inputs it gets.

Each takes a weight W of shape (d, k) and gives A of shape (rank, k) and B of shape (d, rank), float32, so that the
adapter's first change is s B A. rank: at most min(d, k). What s B A is of W differs:
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
"""Added to a covariance's diagonal, as a share of the diagonal's mean, so that it can be inverted."""

BATCH_SIZE = 8
"""Rows of one forward pass."""

FactorPair = tuple[Tensor, Tensor]


def pissa_factors(weight: Tensor, rank: int, scaling: float) -> FactorPair:
    """The principal part: s B A is the best approximation of W of this rank (PiSSA, arXiv:2404.02948)."""
    u, sigma, v = torch.linalg.svd(weight.detach().float(), full_matrices=False)
    root = (sigma[:rank] / scaling).sqrt()
    return root[:, None] * v[:rank], u[:, :rank] * root


def olora_factors(weight: Tensor, rank: int) -> FactorPair:
    """The first columns of Q and rows of R in W = Q R: B has orthonormal columns (OLoRA, arXiv:2406.01775)."""
    q, r = torch.linalg.qr(weight.detach().float())
    return r[:rank].contiguous(), q[:, :rank].contiguous()


def corda_factors(weight: Tensor, covariance: Tensor, rank: int, scaling: float) -> FactorPair:
    """The part that some inputs use least: CorDA in its knowledge-preserving form (arXiv:2406.05223).

    covariance: C of shape (k, k), of the inputs that are to keep their outputs. W C = U S V^T is decomposed, and
    s B A holds the components of the smallest S in W = U S (V^T C^-1). Each is split evenly between A and B, as PiSSA
    does; the paper's split, sqrt(S) on each side, depends on the scale of C, the product does not.
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
    """For each linear layer the mean of x x^T over its inputs at the tokens of the rows, float32, prompts included.

    layers: by name, within `model`, which is in evaluation mode meanwhile. Padding takes no part. Layers that get the
    very same input share one tensor, which is not to be changed. Costs 4 k^2 bytes an input of width k.
    """
    device = next(model.parameters()).device
    pad = model.config.pad_token_id or 0
    was_training = model.training
    model.eval()
    try:
        with _collecting_inputs(layers) as watch:
            for start in range(0, len(rows), BATCH_SIZE):
                part = rows[start : start + BATCH_SIZE]
                batch = Collator(part, [(i,) for i in range(len(part))], pad)(range(len(part)))
                watch.is_token = batch["attention_mask"].bool().to(device)
                inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
                model(**inputs, use_cache=False, logits_to_keep=1)
                watch.seen.clear()
    finally:
        model.train(was_training)
    tokens = sum(len(row.input_ids) for row in rows)
    means = {leader: total / tokens for leader, total in watch.sums.items()}
    return {name: means[watch.first_layer_with_input[name]] for name in layers}


class _CovarianceCollector:
    """What the hooks of `input_covariances` share.

    seen: id of an input of this batch -> (the input, the first to get it).
    """

    def __init__(self) -> None:
        self.is_token: Any = None
        self.seen: dict[int, tuple[Tensor, str]] = {}
        self.first_layer_with_input: dict[str, str] = {}
        self.sums: dict[str, Tensor] = {}

    def add(self, name: str, x: Tensor) -> None:
        leader = self.seen.setdefault(id(x), (x, name))[1]
        self.first_layer_with_input[name] = leader
        if leader == name:
            real = x[self.is_token].float()  # (N, k)
            self.sums[name] = self.sums.get(name, 0) + real.T @ real


@contextmanager
def _collecting_inputs(layers: Mapping[str, nn.Module]) -> Iterator[_CovarianceCollector]:
    watch = _CovarianceCollector()
    handles = [
        layer.register_forward_pre_hook(lambda module, inputs, name=name: watch.add(name, inputs[0]))
        for name, layer in layers.items()
    ]
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()
