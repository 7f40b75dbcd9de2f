"""The cache of the base model's measurements, so that the runs of one base model and suite measure it once.

An entry holds one measurement of one suite, such as its answers. Its key is a digest of everything that the numbers
depend on: weights, tokenizer, template, the exact model inputs, settings, batches, arithmetic, versions, instruction
set, number of threads, and the code of harness. So a run gets the numbers that it would measure itself on this machine.

`HARNESS_EVALUATION_CACHE=0` switches it off. The least recently used entries beyond `MAX_CACHE_BYTES` are removed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from harness.evaluation.fingerprint import ABSENT, json_digest
from harness.model.device import uses_tf32
from harness.utils.atomic_write import atomic_write
from harness.utils.cache_dir import cache_root
from harness.utils.json_depth import load_json

SWITCH = "HARNESS_EVALUATION_CACHE"
"""Environment variable that switches the cache off with the value 0."""

MAX_CACHE_BYTES = 1 << 30
"""Maximum size of the cache in bytes."""


def cache_folder() -> Path:
    """Return the folder of the entries, which may not exist yet."""
    return cache_root() / "evaluations"


def measurement_key(
    stage: int,
    fingerprint: Mapping[str, str],
    requirement: str,
    settings: Mapping[str, Any],
    request_keys: Sequence[str],
    batches: Sequence[Any],
) -> str | None:
    """Return the key of a measurement; None if it is not cached.

    Args:
        stage: Index of the stage; only the base model, 0, is cached.
        fingerprint: Of model, tokenizer and template.
        requirement: `Metric.requires`.
        settings: Of the measurement.
        request_keys: Digest of the model input of each item, in the order of the suite.
        batches: How items are put into batches, on which the last digits depend, as plain JSON types.
    """
    is_base = stage == 0 and fingerprint.get("adapter") == ABSENT and fingerprint.get("model") != ABSENT
    if not is_base or os.environ.get(SWITCH) == "0":
        return None
    return json_digest(
        [dict(fingerprint), _arithmetic(), requirement, dict(settings), list(request_keys), list(batches)]
    )


def load_measurement(key: str, count: int) -> list[dict[str, Any]] | None:
    """Return the fields of each item, and mark the entry as the most recently used; None if there is no valid entry.

    Args:
        key: See `measurement_key`.
        count: Number of items.
    """
    path = cache_folder() / f"{key}.json"
    try:
        entry = load_json(path.read_text(encoding="utf-8"))
        fields: list[dict[str, Any]] = entry["items"]
        is_valid = entry["sha256"] == json_digest(fields) and len(fields) == count
    except (OSError, ValueError, KeyError, TypeError):
        return None
    with contextlib.suppress(OSError):  # the cache may be read-only
        os.utime(path)
    return fields if is_valid else None


def save_measurement(key: str, fields: Sequence[Mapping[str, Any]]) -> None:
    """Save the fields of each item. Without a writable cache nothing is saved: the next run measures again."""
    path = cache_folder() / f"{key}.json"
    items = json.loads(json.dumps(list(fields)))
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as draft:
            draft.write_text(json.dumps({"sha256": json_digest(items), "items": items}), encoding="utf-8")
        _remove_oldest(path.parent)


def _remove_oldest(folder: Path) -> None:
    """Remove the least recently used entries beyond `MAX_CACHE_BYTES`."""
    entries = sorted(((file.stat(), file) for file in folder.glob("*.json")), key=lambda pair: -pair[0].st_mtime)
    size = 0
    for status, file in entries:
        size += status.st_size
        if size > MAX_CACHE_BYTES:
            file.unlink(missing_ok=True)


def _arithmetic() -> list[str]:
    """Return what the last digits of a result depend on besides the model."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    instructions = torch.backends.cpu.get_cpu_capability()
    return [
        torch.__version__, transformers.__version__, device, instructions, str(torch.get_num_threads()), _code_digest(),
        *(["tf32"] if uses_tf32() else []),
    ]  # fmt: skip


@functools.cache
def _code_digest() -> str:
    """Return the SHA-256 of the code that measures, so that a changed version of harness measures again."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for name in ("evaluation", "model"):
        for file in sorted((package / name).glob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()
