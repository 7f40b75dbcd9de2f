"""A run's values → what an MLflow server takes: flat parameters, allowed names, no secrets, batches in its limits.

Imports no MLflow: it knows the server's limits, not the server.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

from harness.types import Stage
from harness.utils.redaction import LONGEST_VALUE, allowed, parameters, public, shortened

if TYPE_CHECKING:
    from mlflow.entities import Metric

__all__ = [
    "LONGEST_VALUE",
    "allowed",
    "arm_entries",
    "batches",
    "metrics",
    "parameters",
    "public",
    "realised",
    "run_tags",
    "stage_parameters",
    "view",
]

PARAMS_IN_BATCH = 100
METRICS_IN_BATCH = 1000
LONGEST_DIGEST = 36
LONGEST_TAG = 5000

T = TypeVar("T")


def batches(entries: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The entries in pieces of at most `size`."""
    for start in range(0, len(entries), size):
        yield entries[start : start + size]


def metrics(values: Mapping[str, float], step: int) -> list[Metric]:
    """Values as metrics of MLflow at a step, under names that it takes."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(allowed(name), float(value), now, int(step)) for name, value in values.items()]


def run_tags(spec: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, str]:
    """How a run trained, what it was made with, and from which commit, as tags; what is not known is left out."""
    model, git = environment.get("model") or {}, environment.get("git") or {}
    tags = {
        "mode": _names(spec.get("mode")),
        "mitigations": _names(spec.get("mitigations")),
        "model": str(spec.get("model", {}).get("path", "")),
        "template": _names(spec.get("template")),
    }
    known = {
        "harness.version": environment.get("harness"),
        "model.digest": model.get("digest"),
        "mlflow.source.git.commit": git.get("commit"),
    }
    return tags | {key: str(value) for key, value in known.items() if value}


def arm_entries(arm: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """The tags and the parameters of an arm: its name, and `arm/<key>` for each key of the spec that it changes."""
    flat = {f"arm/{allowed(key)}": _text(value) for key, value in public(dict(arm["changes"])).items()}
    return {"arm": str(arm["name"])}, flat


VIEW = "mlflow.sharedViewState.harness"
"""Tag of an experiment under which MLflow's page finds a view of its runs: `…/runs?viewStateShareKey=harness`."""
VIEW_SCORES = 8


def view(scores: Sequence[str], params: Sequence[str]) -> str:
    """The columns of a table of runs that is worth looking at, as MLflow's page keeps them: scores, each beside its
    difference to the base model, parameters, and how the runs trained. Unasked the page shows none of them."""
    columns = [f"metrics.`{allowed(name)}`" for score in scores[:VIEW_SCORES] for name in (score, f"{score}/delta")]
    columns += [f"params.`{name}`" for name in params]
    columns += [f"tags.`{name}`" for name in ("mode", "mitigations", "gate")]
    return json.dumps({"selectedColumns": columns})


def realised(epochs: Sequence[Mapping[str, Mapping[str, float]]]) -> list[tuple[dict[str, float], int]]:
    """The shares of every source in every epoch as metrics, with the epoch, from 1, as step."""
    return [
        ({f"epoch_share/{source}/{unit}": share for source, units in epoch.items() for unit, share in units.items()}, k)
        for k, epoch in enumerate(epochs, start=1)
    ]


def stage_parameters(stage: Stage) -> dict[str, str]:
    """The settings of one stage, the roles of its sources, what was asked for of limits and shares (by the names of
    their sources), and the mitigations and the adapter that it has of its own."""
    settings: dict[str, Any] = {"train": stage.train, "sources": {part.source: part.role for part in stage.parts}}
    limits = {part.source: part.limit for part in stage.parts if part.limit is not None}
    asked = {
        "+".join(share.sources): {
            key: value for key, value in asdict(share).items() if key != "sources" and value not in (None, False)
        }
        for share in stage.shares
    }
    settings |= {key: value for key, value in (("limits", limits), ("shares", asked)) if value}
    if stage.mitigations is not None:
        settings["mitigations"] = stage.mitigations
    if stage.adapter != "continue":
        settings["adapter"] = stage.adapter
    return parameters(settings)


def _names(slot: Any) -> str:
    return slot if isinstance(slot, str) else ", ".join(sorted(slot or ()))


def _text(value: Any) -> str:
    return shortened(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
