"""Steps of an optimizer on weights in bfloat16: `train.weights`.

A step is often smaller than half the distance of two numbers of bfloat16. Rounded to the nearest one it would be lost.
A copy of all weights in float32 would need the memory that bfloat16 saves. Here each weight is copied to float32 for
its own step alone. The result is rounded up or down at random; the probability of a neighbor is the distance to the
other one (stochastic rounding, arXiv:1502.02551; for language models arXiv:2010.06192). So the mean is exact:

    weight (bfloat16) ─> float32 ─ step with the state in float32 ─> float32 ─ rounded at random ─> weight (bfloat16)

The random numbers follow from the seed and the number of steps, so a resumed stage continues bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness import seeding

STEPS_KEY = "rounded_steps"
"""Key of the first group: the number of steps so far."""

BuildOptimizer = Callable[[Sequence[dict[str, Any]]], torch.optim.Optimizer]
"""Builds an optimizer for groups of weights."""


def round_at_random(values: Tensor, generator: torch.Generator) -> Tensor:
    """Return finite float32 values in bfloat16, each rounded to one of its neighbors; its mean is the value.

    A number of bfloat16 has the upper 16 bits of a float32. A random number below 2^16 carries into them with the
    probability that the lower bits say.
    """
    noise = torch.randint(0, 1 << 16, values.shape, dtype=torch.int32, device=values.device, generator=generator)
    bits = noise.add_(values.contiguous().view(torch.int32)).bitwise_and_(-(1 << 16))
    return bits.view(torch.float32).bfloat16()


class RoundedOptimizer(torch.optim.Optimizer):
    """An optimizer whose weights in bfloat16 are rounded at random; others are trained as they are.

    The state of the optimizer is in float32.
    """

    def __init__(self, build: BuildOptimizer, param_groups: Sequence[dict[str, Any]], seed: int) -> None:
        """Build the optimizer for float32 copies of the weights, which exist during their own step only.

        Args:
            build: Builds it. The step of a weight must depend on that weight alone.
            param_groups: Groups of weights as torch takes them.
            seed: Of the rounding.
        """
        self._seed = seed
        self._copies: dict[nn.Parameter, nn.Parameter] = {
            weight: nn.Parameter(torch.empty(0, device=weight.device))
            for group in param_groups
            for weight in group["params"]
            if weight.dtype == torch.bfloat16
        }
        weights = {copy: weight for weight, copy in self._copies.items()}
        self._inner = build(
            [
                {**group, "params": [self._copies.get(weight, weight) for weight in group["params"]]}
                for group in param_groups
            ]
        )
        groups = [
            {**group, "params": [weights.get(weight, weight) for weight in group["params"]]}
            for group in self._inner.param_groups
        ]
        super().__init__(groups, dict(self._inner.defaults))
        self.param_groups[0].setdefault(STEPS_KEY, 0)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Change the weights. closure: computes the loss again; None: its gradients are there already."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        generators: dict[torch.device, torch.Generator] = {}
        seed = seeding.derive_seed(self._seed, "rounding", self.param_groups[0][STEPS_KEY])
        for group in self.param_groups:
            trained = [weight for weight in group["params"] if weight.grad is not None]
            others = [weight for weight in trained if weight not in self._copies]
            self._step_inner(group, others)
            self.state.update({weight: self._inner.state[weight] for weight in others})
            for weight in trained:
                if weight in self._copies:
                    device = weight.device
                    if device not in generators:
                        generators[device] = torch.Generator(device).manual_seed(seed)
                    self._step_rounded(group, weight, generators[device])
        self.param_groups[0][STEPS_KEY] += 1
        return loss

    def _step_rounded(self, group: Mapping[str, Any], weight: nn.Parameter, generator: torch.Generator) -> None:
        copy = self._copies[weight]
        copy.data, copy.grad = weight.data.float(), weight.grad.float()  # type: ignore[union-attr]
        self._step_inner(group, [copy])
        weight.copy_(round_at_random(copy.data, generator))
        self.state[weight] = self._inner.state[copy]
        copy.data, copy.grad = torch.empty(0, device=weight.device), None

    def _step_inner(self, group: Mapping[str, Any], weights: list[nn.Parameter]) -> None:
        if not weights:
            return
        self._inner.param_groups = [{**group, "params": weights}]
        self._inner.step()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state. torch would convert that of a weight in bfloat16 to the dtype of the weight."""
        super().load_state_dict(dict(state_dict))
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for index, values in state_dict["state"].items():
            weight = weights[index]
            loaded = self.state[weight]
            for name, value in values.items():
                if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != loaded[name].dtype:
                    loaded[name] = value.to(loaded[name].device, copy=True)
            self._inner.state[self._copies.get(weight, weight)] = loaded
