"""Limits of memory that plan and training share. Imports nothing."""

from __future__ import annotations

MAX_LOGIT_BYTES = 2**25
"""Size of the logits of one chunk in float32. Softmax and gradient take as much again, each."""

USABLE_SHARE = 0.85
"""The share of the available memory that a stage may be estimated to need, since estimates and allocators err."""
