"""Preparation of a run: plan, components, tokenizer and tokenized rows.

Loads no weights and creates no run folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.data import prepare as prepare_module
from harness.data.checks import findings as findings_module
from harness.data.checks import plugin_checks
from harness.data.checks.rendered_rows import turn_markers
from harness.data.reading.row_formats import with_row_format
from harness.data.tokenization import fingerprints
from harness.distributed.processes import SINGLE_PROCESS, Processes
from harness.errors import HarnessError, raise_all
from harness.evaluation import row_requirements
from harness.events import ProgressUpdated, WarningRaised
from harness.interfaces.check import Check
from harness.interfaces.metric import Metric
from harness.interfaces.template import Template
from harness.model import locate, model_config
from harness.model.added_tokens import replaced_pad_token
from harness.model.tokenizer import load_tokenizer
from harness.model.unpadded_rows import longest_unpadded_row
from harness.registry import RESERVED_NAMES, Registry
from harness.runner import bounded_plan, embedding_rows, rows_to_write
from harness.runner.trackers import unavailable_tracker_errors
from harness.spec import plan as plan_module
from harness.spec import preflight
from harness.spec.error_locations import locate_errors
from harness.spec.spec import Spec
from harness.spec_keys.data import NEAR_DUPLICATES_KEYS
from harness.types import Plan, Progress
from harness.utils import stop_signals
from harness.utils.shell_commands import harness_command

TokenizerLoader = Callable[[locate.ModelLocation, Mapping[str, Any]], Any]
"""Returns the tokenizer of a model, for the spec's `model`."""


class ModelUnreachable(HarnessError):
    """The hub model that the spec names cannot be downloaded and is not cached."""


@dataclass(frozen=True)
class PreparedRun:
    """Everything that is known before a model is loaded.

    Attributes:
        plan: The plan.
        location: Where the model is stored.
        tokenizer: The model's tokenizer.
        template: The chat template for training.
        data: The tokenized rows of stages and suites.
        metrics: Suite -> name -> metric.
        templates: Suite -> its own template, for suites that have one.
        findings: Findings of the data checks; None if they did not run.
        seconds: How long the preparation took.
        options: How the data was prepared.
    """

    plan: Plan
    location: locate.ModelLocation
    tokenizer: Any
    template: Template
    data: prepare_module.PreparedData
    metrics: Mapping[str, Mapping[str, Metric]]
    templates: Mapping[str, Template] = field(default_factory=dict)
    findings: findings_module.Findings | None = None
    seconds: float = 0.0
    options: prepare_module.PreparationOptions = field(default_factory=prepare_module.PreparationOptions)

    @property
    def max_length(self) -> int:
        """The longest `max_length` of all stages, in tokens. Suites are evaluated with it."""
        return max(int(stage.train["max_length"]) for stage in self.plan.stages)

    def requires_base_model(self) -> bool:
        """Return whether a metric compares the model with the base model."""
        return any(metric.requires == "base" for suite in self.metrics.values() for metric in suite.values())


