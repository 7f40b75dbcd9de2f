"""How fast this CPU multiplies bfloat16 matrices, relative to float32: some have units for it, others emulate it.

The ratio is measured once for a CPU, a version of torch and a number of threads, in milliseconds, and cached. Reading
the cache imports no torch. The environment variable `HARNESS_BFLOAT16_RATIO` replaces the measurement.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path

from harness.errors import HarnessError
from harness.model.accelerator import may_have_cuda
from harness.model.matrix_speed import SIZE, seconds_of_product
from harness.utils import cache_dir
from harness.utils.atomic_write import atomic_write
from harness.utils.json_depth import load_json

MIN_RATIO = 1.5
"""The ratio from which bfloat16 is recommended."""

PROBE_SIZE = 64
"""Rows and columns of the first matrices: they end the measurement on a CPU that emulates bfloat16."""


def bfloat16_recommendation(precision: str) -> str | None:
    """Return the advice to set `train.precision` to bfloat16 on this CPU; None if float32 is as fast or not chosen.

    Measures only where torch is loaded already, else reads the cache.

    Args:
        precision: The spec's `train.precision`.
    """
    if precision != "auto" or may_have_cuda():
        return None
    ratio = bfloat16_ratio()
    if ratio is None or ratio < MIN_RATIO:
        return None
    return (
        f'this CPU multiplies bfloat16 matrices {ratio:.1f} times as fast as float32: train.precision "bfloat16" would '
        'train faster; "auto" is float32 on a CPU, so that its numbers do not depend on the machine'
    )


def bfloat16_ratio() -> float | None:
    """Return the speed of bfloat16 relative to float32, from the cache or measured; None if it is not known."""
    if configured := os.environ.get("HARNESS_BFLOAT16_RATIO"):
        try:
            return float(configured)
        except ValueError:
            what = f"'{configured}' is not a number"
            raise HarnessError("HARNESS_BFLOAT16_RATIO", what, "set it to 0 or unset it") from None
    file = cache_dir.cache_root() / "bfloat16-speed" / f"{_cpu_digest()}.json"
    with suppress(OSError, ValueError, TypeError, KeyError):
        return float(load_json(file.read_text())["ratio"])
    if "torch" not in sys.modules:
        return None
    ratio = measure_ratio()
    with suppress(OSError):  # a cache that cannot be written costs milliseconds
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as draft:
            draft.write_text(json.dumps({"ratio": ratio, "cpu": _cpu_name()}))
    return ratio


def measure_ratio() -> float:
    """Return the time of a float32 matrix product divided by that of a bfloat16 one, the best of a few each."""
    import torch

    ratio = 0.0
    with torch.no_grad():
        for size in (PROBE_SIZE, SIZE):
            matrix = torch.ones(size, size)
            ratio = seconds_of_product(matrix) / seconds_of_product(matrix.bfloat16())
            if ratio < MIN_RATIO / 3:
                break
    return ratio


def _cpu_digest() -> str:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS", str(count))
    text = f"{_cpu_name()} {importlib.metadata.version('torch')} {threads}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _cpu_name() -> str:
    """Return the model of the CPU with the flags that concern bfloat16, which a virtual machine may hide."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line for line in lines if line.startswith("model name")), platform.machine())
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
        return f"{name} {[flag for flag in flags.split() if 'bf16' in flag or 'amx' in flag]}"
    return platform.processor() or platform.machine()
