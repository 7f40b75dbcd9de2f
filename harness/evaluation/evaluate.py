"""Evaluate a model on suites: measure what the metrics require, then score it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.evaluation import base_cache
from harness.evaluation.answers import GeneratedAnswers
from harness.evaluation.context import EvalContext, ModelMeasurement, ModelToEvaluate
from harness.evaluation.fingerprint import evaluation_fingerprint, json_digest
from harness.evaluation.likelihood import BaseDivergences, ResponseLikelihoods
from harness.evaluation.metric_values import MetricValues, measurement_type
from harness.evaluation.multiple_choice import ChoiceLikelihoods
from harness.evaluation.predictions import (
    PredictionsWriter,
    item_from_example,
    open_predictions,
    tuple_if_sequence,
)
from harness.evaluation.rolling_likelihood import RollingLikelihoods
from harness.evaluation.scoring import find_limit_violations, item_values, score_items
from harness.evaluation.shared_measurement import MeasurementRequest, SharedMeasurement, measure_share
from harness.interfaces.metric import Metric
from harness.types import Evaluation, Example, Item, Progress, Suite, no_progress

MEASUREMENTS: dict[str, tuple[str, Callable[[EvalContext], ModelMeasurement]]] = {
    "likelihood": ("likelihood", ResponseLikelihoods),
    "base": ("divergence from the base", BaseDivergences),
    "choices": ("choices", ChoiceLikelihoods),
    "text": ("text", RollingLikelihoods),
    "answer": ("answers", GeneratedAnswers),
}
"""`Metric.requires` -> its label in progress reports and its measurement, in the order in which they run."""


def evaluate_suites(
    subject: ModelToEvaluate,
    suites: Sequence[Suite],
    examples: Mapping[str, Sequence[Example]],
    metrics: Mapping[str, Mapping[str, Metric]],
    *,
    folder: Path | None = None,
    progress: Progress = no_progress,
) -> tuple[Evaluation, ...]:
    """Evaluate the model on every suite, in order; the modes of its modules are restored.

    Only what a metric requires is measured. Numbers do not depend on the batch size, up to rounding.

    Args:
        subject: The model and how its prompts are built.
        suites: The suites.
        examples: Suite -> its rows.
        metrics: Suite -> metric name -> metric.
        folder: Receives `<suite>-stage<k>.jsonl` (see `harness.evaluation.predictions`); None: nothing is written.
            Predictions that are already stored there are used again. The condition is that weights (base and
            adapter), arithmetic, tokenizer, template, prompt tokens and settings are the same.
        progress: Receives the phase `evaluate <suite>`; each item counts once for each measurement.

    Returns:
        One evaluation per suite. A suite whose items exceed its limits has `Evaluation.violations`; pass the
        evaluations to `raise_on_violations` after saving everything.

    Raises:
        HarnessError: A suite has no rows, or rows that a metric cannot use.
        RunError: A single row does not fit into memory, or a server fails.
    """
    fingerprint = (
        evaluation_fingerprint(subject.model, subject.tokenizer, subject.template) if folder is not None else {}
    )
    with nullcontext() if subject.model is None else eval_mode(subject.model):
        return tuple(
            evaluate_suite(
                subject, suite, examples.get(suite.name, ()), metrics[suite.name], folder, fingerprint, progress
            )
            for suite in suites
        )


def evaluate_suite(
    subject: ModelToEvaluate,
    suite: Suite,
    examples: Sequence[Example],
    metrics: Mapping[str, Metric],
    folder: Path | None,
    fingerprint: Mapping[str, str],
    progress: Progress,
) -> Evaluation:
    """Load stored predictions, measure what is missing, write all predictions, and score them.

    Args:
        subject: The model and how its prompts are built.
        suite: The suite.
        examples: Its rows.
        metrics: Metric name -> metric.
        folder: As in `evaluate_suites`.
        fingerprint: Of model, tokenizer and template; see `evaluation_fingerprint`.
        progress: As in `evaluate_suites`.
    """
    if not examples:
        what, hint = f"the source {suite.source!r} has no rows for it", "raise held_out of the source"
        raise HarnessError(f"evaluate.{suite.name}", what, hint)
    items = [item_from_example(example, suite.group, suite.slice_by) for example in examples]
    required = {metric.requires for metric in metrics.values()}
    computing = {name: metric for name, metric in metrics.items() if metric.computes_values}
    rounds = len(required & MEASUREMENTS.keys()) + len(computing)
    counter = _ProgressCounter(progress, f"evaluate {suite.name}", total=len(items) * rounds)
    context = subject.for_suite(suite, examples, notify=counter.show)
    counter.show("")
    with open_predictions(folder, suite.name, subject.stage, items, fingerprint) as file:
        if file.changed_keys:
            counter.show(f"stored predictions have another {', '.join(file.changed_keys)}: measuring all items again")
        for requirement, (label, create_measurement) in MEASUREMENTS.items():
            if requirement in required:
                if suite.server is None and context.processes.world_size > 1:
                    measurement: ModelMeasurement = SharedMeasurement(context, requirement, create_measurement)
                else:
                    measurement = create_measurement(context)
                fields = _measure_items(
                    (requirement, label, measurement),
                    context,
                    items,
                    file,
                    fingerprint,
                    counter,
                    use_cache=subject.use_cache and suite.server is None,  # else the answers are not the model's
                )
                items = [replace(item, **measured) for item, measured in zip(items, fields, strict=True)]
        computed = {}
        for name, metric in computing.items():
            values = (measurement_type(name), name, MetricValues(name, metric, items, context))
            fields = _measure_items(values, context, items, file, fingerprint, counter, use_cache=False)
            computed[name] = [each["computed"][name] for each in fields]
    file.finalize(items)  # complete, even if a metric then fails
    scores = score_items(items, metrics, suite=suite.name, stage=subject.stage, computed=computed)
    file.finalize(items, {score.name: item_values(score, metrics[score.metric]) for score in scores})
    violations = find_limit_violations(suite, subject.stage, items, scores)
    return Evaluation(subject.stage, suite.name, tuple(items), scores, violations, file.is_from_cache)


def measure_for_main_process(
    subject: ModelToEvaluate, suite: Suite, examples: Sequence[Example], request: MeasurementRequest
) -> dict[int, Mapping[str, Any]]:
    """Measure this process's share of what the main process requests. Nothing is written.

    Args:
        subject: As the main process has it.
        suite: The suite that the request names.
        examples: Its rows.
        request: What to measure.

    Returns:
        Item -> its measured fields.
    """
    measured: dict[int, Mapping[str, Any]] = {}
    _, create_measurement = MEASUREMENTS[request.requirement]
    context = subject.for_suite(suite, examples, notify=lambda note: None)
    with eval_mode(subject.model):
        measure_share(context, create_measurement, request.todo, measured.__setitem__)
    return measured


def _measure_items(
    named_measurement: tuple[str, str, ModelMeasurement],
    context: EvalContext,
    items: Sequence[Item],
    file: PredictionsWriter,
    fingerprint: Mapping[str, str],
    counter: _ProgressCounter,
    *,
    use_cache: bool,
) -> list[Mapping[str, Any]]:
    """Return the fields of one measurement for each item: stored or cached ones, and those that are missing.

    Args:
        named_measurement: Its name in the file, its label in progress reports, and the measurement.
        context: The model and the suite.
        items: The items.
        file: Has the stored fields, and receives new ones.
        fingerprint: Of model, tokenizer and template.
        counter: Counts the items.
        use_cache: Whether the fields of the base model may come from `base_cache`.
    """
    requirement, label, measurement = named_measurement
    request_keys: dict[int, str] = {}
    cache_key: str | None = None
    measured: dict[int, Mapping[str, Any]] = {}
    missing = list(range(len(items)))
    if file.is_writing:
        settings = dict(measurement.settings)
        file.start_measurement(requirement, settings)
        common_key = json_digest([dict(fingerprint), requirement, settings])
        request_keys = {index: json_digest([common_key, measurement.request_key(index)]) for index in missing}
        stored = {
            index: file.find_stored_fields(items[index].id, requirement, request_keys[index]) for index in missing
        }
        missing = [index for index in missing if stored[index] is None]
        for index, fields in stored.items():
            if fields is not None:
                measured[index] = fields
                counter.advance(f"{label}, stored")
        if use_cache:
            keys = [request_keys[index] for index in range(len(items))]
            split = [context.processes.world_size] if context.processes.world_size > 1 else []
            batches = [context.suite.batch_size, asdict(context.batch_support), *split]
            cache_key = base_cache.measurement_key(context.stage, fingerprint, requirement, settings, keys, batches)

    def on_item(index: int, fields: Mapping[str, Any], note: str = label) -> None:
        measured[index] = fields
        if file.is_writing:
            file.add_fields(items[index], requirement, request_keys[index], fields)
        counter.advance(note)

    if not missing:
        return [measured[index] for index in range(len(items))]
    cached = None if cache_key is None else base_cache.load_measurement(cache_key, len(items))
    if cached is not None:
        file.mark_as_cached(requirement)
        for index in missing:
            on_item(
                index,
                {name: tuple_if_sequence(name, value) for name, value in cached[index].items()},
                f"{label}, cached",
            )
    else:
        measurement.run(missing, on_item)
    all_fields = [measured[index] for index in range(len(items))]
    # Measured together: answers of a part of the items have been in other batches.
    if cached is None and cache_key is not None and len(missing) == len(items):
        base_cache.save_measurement(cache_key, all_fields)
    return all_fields


class _ProgressCounter:
    """Counts measured items and reports them."""

    def __init__(self, progress: Progress, phase: str, total: int) -> None:
        self._progress, self._phase, self._total = progress, phase, total
        self._done = 0

    def advance(self, note: str) -> None:
        """Count one item and report it with a note."""
        self._done += 1
        self.show(note)

    def show(self, note: str) -> None:
        """Report the current count with a note."""
        self._progress(self._phase, self._done, self._total, note, "items")


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """Put every module into evaluation mode within the context, and restore each module's mode after it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
