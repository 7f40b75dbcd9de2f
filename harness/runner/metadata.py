"""Metadata that a run writes before training: `data.json` and `environment.json`."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness.data.checks import lengths
from harness.data.tokenization import fingerprints
from harness.distributed.processes import Processes
from harness.interfaces.component import CORE_DISTRIBUTION
from harness.plugin_versions import installed_version, plugins_in_use
from harness.registry import Registry
from harness.runner.prepare import PreparedRun
from harness.spec.spec import Spec
from harness.utils.formats import RUN_FORMAT

PACKAGES = (
    "torch", "transformers", "trl", "peft", "accelerate", "datasets", "evaluate", "tokenizers", "safetensors",
    "sacrebleu", "rouge-score", "mlflow", "numpy", "pluggy", "jsonschema",
)  # fmt: skip


def describe_environment(registry: Registry, spec: Spec) -> dict[str, Any]:
    """Describe the environment as plain data.

    Args:
        registry: The loaded plugins; those that the run uses are listed.
        spec: The spec; the git repository of its folder is described.

    Returns:
        `format` (of the run's folder), `harness`,
        `python`, `platform`, `packages` (name -> version), `plugins` (see `plugins_in_use`), `device`
        (kind, names, CUDA version, CPU threads) and `git` (commit and whether files differ from it, or None).
    """
    return {
        "format": RUN_FORMAT,
        "harness": installed_version(CORE_DISTRIBUTION),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "plugins": plugins_in_use(registry, spec.document),
        "device": _describe_device(),
        "git": _describe_git(spec.file.resolve().parent),
    }


def _describe_device() -> dict[str, Any]:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return {"kind": "cuda", "names": names, "cuda": torch.version.cuda, "threads": torch.get_num_threads()}
    return {"kind": "cpu", "names": [platform.processor() or platform.machine()], "threads": torch.get_num_threads()}


def _describe_git(folder: Path) -> dict[str, Any] | None:
    def run_git(*arguments: str) -> str | None:
        try:
            process = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return process.stdout.strip() if process.returncode == 0 else None

    commit = run_git("rev-parse", "HEAD")
    return None if commit is None else {"commit": commit, "changed": bool(run_git("status", "--porcelain"))}


def data_metadata(prepared: PreparedRun) -> dict[str, Any]:
    """Return the content of `data.json`: counts, shares, digests, lengths, warnings and findings of the data.

    Args:
        prepared: The prepared run, with the findings of the data checks.
    """
    data, findings = prepared.data, prepared.findings
    assert findings is not None, "`prepare_checked_run` has added the findings"
    return {
        "counts": data.counts,
        "stages": [stage_data.stage for stage_data in data.stages],
        "shares": [stage_data.shares for stage_data in data.stages],
        "epoch_shares": [stage_data.epoch_shares for stage_data in data.stages],
        "efficiency": [stage_data.efficiency for stage_data in data.stages],
        "digests": dict(data.digests),
        "template": fingerprints.template_fingerprint(prepared.template, prepared.tokenizer),
        "lengths": {name: _length_histogram(prepared, name) for name in data.untruncated_lengths},
        "facts": {
            name: dict(source.corpus.metadata) for name, source in data.sources.items() if source.corpus.metadata
        },
        "unread": {
            name: dict(source.corpus.unread_keys) for name, source in data.sources.items() if source.corpus.unread_keys
        },
        "warnings": [*prepared.plan.warnings, *data.warnings, *findings.warnings],
        "checks": findings.to_dict(),
    }


def environment_metadata(prepared: PreparedRun, registry: Registry, spec: Spec, processes: Processes) -> dict[str, Any]:
    """Return the content of `environment.json`: packages, device, git state, `--set` options, digests.

    Args:
        prepared: The prepared run.
        registry: The components.
        spec: The spec.
        processes: The processes that share the training.
    """
    location = prepared.location
    return {
        **describe_environment(registry, spec),
        "overrides": list(spec.overrides),
        "processes": processes.world_size,
        "nodes": len(processes.nodes),
        "model": {"path": location.path, "kind": location.kind, "digest": location.digest},
        "data": dict(prepared.data.digests),
        "template": fingerprints.template_fingerprint(prepared.template, prepared.tokenizer),
    }


def _length_histogram(prepared: PreparedRun, source: str) -> dict[str, Any]:
    """Return the histogram of token lengths of a source; see `harness.data.checks.lengths.summarize_lengths`."""
    return lengths.summarize_lengths(
        prepared.data.untruncated_lengths[source], max(prepared.data.sources[source].tokenized_by_length)
    )
