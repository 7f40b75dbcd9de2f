"""Derive seeds: every random choice draws its seed from the spec's seed and its own purpose."""

from __future__ import annotations

import hashlib
import random


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Return a seed in [0, 2**32) for one purpose, e.g. `derive_seed(0, "order", "stage-1", 2)`.

    The result is the same on every machine.
    """
    text = "/".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def create_generator(seed: int, *purpose: str | int) -> random.Random:
    """Return a separate generator for one purpose; using it does not affect any other."""
    return random.Random(derive_seed(seed, *purpose))


def seed_mitigations(seed: int) -> int:
    """Derive the seed of what mitigations draw outside of `train_stage`, and seed Python, numpy and torch with it.

    Examples are initial adapters and the labels of a Fisher.

    Args:
        seed: The spec's seed, or the stage's.

    Returns:
        The seed for `Mitigation.prepare_model` and `Mitigation.on_stage_start`.
    """
    from transformers import set_seed

    mitigation_seed = derive_seed(seed, "mitigations")
    set_seed(mitigation_seed)
    return mitigation_seed
