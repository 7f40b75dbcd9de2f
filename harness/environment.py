"""What a run was made with: package versions, device, git state. Knows nothing of specs."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from harness.registry import OURS, Registry

PACKAGES = (
    "torch", "transformers", "trl", "peft", "accelerate", "datasets", "evaluate", "tokenizers", "safetensors",
    "sacrebleu", "rouge-score", "mlflow", "numpy", "pluggy", "jsonschema",
)  # fmt: skip


def describe(registry: Registry, folder: Path) -> dict[str, Any]:
    """The environment as plain data. folder: where the spec stands; its git repository is described.

    Returns `harness`, `python`, `platform`, `packages` (name -> version), `plugins` (distribution -> version),
    `device` (kind, name, count, CPU threads) and `git` (commit and whether files differ from it, or None).
    """
    plugins = sorted({origin for origin in registry.origins.values() if origin != OURS})
    return {
        "harness": _version(OURS),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "plugins": {name: _version(name) for name in plugins},
        "device": _device(),
        "git": _git(folder),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _device() -> dict[str, Any]:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return {"kind": "cuda", "names": names, "cuda": torch.version.cuda, "threads": torch.get_num_threads()}
    return {"kind": "cpu", "names": [platform.processor() or platform.machine()], "threads": torch.get_num_threads()}


def _git(folder: Path) -> dict[str, Any] | None:
    def ask(*arguments: str) -> str | None:
        try:
            answer = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    commit = ask("rev-parse", "HEAD")
    return None if commit is None else {"commit": commit, "changed": bool(ask("status", "--porcelain"))}
