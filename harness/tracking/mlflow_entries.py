"""Convert a run's values to MLflow entries: flat parameters, allowed names, redacted values, batches within limits.

Does not import MLflow at module level.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

from harness.tracking import metric_names
from harness.tracking.mlflow_store import VIEW_KEY
from harness.types import Stage
from harness.utils.redaction import MAX_VALUE_LENGTH, flatten_settings, mlflow_name, redact, truncate_value

if TYPE_CHECKING:
    from mlflow.entities import Metric

__all__ = [
    "MAX_VALUE_LENGTH",
    "arm_tags_and_params",
    "build_run_params",
    "build_run_tags",
    "flatten_settings",
    "mlflow_name",
    "note",
    "redact",
    "run_name",
    "share_metrics",
    "split_batches",
    "stage_parameters",
    "table_view",
    "tag_query",
    "to_mlflow_metrics",
]

NOTE_TAG = "mlflow.note.content"
"""The tag that MLflow's page shows as the description of a run."""
MAX_PARAMS_PER_BATCH = 100
MAX_METRICS_PER_BATCH = 1000
MAX_DIGEST_CHARS = 36
MAX_TAG_CHARS = 5000
MAX_CHANGES_CHARS = 120
FOLDER_NAME = re.compile(r"(.+)-(\d{8}-\d{6})-([0-9a-f]{4})")
"""The name of a run's folder: name in the spec, time, random characters."""
UNNAMED_CHANGES = ("track", "output", "name")
"""Sections of a spec that do not tell runs apart."""

T = TypeVar("T")


def split_batches(entries: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Split entries into batches of at most `size`."""
    for start in range(0, len(entries), size):
        yield entries[start : start + size]


def run_name(folder_name: str, overrides: Sequence[str] = ()) -> str:
    """Return the name of a run in MLflow: first what differs between runs of one experiment.

    MLflow's tables and charts show the start of a name only. `tiny-20260101-120000-ab12`, started with
    `--set train.learning_rate=1e-5`, becomes `learning_rate=1e-5 ab12 tiny 20260101-120000`.

    Args:
        folder_name: Name of the run's folder. One without a time stays as it is: an arm has its own name.
        overrides: The `--set` options of the run.
    """
    match = FOLDER_NAME.fullmatch(folder_name)
    name = " ".join(match.group(3, 1, 2)) if match else folder_name
    changes = " ".join(
        f"{key.rpartition('.')[2]}={value}"
        for key, _, value in (override.partition("=") for override in overrides)
        if key.partition(".")[0] not in UNNAMED_CHANGES
    )
    return " ".join(filter(None, (changes[:MAX_CHANGES_CHARS], name)))


def note(headline: str, statements: Sequence[str] = ()) -> str:
    """Return the description of a run on MLflow's page, as Markdown: a headline, and a list of statements."""
    return "\n".join([headline, *([""] if statements else []), *(f"- {statement}" for statement in statements)])


def tag_query(tags: Mapping[str, str]) -> str:
    """Return an MLflow search that selects the runs with these tags."""
    return " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())


def to_mlflow_metrics(values: Mapping[str, float], step: int) -> list[Metric]:
    """Convert values to MLflow metrics at a step, with allowed names."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(mlflow_name(name), float(value), now, int(step)) for name, value in values.items()]


def build_run_tags(spec: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, str]:
    """Return tags for mode, mitigations, model, template, versions and commit. Unknown values are omitted."""
    model, git = environment.get("model") or {}, environment.get("git") or {}
    tags = {
        "mode": _component_names(spec.get("mode")),
        "mitigations": _component_names(spec.get("mitigations")),
        "model": str(spec.get("model", {}).get("path", "")),
        "template": _component_names(spec.get("template")),
    }
    plugins = environment.get("plugins") or {}
    known = {
        "harness.plugins": ", ".join(
            f"{name} {about['version']} ({about['digest'][:12]})" for name, about in sorted(plugins.items())
        ),
        "harness.version": environment.get("harness"),
        "model.digest": model.get("digest"),
        "mlflow.source.git.commit": git.get("commit"),
    }
    return tags | {key: str(value) for key, value in known.items() if value}


def build_run_params(spec: Mapping[str, Any], changed: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the parameters of a run: the values that differ from the defaults, and the learning rate.

    The artifact `spec.json` has all values. MLflow's comparison of runs shows what differs only among few parameters.

    Args:
        spec: The spec with every default filled in, without secrets.
        changed: Its values that differ from the defaults; None: not known, so all are returned.
    """
    learning_rate = spec.get("train", {}).get("learning_rate")
    always = {} if learning_rate is None else flatten_settings({"train": {"learning_rate": learning_rate}})
    return flatten_settings(spec if changed is None else redact(dict(changed))) | always


def arm_tags_and_params(arm: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Return tags and parameters of an arm's run.

    They are the run's name, the arm's name without the seed, and `arm/<key>` for each key of the spec that it changes.
    """
    flat = {f"arm/{mlflow_name(key)}": _param_text(value) for key, value in redact(dict(arm["changes"])).items()}
    return {"arm": str(arm["name"]), "arm.method": str(arm.get("method", arm["name"]))}, flat


TABLE_VIEW_TAG = f"mlflow.sharedViewState.{VIEW_KEY}"
"""Experiment tag of the shared view that MLflow's page opens at `…/runs?viewStateShareKey=harness`."""
MAX_VIEW_SCORES = 8


def table_view(scores: Sequence[str], params: Sequence[str]) -> str:
    """Return the columns of the shared view of runs, in the format of MLflow's page.

    The columns are scores `suite/score` with their differences to the base model, parameters, and how the runs trained.
    Without a view the page shows none of them.
    """
    columns = [
        f"metrics.`{mlflow_name(name)}`"
        for score in scores[:MAX_VIEW_SCORES]
        for name in (score, metric_names.delta_name(*score.split("/", 1)))
    ]
    columns += [f"params.`{name}`" for name in params]
    columns += [f"tags.`{name}`" for name in ("gate", "mode", "mitigations")]
    return json.dumps({"selectedColumns": columns})


def share_metrics(epochs: Sequence[Mapping[str, Mapping[str, float]]]) -> list[tuple[dict[str, float], int]]:
    """Return the realized shares of every source in every epoch as metrics, with the epoch, from 1, as step."""
    return [
        (
            {
                metric_names.share_name(source, unit, of_epoch=True): share
                for source, units in shares.items()
                for unit, share in units.items()
            },
            epoch,
        )
        for epoch, shares in enumerate(epochs, start=1)
    ]


def stage_parameters(stage: Stage) -> dict[str, str]:
    """Return a stage's settings as parameters.

    They are the training settings, source roles, requested limits and shares (by the names of their sources), and the
    stage's own mitigations and adapter setting.
    """
    settings: dict[str, Any] = {
        "train": stage.train,
        "sources": {source.source: source.role for source in stage.sources},
    }
    limits = {source.source: source.limit for source in stage.sources if source.limit is not None}
    requested_shares = {
        "+".join(share.sources): {
            key: value for key, value in asdict(share).items() if key != "sources" and value not in (None, False)
        }
        for share in stage.shares
    }
    settings |= {key: value for key, value in (("limits", limits), ("shares", requested_shares)) if value}
    if stage.mitigations is not None:
        settings["mitigations"] = stage.mitigations
    if stage.adapter != "continue":
        settings["adapter"] = stage.adapter
    return flatten_settings(settings)


def _component_names(setting: Any) -> str:
    return setting if isinstance(setting, str) else ", ".join(sorted(setting or ()))


def _param_text(value: Any) -> str:
    return truncate_value(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
