"""What a run writes down of its data and of where it runs, before it begins."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from harness.data.checks import findings, lengths
from harness.data.tokenization import fingerprints
from harness.errors import HarnessError
from harness.registry import OURS, Registry
from harness.runner.folder import RunFolder
from harness.runner.prepare import Prepared

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


def data_of(ready: Prepared, found: findings.Findings) -> dict[str, Any]:
    """What the stages train on and the suites ask, in numbers, digests and warnings: `data.json`.

    found: what the wording of the data gave away.
    """
    stages = ready.data.stages
    return {
        "counts": ready.data.counts,
        "stages": [one.stage for one in stages],
        "shares": [one.shares for one in stages],
        "epoch_shares": [one.epoch_shares for one in stages],
        "efficiency": [one.efficiency for one in stages],
        "digests": dict(ready.data.digests),
        "template": fingerprints.fingerprint(ready.template, ready.tokenizer),
        "lengths": {name: _lengths(ready, name) for name in ready.data.lengths},
        "facts": {name: dict(told.corpus.facts) for name, told in ready.data.told.items() if told.corpus.facts},
        "warnings": [*ready.plan.warnings, *ready.data.warnings, *found.warnings],
        "checks": found.facts(),
    }


def environment_of(ready: Prepared, registry: Registry, spec: Path, processes: int) -> dict[str, Any]:
    """Packages, device, git state, and the digests of model and data: `environment.json`.

    spec: its file. processes: how many share the training.
    """
    location = ready.location
    return {
        **describe(registry, spec.resolve().parent),
        "processes": processes,
        "model": {"path": location.path, "kind": location.kind, "digest": location.digest},
        "data": dict(ready.data.digests),
        "template": fingerprints.fingerprint(ready.template, ready.tokenizer),
    }


def refuse_other_processes(folder: RunFolder, count: int) -> None:
    """Raise HarnessError when the run in `folder` was begun by another number of processes.

    An update is made of a batch of each, so that it would be another one.
    """
    began = (folder.read("environment.json") or {"processes": count}).get("processes", 1)
    if began != count:
        again = f"-m harness run --resume {folder.path}"
        hint = f"torchrun --standalone --nproc-per-node {began} {again}" if began > 1 else f"python {again}"
        what = f"it was begun with {began} process(es), and this is one of {count}"
        raise HarnessError(str(folder.path), what, f"go on with {hint}")


def _lengths(ready: Prepared, source: str) -> dict[str, Any]:
    """The token lengths of a source as a histogram: see `harness.data.checks.lengths.lengths`."""
    return lengths.lengths(ready.data.lengths[source], max(ready.data.told[source].tokenised))
