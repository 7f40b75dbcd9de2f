"""The step of MoFO, as a torch optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from harness.utils.rounding import round_up_count


def largest_entries(tensor: torch.Tensor, fraction: float) -> torch.Tensor:
    """Return a mask of the entries with the largest absolute values.

    Args:
        tensor: any shape.
        fraction: fraction of the entries, in (0, 1], rounded up. Of equal values at the limit, some are chosen.

    Returns:
        booleans of the tensor's shape.
    """
    count = round_up_count(fraction, tensor.numel())
    mask = torch.zeros(tensor.numel(), dtype=torch.bool, device=tensor.device)
    mask[tensor.abs().flatten().topk(count, sorted=False).indices] = True
    return mask.view(tensor.shape)


class MofoStep(torch.optim.Optimizer):
    """Algorithm 1 of arXiv:2407.20999, each tensor being one part.

    With gradient g, step t, learning rate r and weight decay d::

        m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2
        u <- m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)
        w <- w (1 - r d) - r u     where |m| is among the largest of the tensor; other weights keep their value

    The paper has no weight decay. Here it acts on the weights that move, so others do not change by one bit.
    """

    def __init__(
        self,
        params: Sequence[dict[str, Any]],
        lr: float,
        fraction: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        super().__init__(params, {"lr": lr, "fraction": fraction, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Change the weights. closure: computes the loss again; None: its gradients are there already."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)
        return loss

    def _update(self, weight: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = 0
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        state["step"] += 1
        rate, (beta1, beta2) = group["lr"], group["betas"]
        momentum, square = state["exp_avg"], state["exp_avg_sq"]
        momentum.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = (square / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
        change = (momentum / root).mul_(rate / (1 - beta1 ** state["step"]))
        change.add_(weight, alpha=rate * group["weight_decay"])
        weight.sub_(change.masked_fill_(~largest_entries(momentum, group["fraction"]), 0.0))
