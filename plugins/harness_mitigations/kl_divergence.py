"""The divergence between two next-token distributions with its gradient in closed form.

The widest tensors of a small model are its logits, (tokens, vocabulary). Autograd would compute five exponentials of
them and store four tensors of their size. Here there are two exponentials, and one tensor is stored: the gradient.
"""

from __future__ import annotations

import math
from itertools import repeat
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Direction = Literal["forward", "reverse"]

CPU_BLOCK_SIZE = 2**18
"""Number of logits that are processed at once on a CPU: as many as its cache holds with all temporaries."""


def token_divergence(
    logits: Tensor, base_logits: Tensor, direction: Direction, temperature: float, dropped: Tensor | None
) -> Tensor:
    """Return the divergence at each position, (N,); see `harness_mitigations.kl.token_kl`."""
    divergence: Tensor = _TokenKl.apply(  # type: ignore[no-untyped-call]
        logits, base_logits, direction, temperature, dropped
    )
    return divergence


class _TokenKl(torch.autograd.Function):
    """The divergence of logits z from base logits b, both divided by tau, times tau^2."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        base_logits: Tensor,
        direction: Direction,
        temperature: float,
        dropped: Tensor | None,
    ) -> Tensor:
        rows = len(logits) or 1
        if logits.device.type == "cpu":
            rows = max(1, CPU_BLOCK_SIZE // logits.shape[1])
        gradient = torch.empty_like(logits)
        blocks = zip(logits.split(rows), base_logits.split(rows), gradient.split(rows), strict=True)
        dropped_blocks = repeat(None) if dropped is None else dropped.split(rows)
        values = [
            _write_gradient(*block, direction, temperature, dropped_block)
            for block, dropped_block in zip(blocks, dropped_blocks, strict=False)
        ]
        ctx.save_for_backward(gradient)
        return torch.cat(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * scale[:, None].to(gradient.dtype), None, None, None, None


def _write_gradient(
    logits: Tensor,
    base_logits: Tensor,
    gradient: Tensor,
    direction: Direction,
    temperature: float,
    dropped: Tensor | None,
) -> Tensor:
    """Return the divergences of some positions, (n,), and write their gradients by the logits, (n, V).

    With p = softmax(z), q = softmax(b) and d = log p - log q:

        forward  KL(q || p) = -sum q d     gradient by z: p - q
        reverse  KL(p || q) = sum p d      gradient by z: p (d - KL)

    A dropped token has p = q = 0, so it adds nothing to either, and its gradient is 0.
    """
    z, b = logits.float(), base_logits.float()
    if temperature != 1:
        z, b = z / temperature, b / temperature
    (p, normalizer), (q, base_normalizer) = _softmax(z, dropped), _softmax(b, dropped)
    difference = torch.sub(z, b).sub_(normalizer - base_normalizer)  # d, (n, V)
    if dropped is not None:
        difference.scatter_(-1, dropped[:, None], 0.0)  # it may be infinite, and infinity times p = 0 is not 0
    if direction == "forward":
        value = difference.mul_(q).sum(-1).neg_()
        torch.sub(p, q, out=p)
    else:
        value = (p * difference).sum(-1)
        p.mul_(difference.sub_(value[:, None]))
    gradient.copy_(p if temperature == 1 else p.mul_(temperature))  # tau^2 times the 1 / tau of z
    return value * temperature**2


def _softmax(logits: Tensor, dropped: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the probabilities, (n, V), and the log of the sum of the exponentials, (n, 1).

    Both are of the tokens without the dropped ones, (n,), whose logits therefore may be arbitrarily large.
    """
    if dropped is None:
        probabilities = logits.softmax(-1)
        # The largest probability is exp(largest logit - normalizer), and never close to 0.
        return probabilities, logits.amax(-1, keepdim=True) - probabilities.amax(-1, keepdim=True).log()
    # One tensor of the logits' size, as above: it becomes the probabilities in place.
    probabilities = logits.scatter(-1, dropped[:, None], -math.inf)
    largest = probabilities.amax(-1, keepdim=True)
    total = probabilities.sub_(largest).exp_().sum(-1, keepdim=True)  # at least 1
    return probabilities.div_(total), largest + total.log()
