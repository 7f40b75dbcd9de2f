"""One pass over each suite: the model is read in every way that a metric asks for, then the scores are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.evaluation.answers import GeneratedAnswers
from harness.evaluation.context import BaseModelContext, EvalContext, ModelMeasurement
from harness.evaluation.fingerprint import evaluation_fingerprint, json_digest
from harness.evaluation.likelihood import BaseDivergences, ResponseLikelihoods
from harness.evaluation.multiple_choice import ChoiceLikelihoods
from harness.evaluation.predictions import PredictionsWriter, item_from_example, open_predictions
from harness.evaluation.rolling_likelihood import RollingLikelihoods
from harness.evaluation.scoring import find_limit_violations, score_items
from harness.interfaces.metric import Metric
from harness.interfaces.template import Template
from harness.types import Evaluation, Example, Item, Progress, Suite, no_progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MEASUREMENTS: dict[str, tuple[str, Callable[[EvalContext], ModelMeasurement]]] = {
    "likelihood": ("likelihood", ResponseLikelihoods),
    "base": ("distance from the base", BaseDivergences),
    "choices": ("choices", ChoiceLikelihoods),
    "text": ("text", RollingLikelihoods),
    "answer": ("answers", GeneratedAnswers),
}
"""What `Metric.requires` may be, in the order in which it is read: what it is called on the way, and who reads it."""


def evaluate_suites(
    model: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    suites: Sequence[Suite],
    examples: Mapping[str, Sequence[Example]],
    metrics: Mapping[str, Mapping[str, Metric]],
    *,
    stage: int,
    seed: int,
    max_length: int,
    templates: Mapping[str, Template] = MappingProxyType({}),
    folder: Path | None = None,
    base_context: BaseModelContext | None = None,
    progress: Progress = no_progress,
) -> tuple[Evaluation, ...]:
    """Evaluate the model on every suite, in order; the model is left as it was found.

    model: None will do where every suite has a `server` and metrics of answers alone.
    examples, metrics: by the suite's name; metrics then by their own. stage: 0 for the base model.
    max_length: tokens after which a row is cut at its end, and a prompt at its beginning.
    templates: suite -> its own template, for suites that have one.
    folder: gets `<suite>-stage<k>.jsonl` (see `harness.evaluation.predictions`); None: nothing is written. What a file
        there holds is not asked of the model again, if it was asked of the same weights (base and adapter), in the same
        arithmetic, with the same tokenizer, template, prompt tokens and settings; anything else is.
    base_context: makes a context whose target is the base model, e.g. `lambda: save.base_model(model)` for one with an
        adapter, or `lambda: nullcontext(copy)`. Metrics that read `base` need it after a stage; it costs a second
        forward pass of the reference responses. At stage 0 None means that the model is itself the base.
    progress: phase `evaluate <suite>`, in items; each counts once for each way of reading.

    Nothing is read that no metric asks for. Numbers do not depend on the batch size, beyond rounding. A suite whose
    items break its limits says so in `Evaluation.violations`; fail with `raise_on_violations` when all is saved.
    Raises HarnessError for a suite without rows or with rows that a metric cannot read, RunError when one row does
    not fit into memory or a server fails.
    """
    known = evaluation_fingerprint(model, tokenizer, template) if folder is not None else {}
    with nullcontext() if model is None else eval_mode(model):
        return tuple(
            _SuiteEvaluation(
                EvalContext(
                    model,
                    tokenizer,
                    templates.get(suite.name, template),
                    suite,
                    examples.get(suite.name, ()),
                    stage,
                    seed,
                    max_length,
                    base_context,
                    _ignore_note,
                ),
                progress,
            ).run(metrics[suite.name], folder, known)
            for suite in suites
        )


class _SuiteEvaluation:
    """One suite on its way through the model."""

    def __init__(self, context: EvalContext, progress: Progress) -> None:
        self._context = replace(context, notify=self._report_progress)
        self._progress = progress
        self._done = self._total = 0

    def run(self, metrics: Mapping[str, Metric], folder: Path | None, fingerprint: Mapping[str, str]) -> Evaluation:
        suite, stage = self._context.suite, self._context.stage
        if not self._context.examples:
            hint = "raise held_out of its source, or name a source that has rows"
            raise HarnessError(f"evaluate.{suite.name}", f"the source '{suite.source}' gives it no rows", hint)
        items = [item_from_example(example) for example in self._context.examples]
        wanted = {metric.requires for metric in metrics.values()}
        self._total = len(items) * len(wanted)
        self._report_progress("")
        with open_predictions(folder, suite.name, stage, items, fingerprint) as file:
            if file.changed_keys:
                self._report_progress(
                    f"what is there was made with another {', '.join(file.changed_keys)}: all is made anew"
                )
            for kind in MEASUREMENTS:
                if kind in wanted:
                    self._measure(kind, items, file, fingerprint)
        scores = score_items(items, metrics, suite=suite.name, stage=stage, seed=self._context.seed)
        return Evaluation(stage, suite.name, tuple(items), scores, find_limit_violations(suite, stage, items, scores))

    def _measure(
        self, measurement_type: str, items: list[Item], file: PredictionsWriter, fingerprint: Mapping[str, str]
    ) -> None:
        called, make = MEASUREMENTS[measurement_type]
        reading = make(self._context)
        keys: dict[int, str] = {}
        todo = list(range(len(items)))
        if file.is_writing:
            settings = dict(reading.settings)
            file.start_measurement(measurement_type, settings)
            common = json_digest([dict(fingerprint), measurement_type, settings])
            keys = {index: json_digest([common, reading.request_key(index)]) for index in todo}
            todo = [
                index for index in todo if not self._reuse_stored(measurement_type, index, items, file, keys[index])
            ]

        def finish(index: int, found: Mapping[str, Any]) -> None:
            items[index] = replace(items[index], **found)
            if file.is_writing:
                file.add_fields(items[index], measurement_type, keys[index], found)
            self._advance(called)

        if todo:
            reading.run(todo, finish)

    def _reuse_stored(
        self, measurement_type: str, index: int, items: list[Item], file: PredictionsWriter, request_key: str
    ) -> bool:
        found = file.find_stored_fields(items[index].id, measurement_type, request_key)
        if found is None:
            return False
        items[index] = replace(items[index], **found)
        self._advance(f"{MEASUREMENTS[measurement_type][0]}, kept")
        return True

    def _advance(self, note: str) -> None:
        self._done += 1
        self._report_progress(note)

    def _report_progress(self, note: str) -> None:
        self._progress(self._context.phase, self._done, self._total, note, "items")


def _ignore_note(note: str) -> None:
    """The note of a subject that nobody waits for yet."""


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """Within it every module is in evaluation mode; after it, each is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