def prepare_run(
    spec: Spec,
    registry: Registry,
    *,
    plan: Plan | None = None,
    use_shares: bool = True,
    load_light: TokenizerLoader | None = None,
    processes: Processes = SINGLE_PROCESS,
    invalid_rows_folder: Path | None = None,
) -> PreparedRun:
    """Prepare everything that a run needs before a model is loaded.

    The main process writes every invalid row of a source to a file of its own.

    Args:
        spec: The spec, without arms.
        registry: The components.
        plan: The plan of the spec, if it is built already.
        use_shares: False ignores the mixture shares, so that rows can be shown whose mixture is not reachable. For
            commands that train nothing.
        load_light: Loads the tokenizer of a command that loads no model, as `load_light_tokenizer` does; None if the
            command loads the model.
        processes: The processes that share the training.
        invalid_rows_folder: The folder of the files `<source>.jsonl`; None: `<output>/<name>-rejected`.

    Raises:
        HarnessError: If the spec, the model or the data is invalid.
    """
    progress = create_progress(registry)
    plan = bounded_plan.build_bounded_plan(spec, registry) if plan is None else plan
    if not use_shares:
        plan = replace(plan, stages=tuple(replace(stage, shares=()) for stage in plan.stages))
    _emit_warnings(registry, plan.warnings)
    metrics = preflight.preflight(spec, plan, registry, will_train=use_shares)
    raise_all(preflight.unavailable_metric_errors(spec, metrics))
    raise_all(preflight.unavailable_optimizer_errors(spec, plan, registry))
    raise_all(plugin_checks.unavailable_check_errors(create_checks(spec, registry)))
    if load_light is None:
        raise_all(unavailable_tracker_errors(spec, registry))
    location, tokenizer = _load_tokenizer(spec, plan, progress, load_light or load_tokenizer)
    config = model_config.load_located_config(location)
    if pad_warning := replaced_pad_token(tokenizer, (location.base or location).added):
        plan = replace(plan, warnings=(*plan.warnings, pad_warning))
        _emit_warnings(registry, [pad_warning])
    if config is not None:
        earlier_warnings = plan.warnings
        plan = bounded_plan.bound_plan(plan, config, registry)
        _emit_warnings(registry, plan.warnings[len(earlier_warnings) :])
    _require_precision(plan.train["precision"])
    template = registry.create("templates", *plan.template)
    templates = {suite.name: registry.create("templates", *suite.template) for suite in plan.suites if suite.template}
    raise_all(rows_to_write.missing_chat_template_errors(spec, plan, registry, tokenizer))
    if not spec.document["checks"]["other_template"]:
        folder = Path(location.path) if location.kind in ("folder", "run") else None
        raise_all(fingerprints.template_mismatches(plan, template, templates, tokenizer, folder, spec.where))
    invalid_rows_folder = invalid_rows_folder or Path(spec.document["output"]) / f"{plan.name}-rejected"
    options = prepare_module.PreparationOptions(
        extra_sources=plan_module.list_named_sources(spec, "mitigations"),
        suite_templates=templates,
        invalid_rows_folder=invalid_rows_folder if processes.is_main else None,
        source_options={name: with_row_format(source[1], registry) for name, source in plan.sources.items()},
        processes=processes.world_size,
        longest_unpadded_row=longest_unpadded_row(config, plan.model["attention"]),
        mode=registry.create("modes", *plan.mode),
        drop_shared_rows=spec.document["checks"]["duplicates"] == "drop",
        drop_contaminated=_dropped_contamination(spec),
        near_duplicate_threshold=_near_duplicate_threshold(spec),
    )
    with locate_errors(spec):
        data = prepare_module.prepare_data(
            plan,
            {name: registry.create("sources", *source) for name, source in plan.sources.items()},
            template,
            tokenizer,
            options,
            progress=progress,
        )
        for suite in plan.suites:
            requirements = {metric.requires for metric in metrics[suite.name].values()}
            row_requirements.check_suite_rows(suite, data.suite_examples[suite.name], requirements)
    if not location.added and not (location.base and location.base.added):
        rows = model_config.embedding_rows(config)
        raise_all(embedding_rows.missing_row_errors(plan, data, tokenizer, rows))
    if config is not None:
        cut_prompts = bounded_plan.cut_prompt_warnings(plan.suites, data.tokenized_suites, config, registry)
        data = replace(data, warnings=(*data.warnings, *cut_prompts))
    _emit_warnings(registry, data.warnings)
    return PreparedRun(plan, location, tokenizer, template, data, metrics, templates, options=options)


def _dropped_contamination(spec: Spec) -> Mapping[str, Any] | None:
    """Return the spec's `checks.contamination` if it says which rows are left out."""
    settings: Mapping[str, Any] | None = spec.document["checks"]["contamination"]
    return settings if settings is not None and settings["drop"] else None


def _near_duplicate_threshold(spec: Spec) -> float:
    """Return the threshold of `checks.near_duplicates`, which `held_out` uses too; its default if it is disabled."""
    settings = spec.document["checks"]["near_duplicates"] or {}
    threshold: float = settings.get("threshold", NEAR_DUPLICATES_KEYS["threshold"]["default"])
    return threshold


