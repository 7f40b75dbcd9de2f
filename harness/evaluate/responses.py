"""Reference responses: their likelihood, and how far the model is from the base on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from harness.contracts import Row
from harness.data.encode import Encoded, encode_all
from harness.errors import HarnessError
from harness.evaluate import identity, likelihood
from harness.evaluate.batches import in_batches, longest_first
from harness.evaluate.subject import Finish, Subject


class _Responses:
    """Rows as training sees them, of which the trained tokens are read."""

    models = 1
    """How many models hold their logits at once."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"max_length": self._subject.max_length}

    @cached_property
    def _rows(self) -> list[Encoded]:
        one = self._subject
        return encode_all(one.examples, one.suite.source, one.template, one.tokenizer, one.max_length)

    def asked(self, index: int) -> Any:
        row = self._rows[index].row
        return [list(row.input_ids), list(row.labels)]

    def run(self, todo: Sequence[int], finish: Finish) -> None:
        rows = {index: self._rows[index].row for index in todo}

        def done(index: int, facts: Mapping[str, Any]) -> None:
            finish(index, {**facts, "tokens": rows[index].loss_tokens, "row_cut": self._rows[index].cut > 0})

        for index in todo:
            # Cut before its response: it stays an item, so that items pair with those of other stages.
            if not rows[index].loss_tokens:
                done(index, self._nothing())
        some = [index for index in todo if rows[index].loss_tokens]
        by_length = longest_first([len(rows[index].input_ids) for index in some])
        read_rows(
            self._subject,
            {index: rows[index] for index in (some[place] for place in by_length)},
            self._read,
            done,
            models=self.models,
        )

    def _nothing(self) -> Mapping[str, Any]:
        raise NotImplementedError

    def _read(self, rows: Sequence[Row]) -> Sequence[Mapping[str, Any]]:
        raise NotImplementedError


class Likelihoods(_Responses):
    """The negative log-likelihood of each reference response."""

    def _nothing(self) -> Mapping[str, Any]:
        return {"nll": 0.0}

    def _read(self, rows: Sequence[Row]) -> Sequence[Mapping[str, Any]]:
        pad = self._subject.tokenizer.pad_token_id
        return [{"nll": nll} for nll in likelihood.response_nll(self._subject.here(), rows, pad)]


class Divergences(_Responses):
    """KL to the base model and agreement with it, over each reference response.

    Computed anew each time with both models at hand: kept on disk, the base's distributions over a vocabulary of
    50,000 would take 100 kB a token, and the most likely few of them would not be exact.
    """

    models = 2

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        if subject.stage and subject.base is None:
            what = "compares with the base model, which is not at hand after a stage that trained all its weights"
            hint = "train an adapter, e.g. lora, or give evaluate() the base model"
            raise HarnessError(f"evaluate.{subject.suite.name}", what, hint)
        self._base = subject.base  # None before the first stage: the model is the base

    @property
    def settings(self) -> Mapping[str, Any]:
        if self._base is None:
            return {**super().settings, "base": "itself"}
        with self._base() as reference:
            return {**super().settings, "base": "/".join(identity.function(reference))}

    def _nothing(self) -> Mapping[str, Any]:
        return {"kl": 0.0, "agreed": 0}

    def _read(self, rows: Sequence[Row]) -> Sequence[Mapping[str, Any]]:
        one = self._subject
        if self._base is None:
            return [{"kl": 0.0, "agreed": row.loss_tokens} for row in rows]
        found = likelihood.response_divergence(one.here(), self._base(), rows, one.tokenizer.pad_token_id)
        return [{"kl": apart, "agreed": agreed} for apart, agreed in found]


def read_rows(
    subject: Subject,
    rows: Mapping[int, Row],
    read: Callable[[Sequence[Row]], Sequence[Mapping[str, Any]]],
    done: Callable[[int, Mapping[str, Any]], None],
    *,
    models: int = 1,
) -> None:
    """Read rows in batches whose logits fit, in the order given; `done` gets each row's key and what was read."""
    finished: set[int] = set()
    vocabulary = subject.here().config.get_text_config().vocab_size

    def work(batch: list[int]) -> None:
        for key, facts in zip(batch, read([rows[key] for key in batch]), strict=True):
            done(key, facts)
            finished.add(key)

    in_batches(
        list(rows),
        subject.suite.batch_size,
        work,
        finished,
        where=subject.phase,
        note=subject.note,
        cost=lambda key: rows[key].loss_tokens * vocabulary * models,
        budget=likelihood.LOGITS,
    )
