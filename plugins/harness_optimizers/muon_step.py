"""torch's Muon and AdamW as one torch optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch


class MuonAndAdamW(torch.optim.Optimizer):
    """Groups with the key `matrix_key` are trained by `torch.optim.Muon`, all others by `torch.optim.AdamW`.

    Both work on the groups and states of this optimizer, so schedules and checkpoints see a single one.
    """

    def __init__(
        self,
        params: Sequence[dict[str, Any]],
        lr: float,
        matrix_key: str,
        muon: Mapping[str, Any],
        adamw: Mapping[str, Any],
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": 0.0})
        self._matrix_key = matrix_key
        self._options = {True: dict(muon), False: dict(adamw)}
        self._share()

    def _share(self) -> None:
        """Give both optimizers the groups and the state of this one."""
        of_muon = [group for group in self.param_groups if group.get(self._matrix_key)]
        of_adamw = [group for group in self.param_groups if not group.get(self._matrix_key)]
        self._optimizers: list[torch.optim.Optimizer] = []
        if of_muon:
            self._optimizers.append(torch.optim.Muon(of_muon, **self._options[True]))
        if of_adamw:
            self._optimizers.append(torch.optim.AdamW(of_adamw, **self._options[False], fused=True))
        for optimizer in self._optimizers:
            optimizer.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, and share it."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Change the weights. closure: computes the loss again; None: its gradients are there already."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self._optimizers:
            optimizer.step()
        return loss
