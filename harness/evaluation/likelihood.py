"""Likelihoods of reference responses, and the divergence of the model from the base model on them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from harness.data.tokenization.tokenize import tokenize_examples
from harness.errors import HarnessError
from harness.evaluation import fingerprint
from harness.evaluation.batching import longest_first, run_in_batches
from harness.evaluation.context import EvalContext, ItemCallback
from harness.evaluation.generation import UndefinedLogits
from harness.evaluation.row_batch import RowBatch, RowGroup, build_line_batch, build_padded_batch, line_tokens
from harness.model.row_attention import supports_row_attention
from harness.types import TokenizedExample

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _ReferenceResponses:
    """Measures the trained tokens of rows that are tokenized as in training."""

    models_in_memory = 1
    """Number of models whose logits are in memory at the same time."""

    def __init__(self, context: EvalContext) -> None:
        self._context = context

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the result depends on besides model, tokenizer and template."""
        return {"max_length": self._context.max_length}

    @cached_property
    def _rows(self) -> list[TokenizedExample]:
        context = self._context
        return tokenize_examples(
            context.examples, context.suite.source, context.template, context.tokenizer, context.max_length
        )

    def request_key(self, index: int) -> Any:
        """Return the token ids and labels of the item's row."""
        row = self._rows[index]
        return [list(row.input_ids), list(row.labels)]

    def run(self, todo: Sequence[int], on_item: ItemCallback) -> None:
        """Measure the items `todo`; see `ModelMeasurement.run`."""

        def on_row(index: int, fields: Sequence[Mapping[str, Any]]) -> None:
            row = self._rows[index]
            on_item(index, {**fields[0], "tokens": row.loss_tokens, "row_cut": row.tokens_cut > 0})

        for index in todo:
            # A row truncated before its response stays an item, so that items pair with those of other stages.
            if not self._rows[index].loss_tokens:
                on_row(index, [self._empty_result()])
        measure_rows(
            self._context,
            {index: (row,) for index, row in enumerate(self._rows) if row.loss_tokens},
            todo,
            self._measure_batch,
            on_row,
            models_in_memory=self.models_in_memory,
        )

    def _empty_result(self) -> Mapping[str, Any]:
        raise NotImplementedError

    def _measure_batch(self, batch: RowBatch) -> Sequence[Mapping[str, Any]]:
        raise NotImplementedError


class ResponseLikelihoods(_ReferenceResponses):
    """Negative log-likelihood of each reference response."""

    def _empty_result(self) -> Mapping[str, Any]:
        return {"nll": 0.0}

    def _measure_batch(self, batch: RowBatch) -> Sequence[Mapping[str, Any]]:
        return [{"nll": nll} for nll in response_nll(self._context.require_model(), batch)]