def prepare_checked_run(
    spec: Spec,
    registry: Registry,
    *,
    plan: Plan | None = None,
    load_light: TokenizerLoader | None = None,
    processes: Processes = SINGLE_PROCESS,
    invalid_rows_folder: Path | None = None,
) -> PreparedRun:
    """Prepare a run and check its data; the result holds the findings.

    Args:
        spec: The spec, without arms.
        registry: The components.
        plan: The plan of the spec, if it is built already.
        load_light: As for `prepare_run`.
        processes: The processes that share the training.
        invalid_rows_folder: As for `prepare_run`.

    Raises:
        HarnessError: As `prepare_run`, and if a data check fails.
    """
    started_at = time.monotonic()
    prepared = prepare_run(
        spec,
        registry,
        plan=plan,
        load_light=load_light,
        processes=processes,
        invalid_rows_folder=invalid_rows_folder,
    )
    findings = analyze_prepared_data(spec, prepared, registry)
    with locate_errors(spec):
        raise_all(findings.failures)
    return replace(prepared, findings=findings, seconds=time.monotonic() - started_at)


def analyze_prepared_data(spec: Spec, prepared: PreparedRun, registry: Registry) -> findings_module.Findings:
    """Search the prepared data for duplicates, contamination and truncated rows, and emit the warnings.

    Returns:
        The findings; the caller decides what to do about their `failures`.
    """
    progress = create_progress(registry)
    checks = create_checks(spec, registry)
    training, suites = prepared.data.training_examples, prepared.data.suite_examples
    findings = findings_module.analyze_data(
        training,
        suites,
        spec.document["checks"],
        seed=prepared.plan.seed,
        fully_truncated=prepared.data.fully_truncated,
        markers=turn_markers(prepared.tokenizer, prepared.template),
        progress=progress,
    ).with_check_results(plugin_checks.run_plugin_checks(checks, training, suites, progress))
    _emit_warnings(registry, findings.warnings)
    return findings


def create_checks(spec: Spec, registry: Registry) -> dict[str, tuple[Check, float | None]]:
    """Return the checks of plugins that a spec names: name -> the check, and its largest allowed share of rows."""
    names = [name for name in spec.document["checks"] if name not in RESERVED_NAMES["checks"]]
    options = {name: spec.document["checks"][name] for name in names}
    return {name: (registry.create("checks", name, options[name]), options[name]["allowed"]) for name in names}


def create_progress(registry: Registry) -> Progress:
    """Return a `Progress` that emits each update as an event, and raises `Interrupted` if a signal was received."""

    def progress(phase: str, done: int, total: int, note: str = "", unit: str = "") -> None:
        stop_signals.raise_if_requested()
        registry.emit(ProgressUpdated(phase=phase, done=done, total=total, note=note, unit=unit))

    return progress


def write_report_page(registry: Registry, write_file: Callable[[Path], Path], folder: Path) -> None:
    """Write report.html of a finished run or experiment.

    A failure is emitted as a warning: the run stays finished.

    Args:
        registry: Receives the warning.
        write_file: Writes the page of a folder.
        folder: The folder of the run or experiment.
    """
    try:
        write_file(folder)
    except (HarnessError, OSError) as error:
        text = f"cannot write report.html: {error}; try again: {harness_command('report', folder)}"
        registry.emit(WarningRaised(text=text))


def _require_precision(precision: str) -> None:
    """Require a device that supports the precision. Every device supports `auto` and `float32`."""
    if precision not in ("auto", "float32"):
        from harness.model import device  # imports torch

        device.resolve_dtype(precision, device.select_device())


def _load_tokenizer(
    spec: Spec, plan: Plan, progress: Progress, load: TokenizerLoader
) -> tuple[locate.ModelLocation, Any]:
    """Locate the model and load its tokenizer. An error names the key of the spec."""
    error_class: type[HarnessError] = HarnessError
    try:
        location = locate.resolve_model(plan.model, output=spec.document["output"], progress=progress)
        if (location.base or location).kind == "hub":
            error_class = ModelUnreachable
        return location, load(location, plan.model)
    except HarnessError as error:
        names_its_key = error.where.startswith("model.")
        where = spec.where(tuple(error.where.split(".")) if names_its_key else ("model", "path"))
        raise error_class(where if names_its_key else f"{where}: {error.where}", error.what, error.hint) from error


def _emit_warnings(registry: Registry, warnings: Iterable[str]) -> None:
    """Emit warnings that `data.json` also holds. A warning is its text and the lines of its rows."""
    for warning in warnings:
        text, *rows = warning.split("\n")
        registry.emit(WarningRaised(text=text, rows=rows))
