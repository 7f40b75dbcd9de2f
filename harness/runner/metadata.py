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
from harness.registry import CORE_DISTRIBUTION, Registry
from harness.runner.folder import RunFolder
from harness.runner.prepare import PreparedRun

PACKAGES = (
    "torch", "transformers", "trl", "peft", "accelerate", "datasets", "evaluate", "tokenizers", "safetensors",
    "sacrebleu", "rouge-score", "mlflow", "numpy", "pluggy", "jsonschema",
)  # fmt: skip


def describe_environment(registry: Registry, folder: Path) -> dict[str, Any]:
    """The environment as plain data. folder: where the spec stands; its git repository is described.

    Returns `harness`, `python`, `platform`, `packages` (name -> version), `plugins` (distribution -> version),
    `device` (kind, name, count, CPU threads) and `git` (commit and whether files differ from it, or None).
    """
    plugins = sorted({origin for origin in registry.origins.values() if origin != CORE_DISTRIBUTION})
    return {
        "harness": _installed_version(CORE_DISTRIBUTION),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: _installed_version(name) for name in PACKAGES},
        "plugins": {name: _installed_version(name) for name in plugins},
        "device": _describe_device(),
        "git": _describe_git(folder),
    }


def _installed_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _describe_device() -> dict[str, Any]:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return {"kind": "cuda", "names": names, "cuda": torch.version.cuda, "threads": torch.get_num_threads()}
    return {"kind": "cpu", "names": [platform.processor() or platform.machine()], "threads": torch.get_num_threads()}


def _describe_git(folder: Path) -> dict[str, Any] | None:
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


def data_metadata(prepared: PreparedRun, findings: findings.Findings) -> dict[str, Any]:
    """What the stages train on and the suites ask, in numbers, digests and warnings: `data.json`.

    findings: what the wording of the data gave away.
    """
    stages = prepared.data.stages
    return {
        "counts": prepared.data.counts,
        "stages": [one.stage for one in stages],
        "shares": [one.shares for one in stages],
        "epoch_shares": [one.epoch_shares for one in stages],
        "efficiency": [one.efficiency for one in stages],
        "digests": dict(prepared.data.digests),
        "template": fingerprints.template_fingerprint(prepared.template, prepared.tokenizer),
        "lengths": {name: _length_histogram(prepared, name) for name in prepared.data.untruncated_lengths},
        "facts": {
            name: dict(told.corpus.metadata) for name, told in prepared.data.sources.items() if told.corpus.metadata
        },
        "warnings": [*prepared.plan.warnings, *prepared.data.warnings, *findings.warnings],
        "checks": findings.to_dict(),
    }


def environment_metadata(prepared: PreparedRun, registry: Registry, spec: Path, processes: int) -> dict[str, Any]:
    """Packages, device, git state, and the digests of model and data: `environment.json`.

    spec: its file. processes: how many share the training.
    """
    location = prepared.location
    return {
        **describe_environment(registry, spec.resolve().parent),
        "processes": processes,
        "model": {"path": location.path, "kind": location.kind, "digest": location.digest},
        "data": dict(prepared.data.digests),
        "template": fingerprints.template_fingerprint(prepared.template, prepared.tokenizer),
    }


def require_same_world_size(folder: RunFolder, world_size: int) -> None:
    """Raise HarnessError when the run in `folder` was begun by another number of processes.

    An update is made of a batch of each, so that it would be another one.
    """
    began = (folder.read_json("environment.json") or {"processes": world_size}).get("processes", 1)
    if began != world_size:
        again = f"-m harness run --resume {folder.path}"
        hint = f"torchrun --standalone --nproc-per-node {began} {again}" if began > 1 else f"python {again}"
        what = f"it was begun with {began} process(es), and this is one of {world_size}"
        raise HarnessError(str(folder.path), what, f"go on with {hint}")


def _length_histogram(prepared: PreparedRun, source: str) -> dict[str, Any]:
    """The token lengths of a source as a histogram: see `harness.data.checks.lengths.summarize_lengths`."""
    return lengths.summarize_lengths(
        prepared.data.untruncated_lengths[source], max(prepared.data.sources[source].tokenized_by_length)
    )
