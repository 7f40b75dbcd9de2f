"""Likelihoods of reference responses, and the divergence of the model from the base model on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from harness.data.tokenization.tokenize import tokenize_examples
from harness.errors import HarnessError
from harness.evaluation import fingerprint
from harness.evaluation.batching import longest_first, run_in_batches
from harness.evaluation.context import EvalContext, ItemCallback
from harness.model.output_head import logits_at
from harness.types import IGNORE_INDEX, TokenizedExample

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
        rows = {index: self._rows[index] for index in todo}

        def on_row(index: int, fields: Mapping[str, Any]) -> None:
            on_item(index, {**fields, "tokens": rows[index].loss_tokens, "row_cut": self._rows[index].tokens_cut > 0})

        for index in todo:
            # A row truncated before its response stays an item, so that items pair with those of other stages.
            if not rows[index].loss_tokens:
                on_row(index, self._empty_result())
        measurable = [index for index in todo if rows[index].loss_tokens]
        by_length = longest_first([len(rows[index].input_ids) for index in measurable])
        measure_rows(
            self._context,
            {index: rows[index] for index in (measurable[position] for position in by_length)},
            self._measure_batch,
            on_row,
            models_in_memory=self.models_in_memory,
        )

    def _empty_result(self) -> Mapping[str, Any]:
        raise NotImplementedError

    def _measure_batch(self, rows: Sequence[TokenizedExample]) -> Sequence[Mapping[str, Any]]:
        raise NotImplementedError


class ResponseLikelihoods(_ReferenceResponses):
    """Negative log-likelihood of each reference response."""

    def _empty_result(self) -> Mapping[str, Any]:
        return {"nll": 0.0}

    def _measure_batch(self, rows: Sequence[TokenizedExample]) -> Sequence[Mapping[str, Any]]:
        pad = self._context.tokenizer.pad_token_id
        return [{"nll": nll} for nll in response_nll(self._context.require_model(), rows, pad)]


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

    def _measure_batch(self, rows: Sequence[TokenizedExample]) -> Sequence[Mapping[str, Any]]:
        if self._base_context is None:
            return [{"kl": 0.0, "agreed": row.loss_tokens} for row in rows]
        model, pad_id = self._context.require_model(), self._context.tokenizer.pad_token_id
        divergences = response_divergence(model, self._base_context(), rows, pad_id)
        return [{"kl": kl, "agreed": agreed} for kl, agreed in divergences]


def measure_rows(
    context: EvalContext,
    rows: Mapping[int, TokenizedExample],
    measure_batch: Callable[[Sequence[TokenizedExample]], Sequence[Mapping[str, Any]]],
    on_row: Callable[[int, Mapping[str, Any]], None],
    *,
    models_in_memory: int = 1,
) -> None:
    """Measure rows in batches whose logits fit into `MAX_LOGITS`, in the order of `rows`.

    Args:
        context: The model and the suite.
        rows: Key -> row.
        measure_batch: Returns the measured fields of each row of a batch.
        on_row: Receives the key and the measured fields of each row.
        models_in_memory: Number of models whose logits are in memory at the same time.

    Raises:
        RunError: A measured field is NaN, or a single row does not fit into memory.
    """
    finished: set[int] = set()
    vocabulary_size = context.require_model().config.get_text_config().vocab_size

    def process_batch(batch: list[int]) -> None:
        for key, fields in zip(batch, measure_batch([rows[key] for key in batch]), strict=True):
            if any(math.isnan(value) for value in fields.values()):
                raise context.undefined_output_error()
            on_row(key, fields)
            finished.add(key)

    run_in_batches(
        list(rows),
        context.suite.batch_size if context.batch_support.right_padding else 1,
        process_batch,
        finished,
        where=context.phase,
        notify=context.notify,
        memory_share=lambda key: rows[key].loss_tokens * vocabulary_size * models_in_memory / MAX_LOGITS,
    )


MAX_LOGITS = 1 << 28
"""Maximum number of logits in memory during a likelihood measurement: 1 GiB in float32."""


def response_nll(model: PreTrainedModel, rows: Sequence[TokenizedExample], pad_id: int) -> list[float]:
    """Compute for each row the summed negative log-likelihood of its trained tokens, in nats.

    The log-softmax is computed in float32, the sum in float64. Only the logits of trained positions are built.

    Args:
        model: A causal language model.
        rows: One batch; each row has `loss_tokens` > 0.
        pad_id: Token that pads the batch at the right; padding is masked.
    """
    batch = _PaddedBatch(rows, pad_id)
    logits = batch.logits(model)  # (N, V)
    targets = batch.targets.to(logits.device)  # (N,)
    losses = logits.logsumexp(-1) - logits.gather(-1, targets[:, None])[:, 0]  # (N,)
    return [float(row_losses.sum()) for row_losses in batch.split_by_row(losses)]


def response_divergence(
    model: PreTrainedModel, base_context: AbstractContextManager[Any], rows: Sequence[TokenizedExample], pad_id: int
) -> list[tuple[float, int]]:
    """Compute for each row the divergence from the base model over its trained tokens.

    The divergence is exact over the vocabulary at every trained position: sum_v p_base(v) (log p_base(v) -
    log p_model(v)). This is the forward direction, as in Shenfeld et al. (2025, arXiv:2509.04259). The log-softmax is
    computed in float32, sums in float64. The cost is one forward pass of each model and twice the logits.

    Args:
        model: A causal language model.
        base_context: A context whose target is the base model, e.g. the same model with its adapter disabled.
        rows: As in `response_nll`.
        pad_id: As in `response_nll`.

    Returns:
        For each row the summed KL(base || model) in nats, and the number of tokens at which both models have the same
        most likely token.
    """
    batch = _PaddedBatch(rows, pad_id)
    log_probs = batch.logits(model).log_softmax(-1)  # (N, V)
    with base_context as base_model:
        base_log_probs = batch.logits(base_model).log_softmax(-1)  # (N, V)
    base_log_probs = base_log_probs.to(log_probs.device)
    # A token with base probability 0 (-inf) adds nothing; without `where` it would be 0 * inf.
    terms = torch.where(base_log_probs == -torch.inf, 0.0, base_log_probs.exp() * (base_log_probs - log_probs))
    divergences = terms.double().sum(-1)  # (N,)
    agreements = log_probs.argmax(-1) == base_log_probs.argmax(-1)  # (N,)
    rows_of_both = zip(batch.split_by_row(divergences), batch.split_by_row(agreements), strict=True)
    # Rounding can leave a sum slightly below 0, which a divergence cannot be. A NaN stays one.
    return [(float(kl.sum().clamp(min=0.0)), int(agreed.sum())) for kl, agreed in rows_of_both]


class _PaddedBatch:
    """Right-padded rows. The last token of a row is only predicted, so it is not an input."""

    def __init__(self, rows: Sequence[TokenizedExample], pad_id: int) -> None:
        longest = max(len(row.input_ids) for row in rows) - 1
        self._ids = torch.full((len(rows), longest), pad_id)  # (B, T)
        self._mask = torch.zeros((len(rows), longest), dtype=torch.long)  # (B, T)
        labels = torch.full((len(rows), longest), IGNORE_INDEX)  # (B, T): of the token after each
        for index, row in enumerate(rows):
            length = len(row.input_ids) - 1
            self._ids[index, :length] = torch.tensor(row.input_ids[:-1])
            self._mask[index, :length] = 1
            labels[index, :length] = torch.tensor(row.labels[1:])
        self._target_mask = labels != IGNORE_INDEX  # (B, T)
        self.targets = labels[self._target_mask]  # (N,), row after row

    def logits(self, model: PreTrainedModel) -> torch.Tensor:
        """Return the logits at the positions before trained tokens, (N, V), in float32."""
        device = next(model.parameters()).device
        with torch.no_grad(), logits_at(model, self._target_mask):
            output = model(input_ids=self._ids.to(device), attention_mask=self._mask.to(device), use_cache=False)
        logits: torch.Tensor = output.logits[0].float()
        return logits

    def split_by_row(self, values: torch.Tensor) -> Sequence[torch.Tensor]:
        """Split one value per trained token, (N,), into one float64 tensor per row."""
        return torch.split(values.double().cpu(), self._target_mask.sum(1).tolist())
