"""The items that a run left in its folder → scores, with its own metrics or others; nothing is generated again.

Loads none of the run's models and, for metrics of text without an encoder of their own, imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema

from harness.errors import HarnessError
from harness.evaluation import predictions, scoring
from harness.evaluation.scoring import find_limit_violations
from harness.interfaces.metric import Metric
from harness.registry import Registry
from harness.spec.schema import fill_defaults
from harness.types import Evaluation, Item, Suite
from harness.utils.json_depth import load_json

_PREDICTION_FILE = re.compile(r"(?P<suite>.+)-stage(?P<stage>\d+)\.jsonl")

_REQUIREMENTS: dict[str, tuple[str, Callable[[Item], bool]]] = {
    "answer": ("answers", lambda item: item.answer is not None),
    "likelihood": ("likelihoods of the references", lambda item: item.nll is not None),
    "base": ("distances from the base", lambda item: item.kl is not None),
    "choices": ("likelihoods of choices", lambda item: item.choice_lls is not None),
    "text": ("likelihoods of plain texts", lambda item: item.text_nll is not None),
}
"""What a metric reads, by `Metric.requires`: in words, and whether an item has it."""


def score_run(
    folder: Path,
    metrics: Mapping[str, Mapping[str, Any]] | None,
    registry: Registry,
    *,
    suites: Sequence[str] = (),
    stages: Sequence[int] = (),
) -> tuple[Evaluation, ...]:
    """Score the items of a run's folder: one evaluation for each suite and stage, by stage, then as in its spec.

    folder: of a run, with `spec.json` and `predictions/`.
    metrics: name -> options, of which those left out get their defaults; None: each suite's own, from the spec.
        Metrics that are given score every suite whose items have what they read.
    suites, stages: those alone; empty: all that the folder holds.

    Intervals draw the same items as the run itself did. A suite's limits are judged anew.
    Raises HarnessError when the folder is no run's or holds no such items, for a metric or option that there is not,
    for a metric that no suite has items for, and for items of an evaluation that did not come to its end.
    """
    folder = Path(folder)
    spec = _load_run_spec(folder)
    unused = set(metrics or ())
    for name, options in (metrics or {}).items():
        create_metric(registry, name, options)  # what is wrong with one is told before anything is scored
    made, metrics_of = [], {}
    for suite, stage, file in _find_prediction_files(folder / "predictions", tuple(spec["evaluate"]), suites, stages):
        items = _read_complete_items(file)
        given = spec["evaluate"][suite]
        if suite not in metrics_of:  # once, for a metric may hold a model
            wanted = given["metrics"] if metrics is None else metrics
            lang = given.get("lang", "auto")
            metrics_of[suite] = {n: create_metric(registry, n, options, lang=lang) for n, options in wanted.items()}
        chosen = metrics_of[suite]
        if metrics is not None:
            chosen = {name: one for name, one in chosen.items() if all(map(_REQUIREMENTS[one.requires][1], items))}
        if chosen:
            scores = scoring.score_items(items, chosen, seed=spec["seed"], suite=suite, stage=stage)
            broken = find_limit_violations(Suite(name=suite, **given), stage, items, scores)
            made.append(Evaluation(stage, suite, items, scores, broken))
        unused -= chosen.keys()
    for name in sorted(unused):
        reads, _ = _REQUIREMENTS[create_metric(registry, name, (metrics or {})[name]).requires]
        raise HarnessError(f"metric {name}", f"reads {reads}, and no suite here has them", "evaluate one with it first")
    return tuple(made)


def create_metric(registry: Registry, name: str, options: Mapping[str, Any], *, lang: str = "auto") -> Metric:
    """The metric with these options, and the defaults of those left out. lang: what its own `lang: auto` becomes.

    Raises HarnessError for a metric or an option that there is not, or a value that does not fit.
    """
    component = registry.get("metrics", name)
    fragment: dict[str, Any] = {
        "type": "object",
        "properties": dict(component.options),
        "required": list(component.required),
        "additionalProperties": False,
    }
    for error in jsonschema.Draft7Validator(fragment).iter_errors(dict(options)):
        place = ".".join([f"metric {name}", *map(str, error.absolute_path)])
        raise HarnessError(place, error.message, f"its options are: {', '.join(component.options) or 'none'}")
    filled = fill_defaults(dict(options), fragment, fragment)
    if filled.get("lang") == "auto":
        filled["lang"] = lang
    made: Metric = registry.create("metrics", name, filled)
    return made


def _load_run_spec(folder: Path) -> dict[str, Any]:
    file = folder / "spec.json"
    try:
        spec: dict[str, Any] = load_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise HarnessError(str(folder), "is no folder of a run: it has no spec.json", "name one under runs/") from error
    except ValueError as error:
        raise HarnessError(str(file), f"is no JSON: {error}", "mend it, or run its spec again") from error
    return spec


def _find_prediction_files(
    folder: Path, known: Sequence[str], suites: Sequence[str], stages: Sequence[int]
) -> Iterator[tuple[str, int, Path]]:
    for suite in suites:
        if suite not in known:
            raise HarnessError(f"suite {suite}", "is none of this run's", f"its suites are: {', '.join(known)}")
    found = []
    for file in folder.glob("*.jsonl"):
        match = _PREDICTION_FILE.fullmatch(file.name)
        if match and match["suite"] in (suites or known) and (not stages or int(match["stage"]) in stages):
            found.append((match["suite"], int(match["stage"]), file))
    if not found:
        raise HarnessError(str(folder), "holds no items of such a suite and stage", "evaluate the run first")
    yield from sorted(found, key=lambda one: (one[1], known.index(one[0])))


def _read_complete_items(file: Path) -> tuple[Item, ...]:
    stored = predictions.load_predictions(file)
    if not stored.complete:
        what = f"its evaluation was cut off: it has some of {stored.header.get('items', '?')} items"
        raise HarnessError(str(file), what, "let it come to its end with `harness evaluate`, then score it")
    return stored.items
