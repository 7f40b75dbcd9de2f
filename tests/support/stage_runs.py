"""Runs of small specs in this process, and what tests compare of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from harness import registry
from harness.runner import api
from harness.spec import schema, spec


def load(document: dict[str, Any], folder: Path) -> tuple[spec.Spec, registry.Registry]:
    """Write a spec to a folder and load it, with all installed plugins."""
    (folder / "spec.json").write_text(json.dumps(document))
    plugins = registry.discover_plugins()
    return spec.load_spec(folder / "spec.json", schema.compose_schema(plugins)), plugins


def start(document: dict[str, Any], folder: Path, listener: Any = None) -> Any:
    """Run a spec. listener: a plugin that receives the events."""
    given, plugins = load(document, folder)
    if listener is not None:
        plugins.manager.register(listener)
    return api.run(given, plugins)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Return whether two models have the same weights, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def mid_stage_lines(folder: Path | str) -> list[dict[str, Any]]:
    """Return the lines of the mid-stage evaluations of the stage `domain` of a run."""
    file = Path(folder) / "stages" / "domain" / "evaluations.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]
