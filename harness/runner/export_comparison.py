"""Compare an exported model with the model of its run, on a sample of the run's items.

For each item the run's model answers greedily. The exported model reads prompt and answer in one pass. It gives this
answer exactly if its most likely token is that of the answer at every position. Otherwise the first such position and
the difference of the two tokens' log-probabilities say how far the models are apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from harness.data.tokenization.prompts import encode_prompt
from harness.data.tokenization.tokenize import tokenize_examples
from harness.errors import HarnessError
from harness.evaluation.generation import Decoding, generate_answers, greedy, resolve_stops
from harness.evaluation.predictions import load_items
from harness.interfaces.exporter import ExportedModel
from harness.runner.trained_model import TrainedModel
from harness.types import IGNORE_INDEX, Example, Item, Message

MAX_ITEMS = 40
"""Items that are compared."""

MAX_TOKENS = 1024
"""Longest row that is compared, in tokens."""

MAX_NEW_TOKENS = 48
"""Longest answer that is compared, in tokens."""

MIN_EQUAL_PROMPTS = 0.9
"""Share of prompts whose tokens must be equal. A text that contains special tokens may differ."""

GAP_FACTOR = 10
"""A different token may be more likely than the run's by this many times the tolerance, in nats."""

DEFAULT_ITEM = Item("default", "What is the capital of France?", "Paris.")
"""What is compared if the run evaluated nothing."""


@dataclass(frozen=True)
class ComparedItem:
    """An item, and what the run's model does with it.

    Attributes:
        text: The prompt, without a template.
        prompt: Tokens of the prompt.
        answer: Tokens of the greedy answer, with the one that ends it.
        row: Tokens of prompt and reference response, as in training.
        targets: Positions of `row` whose tokens are the reference response.
        nll: Negative log-likelihood of the response, in nats.
    """

    text: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    row: tuple[int, ...]
    targets: tuple[int, ...]
    nll: float


@dataclass(frozen=True)
class DifferentAnswer:
    """Where the answer of the exported model first differs.

    Attributes:
        text: The prompt.
        position: Index of the first different token of the answer.
        expected: The token of the run's model.
        actual: The token of the exported model.
        gap: Log-probability of `actual` minus that of `expected` in the exported model, in nats.
    """

    text: str
    position: int
    expected: int
    actual: int
    gap: float


@dataclass(frozen=True)
class ExportComparison:
    """How an exported model compares with its run's.

    Attributes:
        items: Number of items.
        equal_prompts: How many prompts have the same tokens.
        different: The answers that differ.
        nll_difference: Mean difference of the references' log-likelihoods, in nats per token. Where the format rounds,
            a reference of one unlikely token differs much more than others, so the largest says little.
        tolerance: See `ExportedModel.tolerance`.
        missing_stops: Tokens that ended answers of the run and do not end those of the export.
    """

    items: int
    equal_prompts: int
    different: tuple[DifferentAnswer, ...]
    nll_difference: float
    tolerance: float
    missing_stops: tuple[int, ...]


