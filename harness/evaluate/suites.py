"""One pass over each suite: likelihoods where a metric reads them, answers where one does, then the scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.contracts import Evaluation, Example, Item, Metric, Progress, Suite, Template, silent
from harness.data.encode import encode_all, encode_prompt
from harness.errors import HarnessError
from harness.evaluate.batches import in_batches, longest_first
from harness.evaluate.generate import Answer, generate
from harness.evaluate.items import Write, item_file, prompt_text
from harness.evaluate.likelihood import response_nll
from harness.evaluate.scores import score_items
from harness.evaluate.stops import find_stops

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_LOGITS = 1 << 28
"""Logits held at once when likelihoods are taken: 1 GiB in float32."""

_UNCUT = 1 << 40
"""A length that cuts nothing."""


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    suites: Sequence[Suite],
    examples: Mapping[str, Sequence[Example]],
    metrics: Mapping[str, Mapping[str, Metric]],
    *,
    stage: int,
    seed: int,
    max_length: int,
    folder: Path | None = None,
    progress: Progress = silent,
) -> tuple[Evaluation, ...]:
    """Evaluate the model on every suite, in order; the model is left as it was found.

    examples, metrics: by the suite's name; metrics then by their own. stage: 0 for the base model.
    max_length: tokens after which a row is cut at its end, and a prompt at its beginning.
    folder: gets `<suite>-stage<k>.jsonl`, an item a line as it finishes; None: nothing is written.
    progress: phase `evaluate <suite>`, in items; each counts once for its likelihood and once for its answer.

    Answers are generated only for metrics that read them, likelihoods likewise. They do not depend on the batch size,
    beyond rounding. Raises HarnessError for a suite without rows, RunError when one row does not fit into memory.
    """
    with _still(model):
        return tuple(
            _Pass(model, tokenizer, template, suite, stage, max_length, progress).run(
                examples.get(suite.name, ()), metrics[suite.name], seed, folder
            )
            for suite in suites
        )


class _Pass:
    """One suite on its way through the model."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        template: Template,
        suite: Suite,
        stage: int,
        max_length: int,
        progress: Progress,
    ) -> None:
        self._model, self._tokenizer, self._template = model, tokenizer, template
        self._suite, self._stage, self._max_length = suite, stage, max_length
        self._progress, self._phase = progress, f"evaluate {suite.name}"
        self._done = self._total = 0
        self._extra: dict[int, dict[str, Any]] = {}

    def run(
        self, examples: Sequence[Example], metrics: Mapping[str, Metric], seed: int, folder: Path | None
    ) -> Evaluation:
        suite = self._suite
        if not examples:
            hint = "raise held_out of its source, or name a source that has rows"
            raise HarnessError(f"evaluate.{suite.name}", f"the source '{suite.source}' gives it no rows", hint)
        items = [Item(one.id, prompt_text(one), one.messages[-1].content) for one in examples]
        reads = {metric.reads for metric in metrics.values()}
        self._total = len(items) * len(reads)
        self._tell("")
        with item_file(folder, suite.name, self._stage) as write:
            if "likelihood" in reads:
                self._likelihoods(examples, items, write if "answer" not in reads else None)
            if "answer" in reads:
                self._answers(examples, items, write)
        scores = score_items(items, metrics, suite=suite.name, stage=self._stage, seed=seed)
        return Evaluation(self._stage, suite.name, tuple(items), scores)

    def _likelihoods(self, examples: Sequence[Example], items: list[Item], write: Write | None) -> None:
        encoded = encode_all(examples, self._suite.source, self._template, self._tokenizer, self._max_length)
        rows = [one.row for one in encoded]
        finished: set[int] = set()

        def finish(index: int, nll: float) -> None:
            items[index] = replace(items[index], nll=nll, tokens=rows[index].loss_tokens)
            self._extra[index] = {"row_cut": encoded[index].cut > 0}
            if write:
                write(items[index], self._extra[index])
            finished.add(index)
            self._step("likelihood")

        def work(batch: list[int]) -> None:
            nlls = response_nll(self._model, [rows[index] for index in batch], self._tokenizer.pad_token_id)
            for index, nll in zip(batch, nlls, strict=True):
                finish(index, nll)

        order = longest_first([len(row.input_ids) for row in rows])
        for index in order:
            # Cut before its response: it stays an item, so that items pair with those of other stages.
            if not rows[index].loss_tokens:
                finish(index, 0.0)
        vocabulary = self._model.config.get_text_config().vocab_size
        in_batches(
            [index for index in order if rows[index].loss_tokens],
            self._suite.batch_size,
            work,
            finished,
            where=self._phase,
            note=self._tell,
            cost=lambda index: rows[index].loss_tokens * vocabulary,
            budget=_LOGITS,
        )

    def _answers(self, examples: Sequence[Example], items: list[Item], write: Write) -> None:
        room = self._prompt_room()
        prompts = [self._encode_prompt(example, room) for example in examples]
        stops = find_stops(self._template, self._tokenizer)
        finished: set[int] = set()

        def finish(index: int, answer: Answer) -> None:
            items[index] = replace(items[index], answer=answer.text, finish=answer.finish)
            prompt = prompts[index]
            cut = len(prompt) == room and len(self._encode_prompt(examples[index], _UNCUT)) > room
            extra = {"prompt_tokens": len(prompt), "answer_tokens": answer.tokens, "prompt_cut": cut}
            write(items[index], {**self._extra.get(index, {}), **extra})
            finished.add(index)
            self._step("answers")

        def work(batch: list[int]) -> None:
            generate(
                self._model,
                self._tokenizer,
                {index: prompts[index] for index in batch},
                stops=stops,
                max_new_tokens=self._suite.max_new_tokens,
                finished=finish,
            )

        order = longest_first([len(prompt) for prompt in prompts])
        in_batches(order, self._suite.batch_size, work, finished, where=self._phase, note=self._tell)

    def _encode_prompt(self, example: Example, max_length: int) -> list[int]:
        return encode_prompt(example, self._template, self._tokenizer, max_length)

    def _prompt_room(self) -> int:
        """The tokens that a prompt may have, so that the answer still has positions that the model knows."""
        known = getattr(self._model.config, "max_position_embeddings", None) or _UNCUT
        room = min(self._max_length, known - self._suite.max_new_tokens)
        if room < 1:
            new = self._suite.max_new_tokens
            what = f"{new} leaves a prompt no room in the model's {known} positions"
            raise HarnessError(f"evaluate.{self._suite.name}.max_new_tokens", what, f"choose less than {known}")
        return room

    def _step(self, note: str) -> None:
        self._done += 1
        self._tell(note)

    def _tell(self, note: str) -> None:
        self._progress(self._phase, self._done, self._total, note, "items")


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
