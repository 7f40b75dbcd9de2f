"""How the next token is chosen: the likeliest, or drawn, each item by its own seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

Choose = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]
"""Logits (B, V) and the key of each row -> token ids (B,)."""


def likeliest(logits: torch.Tensor, keys: Sequence[int]) -> torch.Tensor:
    """The token of the highest logit in each row."""
    return logits.argmax(-1)


class Drawn:
    """Draws by temperature from the likeliest tokens that hold `top_p` of the probability (Holtzman et al., 2020,
    arXiv:1904.09751).

    seeds: by the keys of the rows. Each row has a generator of its own on the CPU, so what is drawn for it depends on
    neither the batch nor the device. Probabilities are taken in float64.
    """

    def __init__(self, temperature: float, top_p: float, seeds: Mapping[int, int]) -> None:
        self._temperature, self._top_p = temperature, top_p
        self._generators = {key: torch.Generator().manual_seed(seed) for key, seed in seeds.items()}

    def __call__(self, logits: torch.Tensor, keys: Sequence[int]) -> torch.Tensor:
        chances, tokens = (logits.double() / self._temperature).softmax(-1).sort(stable=True, dim=-1, descending=True)
        sums = chances.cumsum(-1)  # (B, V)
        # A token stays while those before it do not yet hold top_p: the likeliest always does.
        kept = (sums - chances) < self._top_p
        held = (chances * kept).sum(-1, keepdim=True)
        at = [torch.rand((), generator=self._generators[key], dtype=torch.float64) for key in keys]
        drawn = torch.stack(at).to(logits.device)[:, None] * held  # (B, 1)
        place = torch.searchsorted(sums, drawn, right=True).clamp(max=logits.shape[-1] - 1)
        last = kept.sum(-1, keepdim=True) - 1  # rounding must not lead out of what is kept
        return tokens.gather(-1, torch.minimum(place, last))[:, 0]