def choose_items(run: Path) -> list[Item]:
    """Return up to `MAX_ITEMS` items of the run, evenly over its suites and over each suite's rows."""
    suites = []
    for file in sorted((run / "predictions").glob("*-stage0.jsonl")):
        items = [item for item in load_items(file) if (item.prompt or "").strip()]
        if items:
            suites.append(items)
    if not suites:
        return [DEFAULT_ITEM]
    share = -(-MAX_ITEMS // len(suites))
    spread = [items[:: max(1, len(items) // share)][:share] for items in suites]
    turns = [suite[index] for index in range(share) for suite in spread if index < len(suite)]
    return turns[:MAX_ITEMS]


def measure_items(trained: TrainedModel, items: Sequence[Item]) -> list[ComparedItem]:
    """Let the run's model answer the items and compute the likelihoods of their references.

    An item without a reference is compared by its answer only.
    """
    examples = [
        Example(item.id, (Message("user", item.prompt), Message("assistant", item.reference or "")), f"item {item.id}")
        for item in items
    ]
    max_length = min(MAX_TOKENS, trained.max_length)
    prompts = {
        index: encode_prompt(row, trained.template, trained.tokenizer, max_length - MAX_NEW_TOKENS)
        for index, row in enumerate(examples)
    }
    answers = _greedy_answers(trained, prompts)
    rows: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    with_reference = [index for index, item in enumerate(items) if (item.reference or "").strip()]
    tokenized = tokenize_examples(
        [examples[index] for index in with_reference], "export", trained.template, trained.tokenizer, max_length
    )
    for index, example in zip(with_reference, tokenized, strict=True):
        targets = tuple(place for place, label in enumerate(example.labels) if label != IGNORE_INDEX and place)
        rows[index] = (tuple(example.input_ids), targets)
    compared = []
    for index, item in enumerate(items):
        tokens, targets = rows.get(index, ((), ()))
        nll = _response_nll(_model_logits(trained.model, tokens), tokens, targets) if targets else 0.0
        prompt, answer = tuple(prompts[index]), tuple(answers[index])
        compared.append(ComparedItem(item.prompt, prompt, answer, tokens, targets, nll))
    return compared


def compare_export(trained: TrainedModel, items: Sequence[ComparedItem], exported: ExportedModel) -> ExportComparison:
    """Compare an exported model with what `measure_items` has measured.

    Args:
        trained: The run's model; only its tokenizer and template are used.
        items: The items.
        exported: The exported model.
    """
    stops = resolve_stops(trained.template, trained.tokenizer)
    ending = {item.answer[-1] for item in items} & ({stops.eos_id} | stops.token_ids)
    equal_prompts, different, differences, targets = 0, [], 0.0, 0
    for item in items:
        equal_prompts += tuple(exported.encode_prompt([{"role": "user", "content": item.text}])) == item.prompt
        difference = _first_difference(item, exported.logits(item.prompt + item.answer[:-1]))
        if difference is not None:
            different.append(difference)
        if item.targets:
            nll = _response_nll(exported.logits(item.row), item.row, item.targets)
            differences, targets = differences + abs(nll - item.nll), targets + len(item.targets)
    missing = tuple(sorted(token for token in ending if token is not None and not exported.ends_answer(token)))
    mean_difference = differences / targets if targets else 0.0
    return ExportComparison(len(items), equal_prompts, tuple(different), mean_difference, exported.tolerance, missing)


def require_agreement(comparison: ExportComparison, folder: Path, tokenizer: Any, remedy: str | None = None) -> None:
    """Raise HarnessError if the exported model differs by more than its number format explains.

    Args:
        comparison: The comparison.
        folder: The folder of the export.
        tokenizer: The run's tokenizer.
        remedy: How to export with more exact numbers; None if there is no way.
    """
    hint = "report it with the spec; the run's own folder `model` is not affected"
    if comparison.missing_stops:
        token = tokenizer.convert_ids_to_tokens(comparison.missing_stops[0])
        raise HarnessError(str(folder), f"the exported model does not stop at {token!r}, which ends answers", hint)
    if comparison.equal_prompts < MIN_EQUAL_PROMPTS * comparison.items:
        what = f"its chat template gives other tokens for {comparison.items - comparison.equal_prompts} prompts"
        raise HarnessError(str(folder), f"{what} of {comparison.items}", hint)
    limit = comparison.tolerance
    if not comparison.nll_difference <= limit:
        what = f"log-likelihoods of the exported model differ by {comparison.nll_difference:.2g} nats per token"
        raise HarnessError(str(folder), f"{what}; {limit:g} is allowed in its number format", remedy or hint)
    worst = max(comparison.different, key=lambda item: item.gap, default=None)
    if worst is not None and not worst.gap <= GAP_FACTOR * limit:
        raise HarnessError(
            str(folder),
            f"an answer differs by {worst.gap:.2g} nats at a token: {_describe_difference(worst, tokenizer)}",
            remedy or hint,
        )


def describe_comparison(comparison: ExportComparison, tokenizer: Any) -> list[str]:
    """Return the result in words: a sentence, and a line for each answer that differs."""
    equal = comparison.items - len(comparison.different)
    parts = [f"{equal} of {comparison.items} answers equal"]
    if comparison.equal_prompts < comparison.items:
        parts.append(f"tokens of {comparison.equal_prompts} prompts equal")
    parts.append(f"log-likelihoods within {comparison.nll_difference:.1g} nats per token")
    lines = [f"verified: {', '.join(parts)}"]
    return [*lines, *(f"  {_describe_difference(item, tokenizer)}" for item in comparison.different)]


def _describe_difference(item: DifferentAnswer, tokenizer: Any) -> str:
    expected, actual = (tokenizer.decode([token]) for token in (item.expected, item.actual))
    prompt = " ".join(item.text.split())
    shown = prompt if len(prompt) <= 60 else prompt[:57] + "..."
    return f"{shown!r}: token {item.position + 1} is {actual!r}, not {expected!r} ({item.gap:.2g} nats more likely)"


def _greedy_answers(trained: TrainedModel, prompts: dict[int, list[int]]) -> dict[int, list[int]]:
    """Return the tokens of each greedy answer, one prompt at a time, so that no padding changes a rounding."""
    answers: dict[int, list[int]] = {index: [] for index in prompts}

    def record(logits: torch.Tensor, keys: Sequence[int]) -> torch.Tensor:
        tokens = greedy(logits, keys)
        for key, token in zip(keys, tokens.tolist(), strict=True):
            answers[key].append(token)
        return tokens

    generate_answers(
        trained.model,
        trained.tokenizer,
        prompts,
        stops=resolve_stops(trained.template, trained.tokenizer),
        decoding=Decoding(MAX_NEW_TOKENS, record, 1, trained.batch_support.cache),
        on_answer=lambda key, answer: None,
    )
    return answers


@torch.no_grad()
def _model_logits(model: Any, tokens: Sequence[int]) -> numpy.ndarray:
    device = next(model.parameters()).device
    logits = model(input_ids=torch.tensor([list(tokens)], device=device)).logits[0]
    result: numpy.ndarray = logits.float().cpu().numpy()
    return result


def _first_difference(item: ComparedItem, logits: numpy.ndarray) -> DifferentAnswer | None:
    """Return where the most likely token first is not that of the answer. logits: (T, V)."""
    for position, expected in enumerate(item.answer):
        row = logits[len(item.prompt) - 1 + position]
        actual = int(row.argmax())
        if actual != expected:
            return DifferentAnswer(item.text, position, expected, actual, float(row[actual] - row[expected]))
    return None


def _response_nll(logits: numpy.ndarray, row: Sequence[int], targets: Sequence[int]) -> float:
    """Return the negative log-likelihood of the tokens at `targets`, in nats, summed in float64."""
    places = numpy.array(targets)
    rows = logits[places - 1].astype(numpy.float64)  # (N, V)
    largest = rows.max(-1)
    normalizers = largest + numpy.log(numpy.exp(rows - largest[:, None]).sum(-1))
    return float((normalizers - rows[numpy.arange(len(places)), numpy.array(row)[places]]).sum())
