"""The step of Lion, as a torch optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


class LionStep(torch.optim.Optimizer):
    """Algorithm 2 of arXiv:2302.06675.

    With gradient g, momentum m, learning rate r and weight decay d::

        w <- w (1 - r d) - r sign(b1 m + (1 - b1) g)
        m <- b2 m + (1 - b2) g
    """

    def __init__(self, params: Sequence[dict[str, Any]], lr: float, betas: tuple[float, float]) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Change the weights. closure: computes the loss again; None: its gradients are there already."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            rate, decay, (of_update, of_momentum) = group["lr"], group["weight_decay"], group["betas"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum = state["momentum"]
                update = torch.lerp(weight.grad, momentum, of_update).sign_()
                weight.mul_(1 - rate * decay).add_(update, alpha=-rate)
                momentum.lerp_(weight.grad, 1 - of_momentum)
        return loss
