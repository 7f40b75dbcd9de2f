"""Reference responses: their likelihood, and how far the model is from the base on them."""

from __future__ import annotations

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
    import torch
    from transformers import PreTrainedModel


class _ReferenceResponses:
    """Rows as training sees them, of which the trained tokens are read."""

    models_in_memory = 1
    """How many models hold their logits at once."""

    def __init__(self, context: EvalContext) -> None:
        self._context = context

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"max_length": self._context.max_length}

    @cached_property
    def _rows(self) -> list[TokenizedExample]:
        one = self._context
        return tokenize_examples(one.examples, one.suite.source, one.template, one.tokenizer, one.max_length)

    def request_key(self, index: int) -> Any:
        row = self._rows[index]
        return [list(row.input_ids), list(row.labels)]

    def run(self, todo: Sequence[int], on_item: ItemCallback) -> None:
        rows = {index: self._rows[index] for index in todo}

        def done(index: int, facts: Mapping[str, Any]) -> None:
            on_item(index, {**facts, "tokens": rows[index].loss_tokens, "row_cut": self._rows[index].tokens_cut > 0})

        for index in todo:
            # Cut before its response: it stays an item, so that items pair with those of other stages.
            if not rows[index].loss_tokens:
                done(index, self._empty_result())
        some = [index for index in todo if rows[index].loss_tokens]
        by_length = longest_first([len(rows[index].input_ids) for index in some])
        measure_rows(
            self._context,
            {index: rows[index] for index in (some[place] for place in by_length)},
            self._measure_batch,
            done,
            models_in_memory=self.models_in_memory,
        )

    def _empty_result(self) -> Mapping[str, Any]:
        raise NotImplementedError

    def _measure_batch(self, rows: Sequence[TokenizedExample]) -> Sequence[Mapping[str, Any]]:
        raise NotImplementedError


class ResponseLikelihoods(_ReferenceResponses):
    """The negative log-likelihood of each reference response."""

    def _empty_result(self) -> Mapping[str, Any]:
        return {"nll": 0.0}

    def _measure_batch(self, rows: Sequence[TokenizedExample]) -> Sequence[Mapping[str, Any]]:
        pad = self._context.tokenizer.pad_token_id
        return [{"nll": nll} for nll in response_nll(self._context.require_model(), rows, pad)]


class BaseDivergences(_ReferenceResponses):
    """KL to the base model and agreement with it, over each reference response.

    Computed anew each time with both models at hand: kept on disk, the base's distributions over a vocabulary of
    50,000 would take 100 kB a token, and the most likely few of them would not be exact.
    """

    models_in_memory = 2

    def __init__(self, context: EvalContext) -> None:
        super().__init__(context)
        if context.stage and context.base_context is None:
            what = "compares with the base model, which is not at hand after a stage that trained all its weights"
            hint = "train an adapter, e.g. lora, or give evaluate_suites() the base model"
            raise HarnessError(f"evaluate.{context.suite.name}", what, hint)
        self._base_context = context.base_context  # None before the first stage: the model is the base

    @property
    def settings(self) -> Mapping[str, Any]:
        if self._base_context is None:
            return {**super().settings, "base": "itself"}
        with self._base_context() as reference:
            return {**super().settings, "base": "/".join(fingerprint.model_fingerprint(reference))}

    def _empty_result(self) -> Mapping[str, Any]:
        return {"kl": 0.0, "agreed": 0}

    def _measure_batch(self, rows: Sequence[TokenizedExample]) -> Sequence[Mapping[str, Any]]:
        one = self._context
        if self._base_context is None:
            return [{"kl": 0.0, "agreed": row.loss_tokens} for row in rows]
        found = response_divergence(one.require_model(), self._base_context(), rows, one.tokenizer.pad_token_id)
        return [{"kl": apart, "agreed": agreed} for apart, agreed in found]


