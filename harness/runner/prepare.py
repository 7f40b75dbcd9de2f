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
from harness.distributed.processes import SINGLE_PROCESS, Processes
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
class PreparedRun:
    """All that is known before a model is loaded: the plan, its data, and the components that it names.

    templates: suite -> its own template, for suites that have one.
    """

    plan: Plan
    location: locate.ModelLocation
    tokenizer: Any
    template: Template
    data: prepare_module.PreparedData
    metrics: Mapping[str, Mapping[str, Metric]]
    templates: Mapping[str, Template] = field(default_factory=dict)

    @property
    def max_length(self) -> int:
        """The longest `max_length` of all stages: at which suites are evaluated."""
        return max(int(stage.train["max_length"]) for stage in self.plan.stages)


def prepare_run(
    spec: Spec, registry: Registry, *, use_shares: bool = True, processes: Processes = SINGLE_PROCESS
) -> PreparedRun:
    """Everything up to the proven data. Raises HarnessError for bad input.

    use_shares: False, where nothing will be trained, leaves the shares out, so that rows can be looked at whose mixture
    cannot be met. processes: the processes that share the training. Every bad row of a source is written to
    `<output>/<name>-rejected/<source>.jsonl`, by the main one.
    """
    progress = create_progress(registry)
    planned = plan_module.build_plan(spec, registry)
    if not use_shares:
        planned = replace(planned, stages=tuple(replace(one, shares=()) for one in planned.stages))
    _emit_warnings(registry, planned.warnings)
    metrics = preflight.preflight(spec, planned, registry, will_train=use_shares)
    raise_all(_unavailable_metric_errors(spec, metrics))
    template = registry.create("templates", *planned.template)
    kind: type[HarnessError] = HarnessError
    try:
        location = locate.resolve_model(planned.model, output=spec.document["output"], progress=progress)
        if (location.base or location).kind == "hub":
            kind = ModelUnreachable
        tokenizer = load.load_tokenizer(location, planned.model)
    except HarnessError as error:
        own = error.where.startswith("model.")  # it names its key itself
        where = spec.where(tuple(error.where.split(".")) if own else ("model", "path"))
        raise kind(where if own else f"{where}: {error.where}", error.what, error.hint) from error
    device.resolve_dtype(planned.train["precision"], device.select_device())
    templates = {one.name: registry.create("templates", *one.template) for one in planned.suites if one.template}
    if not spec.document["checks"]["other_template"]:
        folder = Path(location.path) if location.kind in ("folder", "run") else None
        raise_all(fingerprints.template_mismatches(planned, template, templates, tokenizer, folder, spec.where))
    sources = {name: registry.create("sources", *given) for name, given in planned.sources.items()}
    prepared = prepare_module.prepare_data(
        planned,
        sources,
        template,
        tokenizer,
        prepare_module.PreparationOptions(
            extra_sources=plan_module.list_named_sources(spec, "mitigations"),
            suite_templates=templates,
            invalid_rows_folder=Path(spec.document["output"]) / f"{planned.name}-rejected"
            if processes.is_main
            else None,
            processes=processes.world_size,
        ),
        progress=progress,
    )
    _emit_warnings(registry, prepared.warnings)
    return PreparedRun(planned, location, tokenizer, template, prepared, metrics, templates)


def analyze_prepared_data(spec: Spec, prepared: PreparedRun, registry: Registry) -> findings.Findings:
    """What the wording of the prepared data gives away; its warnings are told, its failures are for the caller."""
    found = findings.analyze_data(
        prepared.data.training_examples,
        prepared.data.suite_examples,
        spec.document["checks"],
        seed=prepared.plan.seed,
        fully_truncated=prepared.data.fully_truncated,
        progress=create_progress(registry),
    )
    _emit_warnings(registry, found.warnings)
    return found


def create_progress(registry: Registry) -> Progress:
    """Progress that is told to every listener."""

    def progress(phase: str, done: int, total: int, note: str = "", unit: str = "") -> None:
        facts = {"phase": phase, "done": done, "total": total, "note": note, "unit": unit}
        registry.emit(Event("progress", data=facts))

    return progress


def _emit_warnings(registry: Registry, warnings: Iterable[str]) -> None:
    """Tell the listeners of warnings that stand in `data.json` too: there with every row that they name."""
    for warning in warnings:
        text, *rows = warning.split("\n")
        registry.emit(Event("warning", data={"text": text, "rows": rows}))


def write_report_page(registry: Registry, write_file: Callable[[Path], Path], folder: Path) -> None:
    """Make the page of a finished run. What fails there is told, and the run stays finished."""
    try:
        write_file(folder)
    except (HarnessError, OSError) as error:
        text = f"report.html could not be made: {error}; try again: harness report {folder}"
        registry.emit(Event("warning", data={"text": text}))


def _unavailable_metric_errors(spec: Spec, metrics: Mapping[str, Mapping[str, Metric]]) -> Iterator[HarnessError]:
    """What metrics need and is not here."""
    for suite, made in metrics.items():
        for name, metric in made.items():
            try:
                metric.check_available()
            except HarnessError as error:
                place = spec.where(("evaluate", suite, "metrics", name))
                yield HarnessError(f"{place}: {error.where}", error.what, error.hint)