class BaseDivergences(_ReferenceResponses):
    """KL divergence from the base model and agreement with it, over each reference response.

    Both models run each time. Storing the base model's distributions would take 100 kB per token for a vocabulary of
    50,000. Storing only the most likely tokens would not be exact.
    """

    models_in_memory = 2

    def __init__(self, context: EvalContext) -> None:
        super().__init__(context)
        if context.stage and context.base_context is None:
            what = "a metric needs the base model, which is not available after a stage that trained all weights"
            hint = "train an adapter, e.g. lora, or pass base_context to ModelToEvaluate"
            raise HarnessError(f"evaluate.{context.suite.name}", what, hint)
        self._base_context = context.base_context  # None before the first stage: the model is the base

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the result depends on, including the digests of the base model."""
        if self._base_context is None:
            return {**super().settings, "base": "itself"}
        with self._base_context() as reference:
            return {**super().settings, "base": "/".join(fingerprint.model_fingerprint(reference))}

    def _empty_result(self) -> Mapping[str, Any]:
        return {"kl": 0.0, "agreed": 0}

    def _measure_batch(self, batch: RowBatch) -> Sequence[Mapping[str, Any]]:
        if self._base_context is None:
            return [{"kl": 0.0, "agreed": count} for count in batch.target_counts]
        divergences = response_divergence(self._context.require_model(), self._base_context(), batch)
        return [{"kl": kl, "agreed": agreed} for kl, agreed in divergences]


def measure_rows(
    context: EvalContext,
    groups: Mapping[int, RowGroup],
    todo: Iterable[int],
    measure_batch: Callable[[RowBatch], Sequence[Mapping[str, Any]]],
    on_group: Callable[[int, Sequence[Mapping[str, Any]]], None],
    *,
    models_in_memory: int = 1,
) -> None:
    """Measure groups of rows, longest first, in batches that are the same whatever is measured already.

    A batch with a group of `todo` is measured as a whole, so that a resumed evaluation repeats an interrupted batch and
    gets its numbers bit for bit. Rows are on one line of up to `MAX_LINE_TOKENS`, and rows of a group share their
    beginning. A model that cannot compute a line gets padded batches of single rows.

    Args:
        context: The model and the suite.
        groups: Key -> rows, for all items of the suite.
        todo: The keys of the groups to report.
        measure_batch: Returns the measured fields of each row of a batch.
        on_group: Receives the key of each group of `todo` and the measured fields of its rows, after their batch.
        models_in_memory: Number of models whose logits are in memory at the same time.

    Raises:
        UndefinedLogits: A measured field is NaN.
        RunError: A single row does not fit into memory.
    """
    model, wanted = context.require_model(), set(todo)
    longest = max((len(row.input_ids) for group in groups.values() for row in group), default=0)
    on_line = context.batch_support.lines and supports_row_attention(model, longest)
    units: list[tuple[int, int, RowGroup]]  # what is never divided: key, index of its first row, rows
    if on_line:
        units = [(key, 0, group) for key, group in groups.items()]
    else:
        units = [(key, index, (row,)) for key, group in groups.items() for index, row in enumerate(group)]
    measured: dict[int, dict[int, Mapping[str, Any]]] = defaultdict(dict)  # key -> row -> fields
    vocabulary_size = model.config.get_text_config().vocab_size

    def process_batch(batch: list[int]) -> None:
        rows = [
            (key, index)
            for key, first, group in (units[unit] for unit in batch)
            for index, _ in enumerate(group, first)
        ]
        keys = dict.fromkeys(key for key, _ in rows)
        if wanted.isdisjoint(keys):
            return
        row_groups = [units[unit][2] for unit in batch]
        row_batch = build_line_batch(row_groups) if on_line else build_padded_batch(row_groups, context.pad_id)
        for (key, index), fields in zip(rows, measure_batch(row_batch), strict=True):
            if any(math.isnan(value) for value in fields.values()):
                raise UndefinedLogits(f"evaluate.{context.suite.name}")
            measured[key][index] = fields
        for key in keys:
            if key in wanted and len(measured[key]) == len(groups[key]):
                on_group(key, [fields for _, fields in sorted(measured.pop(key).items())])

    def memory_share(index: int) -> float:
        _, _, group = units[index]
        logits_share: float = sum(row.loss_tokens for row in group) * vocabulary_size * models_in_memory / MAX_LOGITS
        return max(logits_share, line_tokens(group) / MAX_LINE_TOKENS) if on_line else logits_share

    max_rows = context.suite.batch_size if context.batch_support.right_padding else 1
    run_in_batches(
        longest_first([line_tokens(group) for _, _, group in units]),
        len(units) if on_line else max_rows,
        process_batch,
        where=context.phase,
        notify=context.notify,
        memory_share=memory_share,
    )


MAX_LINE_TOKENS = 2048
"""Maximum number of tokens on a line of several groups."""

MAX_LOGITS = 1 << 28
"""Maximum number of logits in memory during a likelihood measurement: 1 GiB in float32."""


def response_nll(model: PreTrainedModel, batch: RowBatch) -> list[float]:
    """Compute for each row the summed negative log-likelihood of its trained tokens, in nats.

    The log-softmax is computed in float32, the sum in float64. Only the logits of trained positions are built.

    Args:
        model: A causal language model.
        batch: The rows; each has a trained token.
    """
    logits = batch.logits(model)  # (U, V)
    targets, logit_rows = batch.targets.to(logits.device), batch.logit_rows.to(logits.device)  # (N,) each
    losses = logits.logsumexp(-1)[logit_rows] - logits[logit_rows, targets]  # (N,)
    return [float(row_losses.sum()) for row_losses in batch.split_by_row(losses)]


def response_divergence(
    model: PreTrainedModel, base_context: AbstractContextManager[Any], batch: RowBatch
) -> list[tuple[float, int]]:
    """Compute for each row the divergence from the base model over its trained tokens.

    The divergence is exact over the vocabulary at every trained position: sum_v p_base(v) (log p_base(v) -
    log p_model(v)). This is the forward direction, as in Shenfeld et al. (2025, arXiv:2509.04259). The log-softmax is
    computed in float32, sums in float64. The cost is one forward pass of each model and twice the logits.

    Args:
        model: A causal language model.
        base_context: A context whose target is the base model, e.g. the same model with its adapter disabled.
        batch: As in `response_nll`.

    Returns:
        For each row the summed KL(base || model) in nats, and the number of tokens at which both models have the same
        most likely token.
    """
    log_probs = batch.logits(model).log_softmax(-1)  # (U, V)
    with base_context as base_model:
        base_log_probs = batch.logits(base_model).log_softmax(-1)  # (U, V)
    base_log_probs = base_log_probs.to(log_probs.device)
    # A token with base probability 0 (-inf) adds nothing; without `where` it would be 0 * inf.
    terms = torch.where(base_log_probs == -torch.inf, 0.0, base_log_probs.exp() * (base_log_probs - log_probs))
    divergences = terms.double().sum(-1)  # (U,)
    agreements = log_probs.argmax(-1) == base_log_probs.argmax(-1)  # (U,)
    logit_rows = batch.logit_rows.to(log_probs.device)  # (N,)
    rows_of_both = zip(
        batch.split_by_row(divergences[logit_rows]), batch.split_by_row(agreements[logit_rows]), strict=True
    )
    # Rounding can leave a sum slightly below 0, which a divergence cannot be. A NaN stays one.
    return [(float(kl.sum().clamp(min=0.0)), int(agreed.sum())) for kl, agreed in rows_of_both]