def measure_rows(
    context: EvalContext,
    rows: Mapping[int, TokenizedExample],
    measure_batch: Callable[[Sequence[TokenizedExample]], Sequence[Mapping[str, Any]]],
    on_row: Callable[[int, Mapping[str, Any]], None],
    *,
    models_in_memory: int = 1,
) -> None:
    """Read rows in batches whose logits fit, in the order given; `on_row` gets each row's key and what was read."""
    finished: set[int] = set()
    vocabulary = context.require_model().config.get_text_config().vocab_size

    def work(batch: list[int]) -> None:
        for key, facts in zip(batch, measure_batch([rows[key] for key in batch]), strict=True):
            on_row(key, facts)
            finished.add(key)

    run_in_batches(
        list(rows),
        context.suite.batch_size,
        work,
        finished,
        where=context.phase,
        notify=context.notify,
        cost=lambda key: rows[key].loss_tokens * vocabulary * models_in_memory,
        budget=MAX_LOGITS,
    )


MAX_LOGITS = 1 << 28
"""Logits held at once when likelihoods are taken: 1 GiB in float32."""


def response_nll(model: PreTrainedModel, rows: Sequence[TokenizedExample], pad_id: int) -> list[float]:
    """For each row the summed negative log-likelihood of its trained tokens, in nats.

    rows: one batch, padded here at the right with the token `pad_id` and masked. Each has `loss_tokens` > 0.
    The log-softmax is taken in float32, the sum in float64. Builds logits at the trained positions only.
    """
    batch = _PaddedBatch(rows, pad_id)
    logits = batch.logits(model)  # (N, V)
    targets = batch.targets.to(logits.device)  # (N,)
    losses = logits.logsumexp(-1) - logits.gather(-1, targets[:, None])[:, 0]  # (N,)
    return [float(part.sum()) for part in batch.split_by_row(losses)]


def response_divergence(
    model: PreTrainedModel, base_context: AbstractContextManager[Any], rows: Sequence[TokenizedExample], pad_id: int
) -> list[tuple[float, int]]:
    """For each row the summed KL(base || model) over its trained tokens in nats, and where both agree on the likeliest.

    base_context: a context within which its target is the base model, e.g. the same one with its adapter off.
    Exact, over the whole vocabulary at every trained position: sum_v p_base(v) (log p_base(v) - log p_model(v)), the
    forward direction (as in Shenfeld et al., 2025, arXiv:2509.04259), log-softmax in float32, sums in float64.
    Costs a forward pass of each model, and twice the logits. For the rest as `response_nll`.
    """
    batch = _PaddedBatch(rows, pad_id)
    ours = batch.logits(model).log_softmax(-1)  # (N, V)
    with base_context as reference:
        theirs = batch.logits(reference).log_softmax(-1)  # (N, V)
    theirs = theirs.to(ours.device)
    # A token that the base rules out (-inf) adds nothing; left alone it would be 0 * inf.
    terms = torch.where(theirs > -torch.inf, theirs.exp() * (theirs - ours), 0.0)
    apart = terms.double().sum(-1)  # (N,)
    agreed = ours.argmax(-1) == theirs.argmax(-1)  # (N,)
    parts = zip(batch.split_by_row(apart), batch.split_by_row(agreed), strict=True)
    # Rounding can leave a sum of nothings a little below zero, which no divergence is.
    return [(max(float(one.sum()), 0.0), int(same.sum())) for one, same in parts]


class _PaddedBatch:
    """Rows side by side. The last token of a row is only foretold, so it is not fed."""

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
        """(N, V) in float32, at the positions before trained tokens."""
        device = next(model.parameters()).device
        with torch.no_grad(), logits_at(model, self._target_mask):
            output = model(input_ids=self._ids.to(device), attention_mask=self._mask.to(device), use_cache=False)
        return output.logits[0].float()

    def split_by_row(self, values: torch.Tensor) -> Sequence[torch.Tensor]:
        """One value a trained token, (N,), as one float64 tensor a row."""
        return values.double().cpu().split(self._target_mask.sum(1).tolist())
