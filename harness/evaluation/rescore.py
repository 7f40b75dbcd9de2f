"""Score the stored items of a run with its own metrics or others, without generating anything again.

No model of the run is loaded. Text metrics without an encoder do not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.evaluation.metric_values import measurement_type
from harness.evaluation.predictions import PredictionsFile, load_predictions
from harness.evaluation.scoring import find_limit_violations, score_items
from harness.interfaces.metric import Metric
from harness.registry import Registry
from harness.spec.metric_factory import create_metric
from harness.types import Evaluation, Item, Suite
from harness.utils.json_dataclass import build_dataclass
from harness.utils.json_depth import load_json

_PREDICTION_FILE = re.compile(r"(?P<suite>.+)-stage(?P<stage>\d+)\.jsonl")

_REQUIREMENTS: dict[str, tuple[str, Callable[[Item], bool]]] = {
    "answer": ("answers", lambda item: item.answer is not None),
    "likelihood": ("likelihoods of the references", lambda item: item.nll is not None),
    "base": ("divergences from the base", lambda item: item.kl is not None),
    "choices": ("likelihoods of choices", lambda item: item.choice_lls is not None),
    "text": ("likelihoods of plain texts", lambda item: item.text_nll is not None),
    "model": ("values that it measured with the model", lambda item: True),
}
"""`Metric.requires` -> its description, and whether an item has it."""


def score_run(
    folder: Path,
    metrics: Mapping[str, Mapping[str, Any]] | None,
    registry: Registry,
    *,
    suites: Sequence[str] = (),
    stages: Sequence[int] = (),
) -> tuple[Evaluation, ...]:
    """Score the stored items of a run.

    Intervals use the same draws as the run itself. The limits of the suites are checked again.

    Args:
        folder: Folder of a run, with `spec.json` and `predictions/`.
        metrics: Name -> options; missing options get their defaults. They score every suite whose items have what
            they require. None: the metrics of each suite in the spec.
        registry: Has the metrics.
        suites: Names of the suites to score; empty: all.
        stages: Indices of the stages to score; empty: all.

    Returns:
        One evaluation for each suite and stage, by stage, then in the order of the spec.

    Raises:
        HarnessError: The folder is not a run or has no such items. Or a metric or option does not exist, no suite has
            the items that a metric requires, or an evaluation is incomplete.
    """
    folder = Path(folder)
    suites_of_spec = _load_suites(folder)
    for name, options in (metrics or {}).items():
        create_metric(registry, name, options)  # reports every wrong option before anything is scored
    unused = set(metrics or ())
    evaluations: list[Evaluation] = []
    built: dict[str, Suite] = {}
    metrics_by_suite: dict[str, dict[str, Metric]] = {}
    for suite, stage, file in _find_prediction_files(folder / "predictions", tuple(suites_of_spec), suites, stages):
        stored = _load_complete_predictions(file)
        items = stored.items
        if suite not in built:  # once per suite: a metric may load a model
            built[suite] = _build_suite(folder, suite, suites_of_spec[suite])
            requested, lang = built[suite].metrics if metrics is None else metrics, built[suite].lang
            metrics_by_suite[suite] = {
                name: create_metric(registry, name, options, lang=lang) for name, options in requested.items()
            }
        applicable = metrics_by_suite[suite]
        if metrics is not None:
            applicable = {
                name: metric
                for name, metric in applicable.items()
                if all(map(_REQUIREMENTS[metric.requires][1], items))
                and (metric.requires != "model" or _stored_values(stored, name, metric) is not None)
            }
        if applicable:
            computed = {}
            for name, metric in applicable.items():
                values = _stored_values(stored, name, metric) if metric.computes_values else None
                if values is not None:
                    computed[name] = values
                elif metric.requires == "model":
                    what = f"the values of {metric.signature()} are not stored"
                    raise HarnessError(f"{file}: metric {name}", what, "evaluate the run again: harness evaluate RUN")
            scores = score_items(items, applicable, suite=suite, stage=stage, computed=computed)
            violations = find_limit_violations(built[suite], stage, items, scores)
            evaluations.append(Evaluation(stage, suite, items, scores, violations))
        unused -= applicable.keys()
    for name in sorted(unused):
        required, _ = _REQUIREMENTS[create_metric(registry, name, (metrics or {})[name]).requires]
        what = f"requires {required}, which no suite of the run has"
        raise HarnessError(f"metric {name}", what, "evaluate a suite with this metric first")
    return tuple(evaluations)


def _load_suites(folder: Path) -> dict[str, Any]:
    """Return the suites of a run's spec by name, as the spec has them."""
    file = folder / "spec.json"
    try:
        return dict(load_json(file.read_text(encoding="utf-8"))["evaluate"].items())
    except OSError as error:
        what = "is not the folder of a run: it has no spec.json"
        raise HarnessError(str(folder), what, "use a folder under runs/") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _damaged_spec_error(file, error) from error


def _build_suite(folder: Path, name: str, settings: Any) -> Suite:
    try:
        template = settings.get("template")
        template = None if template is None else next(iter(template.items()))
        return build_dataclass(Suite, {"name": name, **settings, "template": template})
    except (TypeError, AttributeError, StopIteration) as error:
        raise _damaged_spec_error(folder / "spec.json", error) from error


def _damaged_spec_error(file: Path, error: Exception) -> HarnessError:
    what = f"is not the spec of a run for this version ({type(error).__name__}: {error})"
    return HarnessError(str(file), what, "restore the file, or run the spec again")


def _find_prediction_files(
    folder: Path, known_suites: Sequence[str], suites: Sequence[str], stages: Sequence[int]
) -> Iterator[tuple[str, int, Path]]:
    for suite in suites:
        if suite not in known_suites:
            what = "does not exist in this run"
            raise HarnessError(f"suite {suite}", what, f"its suites are: {', '.join(known_suites)}")
    files = []
    for file in folder.glob("*.jsonl"):
        match = _PREDICTION_FILE.fullmatch(file.name)
        if match and match["suite"] in (suites or known_suites) and (not stages or int(match["stage"]) in stages):
            files.append((match["suite"], int(match["stage"]), file))
    if not files:
        raise HarnessError(str(folder), "has no items of such a suite and stage", "evaluate the run first")
    yield from sorted(files, key=lambda entry: (entry[1], known_suites.index(entry[0])))


def _stored_values(stored: PredictionsFile, name: str, metric: Metric) -> list[Any] | None:
    """Return the stored values that a metric with these options computed, one an item; None if there are none."""
    settings = stored.header.get("settings", {}).get(measurement_type(name), {})
    values = [stored.computed.get(item.id, {}) for item in stored.items]
    if settings.get("signature") != metric.signature() or not all(name in value for value in values):
        return None
    return [value[name] for value in values]


def _load_complete_predictions(file: Path) -> PredictionsFile:
    stored = load_predictions(file)
    if not stored.complete:
        what = f"the evaluation was interrupted: it has some of {stored.header.get('items', '?')} items"
        raise HarnessError(str(file), what, "complete it with `harness evaluate`, then score it")
    return stored
