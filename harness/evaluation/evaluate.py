"""One pass over each suite: the model is read in every way that a metric asks for, then the scores are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.evaluation.answers import Answers
from harness.evaluation.context import Base, Reading, Subject
from harness.evaluation.fingerprint import digest, identity
from harness.evaluation.likelihood import Divergences, Likelihoods
from harness.evaluation.multiple_choice import Choices
from harness.evaluation.predictions import ItemFile, item_file, item_of
from harness.evaluation.rolling_likelihood import Texts
from harness.evaluation.scoring import breaches, score
from harness.interfaces.metric import Metric
from harness.interfaces.template import Template
from harness.types import Evaluation, Example, Item, Progress, Suite, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

READINGS: dict[str, tuple[str, Callable[[Subject], Reading]]] = {
    "likelihood": ("likelihood", Likelihoods),
    "base": ("distance from the base", Divergences),
    "choices": ("choices", Choices),
    "text": ("text", Texts),
    "answer": ("answers", Answers),
}
"""What `Metric.reads` may be, in the order in which it is read: what it is called on the way, and who reads it."""


def evaluate(
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
    base: Base | None = None,
    progress: Progress = silent,
) -> tuple[Evaluation, ...]:
    """Evaluate the model on every suite, in order; the model is left as it was found.

    model: None will do where every suite has a `server` and metrics of answers alone.
    examples, metrics: by the suite's name; metrics then by their own. stage: 0 for the base model.
    max_length: tokens after which a row is cut at its end, and a prompt at its beginning.
    templates: suite -> its own template, for suites that have one.
    folder: gets `<suite>-stage<k>.jsonl` (see `harness.evaluation.predictions`); None: nothing is written. What a file
        there holds is not asked of the model again, if it was asked of the same weights (base and adapter), in the same
        arithmetic, with the same tokenizer, template, prompt tokens and settings; anything else is.
    base: makes a context whose target is the base model, e.g. `lambda: harness.model.base(net)` for one with an
        adapter, or `lambda: nullcontext(copy)`. Metrics that read `base` need it after a stage; it costs a second
        forward pass of the reference responses. At stage 0 None means that the model is itself the base.
    progress: phase `evaluate <suite>`, in items; each counts once for each way of reading.

    Nothing is read that no metric asks for. Numbers do not depend on the batch size, beyond rounding. A suite whose
    items break its limits says so in `Evaluation.breaches`; fail with `evaluate.require` when all is saved.
    Raises HarnessError for a suite without rows or with rows that a metric cannot read, RunError when one row does
    not fit into memory or a server fails.
    """
    known = identity(model, tokenizer, template) if folder is not None else {}
    with nullcontext() if model is None else _still(model):
        return tuple(
            _Pass(
                Subject(
                    model,
                    tokenizer,
                    templates.get(suite.name, template),
                    suite,
                    examples.get(suite.name, ()),
                    stage,
                    seed,
                    max_length,
                    base,
                    _unheard,
                ),
                progress,
            ).run(metrics[suite.name], folder, known)
            for suite in suites
        )


class _Pass:
    """One suite on its way through the model."""

    def __init__(self, subject: Subject, progress: Progress) -> None:
        self._subject = replace(subject, note=self._tell)
        self._progress = progress
        self._done = self._total = 0

    def run(self, metrics: Mapping[str, Metric], folder: Path | None, known: Mapping[str, str]) -> Evaluation:
        suite, stage = self._subject.suite, self._subject.stage
        if not self._subject.examples:
            hint = "raise held_out of its source, or name a source that has rows"
            raise HarnessError(f"evaluate.{suite.name}", f"the source '{suite.source}' gives it no rows", hint)
        items = [item_of(example) for example in self._subject.examples]
        wanted = {metric.reads for metric in metrics.values()}
        self._total = len(items) * len(wanted)
        self._tell("")
        with item_file(folder, suite.name, stage, items, known) as file:
            if file.left_aside:
                self._tell(f"what is there was made with another {', '.join(file.left_aside)}: all is made anew")
            for kind in READINGS:
                if kind in wanted:
                    self._read(kind, items, file, known)
        scores = score(items, metrics, suite=suite.name, stage=stage, seed=self._subject.seed)
        return Evaluation(stage, suite.name, tuple(items), scores, breaches(suite, stage, items, scores))

    def _read(self, kind: str, items: list[Item], file: ItemFile, known: Mapping[str, str]) -> None:
        called, make = READINGS[kind]
        reading = make(self._subject)
        keys: dict[int, str] = {}
        todo = list(range(len(items)))
        if file.kept:
            settings = dict(reading.settings)
            file.begin(kind, settings)
            common = digest([dict(known), kind, settings])
            keys = {index: digest([common, reading.asked(index)]) for index in todo}
            todo = [index for index in todo if not self._recall(kind, index, items, file, keys[index])]

        def finish(index: int, found: Mapping[str, Any]) -> None:
            items[index] = replace(items[index], **found)
            if file.kept:
                file.add(items[index], kind, keys[index], found)
            self._step(called)

        if todo:
            reading.run(todo, finish)

    def _recall(self, kind: str, index: int, items: list[Item], file: ItemFile, key: str) -> bool:
        found = file.find(items[index].id, kind, key)
        if found is None:
            return False
        items[index] = replace(items[index], **found)
        self._step(f"{READINGS[kind][0]}, kept")
        return True

    def _step(self, note: str) -> None:
        self._done += 1
        self._tell(note)

    def _tell(self, note: str) -> None:
        self._progress(self._subject.phase, self._done, self._total, note, "items")


def _unheard(note: str) -> None:
    """The note of a subject that nobody waits for yet."""


@contextmanager
def _still(model: Any) -> Iterator[None]:
    """Within it every module is in evaluation mode; after it, each is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
