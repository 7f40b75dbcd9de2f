"""What a run writes down of its data and of where it runs, before it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness import data, environment
from harness.data import encode, histogram
from harness.errors import HarnessError
from harness.registry import Registry
from harness.run.folder import RunFolder
from harness.run.preparing import Prepared


def data_of(ready: Prepared, found: data.Findings) -> dict[str, Any]:
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
        "template": encode.fingerprint(ready.template, ready.tokenizer),
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
        **environment.describe(registry, spec.resolve().parent),
        "processes": processes,
        "model": {"path": location.path, "kind": location.kind, "digest": location.digest},
        "data": dict(ready.data.digests),
        "template": encode.fingerprint(ready.template, ready.tokenizer),
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
    """The token lengths of a source as a histogram: see `harness.data.histogram.lengths`."""
    return histogram.lengths(ready.data.lengths[source], max(ready.data.told[source].tokenised))
