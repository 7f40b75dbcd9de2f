"""Everything up to the proven data: the plan, the components that it names, the tokenizer, the rows.

Loads no weights and makes no folder of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.data import prepare as prepare_module
from harness.data.checks import findings
from harness.data.tokenization import fingerprints
from harness.distributed.processes import ALONE, Ranks
from harness.errors import HarnessError, raise_all
from harness.interfaces.metric import Metric
from harness.interfaces.template import Template
from harness.model import device, load, locate
from harness.registry import Registry
from harness.spec import plan as plan_module
from harness.spec import preflight
from harness.spec.spec import Spec
from harness.types import Event, Plan, Progress


class ModelUnreachable(HarnessError):
    """The hub model that the spec names cannot be had from here."""


@dataclass(frozen=True)
class Prepared:
    """All that is known before a model is loaded: the plan, its data, and the components that it names.

    templates: suite -> its own template, for suites that have one.
    """

    plan: Plan
    location: locate.Location
    tokenizer: Any
    template: Template
    data: prepare_module.Prepared
    metrics: Mapping[str, Mapping[str, Metric]]
    templates: Mapping[str, Template] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        """The longest `max_length` of all stages: at which suites are evaluated."""
        return max(int(stage.train["max_length"]) for stage in self.plan.stages)


def prepare(spec: Spec, registry: Registry, *, mixed: bool = True, ranks: Ranks = ALONE) -> Prepared:
    """Everything up to the proven data. Raises HarnessError for bad input.

    mixed: False, where nothing will be trained, leaves the shares out, so that rows can be looked at whose mixture
    cannot be met. ranks: the processes that share the training. Every bad row of a source is written to
    `<output>/<name>-rejected/<source>.jsonl`, by the main one.
    """
    progress = progress_of(registry)
    planned = plan_module.make(spec, registry)
    if not mixed:
        planned = replace(planned, stages=tuple(replace(one, shares=()) for one in planned.stages))
    _warn(registry, planned.warnings)
    metrics = preflight.check(spec, planned, registry, trains=mixed)
    raise_all(_lacking(spec, metrics))
    template = registry.make("templates", *planned.template)
    kind: type[HarnessError] = HarnessError
    try:
        location = locate.resolve(planned.model, output=spec.document["output"], progress=progress)
        if (location.below or location).kind == "hub":
            kind = ModelUnreachable
        tokenizer = load.tokenizer(location, planned.model)
    except HarnessError as error:
        own = error.where.startswith("model.")  # it names its key itself
        where = spec.where(tuple(error.where.split(".")) if own else ("model", "path"))
        raise kind(where if own else f"{where}: {error.where}", error.what, error.hint) from error
    device.dtype(planned.train["precision"], device.device())
    templates = {one.name: registry.make("templates", *one.template) for one in planned.suites if one.template}
    if not spec.document["checks"]["other_template"]:
        folder = Path(location.path) if location.kind in ("folder", "run") else None
        raise_all(fingerprints.others(planned, template, templates, tokenizer, folder, spec.where))
    sources = {name: registry.make("sources", *given) for name, given in planned.sources.items()}
    prepared = prepare_module.prepare(
        planned,
        sources,
        template,
        tokenizer,
        also=plan_module.sources_named(spec, "mitigations"),
        templates=templates,
        rejected=Path(spec.document["output"]) / f"{planned.name}-rejected" if ranks.main else None,
        processes=ranks.count,
        progress=progress,
    )
    _warn(registry, prepared.warnings)
    return Prepared(planned, location, tokenizer, template, prepared, metrics, templates)


def find(spec: Spec, ready: Prepared, registry: Registry) -> findings.Findings:
    """What the wording of the prepared data gives away; its warnings are told, its failures are for the caller."""
    found = findings.find(
        ready.data.training,
        ready.data.suites,
        spec.document["checks"],
        seed=ready.plan.seed,
        untrained=ready.data.untrained,
        progress=progress_of(registry),
    )
    _warn(registry, found.warnings)
    return found


def progress_of(registry: Registry) -> Progress:
    """Progress that is told to every listener."""

    def progress(phase: str, done: int, total: int, note: str = "", unit: str = "") -> None:
        facts = {"phase": phase, "done": done, "total": total, "note": note, "unit": unit}
        registry.observe(Event("progress", data=facts))

    return progress


def _warn(registry: Registry, warnings: Iterable[str]) -> None:
    """Tell the listeners of warnings that stand in `data.json` too: there with every row that they name."""
    for warning in warnings:
        text, *rows = warning.split("\n")
        registry.observe(Event("warning", data={"text": text, "rows": rows}))


def page(registry: Registry, write: Callable[[Path], Path], folder: Path) -> None:
    """Make the page of a finished run. What fails there is told, and the run stays finished."""
    try:
        write(folder)
    except (HarnessError, OSError) as error:
        text = f"report.html could not be made: {error}; try again: harness report {folder}"
        registry.observe(Event("warning", data={"text": text}))


def _lacking(spec: Spec, metrics: Mapping[str, Mapping[str, Metric]]) -> Iterator[HarnessError]:
    """What metrics need and is not here."""
    for suite, made in metrics.items():
        for name, metric in made.items():
            try:
                metric.check()
            except HarnessError as error:
                place = spec.where(("evaluate", suite, "metrics", name))
                yield HarnessError(f"{place}: {error.where}", error.what, error.hint)
