"""Likelihoods of complete plain texts, by rolling windows over texts longer than the model's context.

The windows are those of lm-evaluation-harness's `loglikelihood_rolling`. The first one starts with the
begin-of-sequence token (without one, the end-of-sequence token). Each further one starts with a token that was already
predicted, and the last one is moved back to a full context. Every token is predicted exactly once:

    window 1   <s>|t0 t1 t2 t3|
    window 2             t3|t4 t5 t6 t7|
    window 3                   t5 t6 t7|t8 t9|       |predicted tokens|, here at most 4 per window
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from harness.errors import HarnessError
from harness.evaluation.context import EvalContext, ItemCallback
from harness.evaluation.likelihood import measure_rows, response_nll
from harness.evaluation.row_batch import RowBatch, RowGroup
from harness.evaluation.row_requirements import require_plain_text
from harness.types import Example, TokenizedExample


class RollingLikelihoods:
    """Negative log-likelihood of every text."""

    def __init__(self, context: EvalContext) -> None:
        self._context = context
        self._window = min(context.max_length, context.max_positions())
        self.settings: Mapping[str, Any] = {"max_length": self._window}

    @cached_property
    def _ids(self) -> list[list[int]]:
        return [self._encode(example) for example in self._context.examples]

    def request_key(self, index: int) -> Any:
        """Return the token ids of the text."""
        return self._ids[index]

    def run(self, todo: Sequence[int], on_item: ItemCallback) -> None:
        """Measure the items `todo`; see `ModelMeasurement.run`."""
        prefix_id, wanted = self._prefix_id(), set(todo)
        item_of_window: list[int] = []
        windows: dict[int, RowGroup] = {}
        for index, ids in enumerate(self._ids):
            for window in rolling_windows(ids, prefix_id, self._window):
                windows[len(windows)] = (window,)
                item_of_window.append(index)
        window_counts = Counter(item_of_window)
        nlls: dict[int, list[float]] = defaultdict(list)

        def on_window(key: int, fields: Sequence[Mapping[str, Any]]) -> None:
            index = item_of_window[key]
            nlls[index].append(fields[0]["nll"])
            if len(nlls[index]) == window_counts[index]:
                on_item(index, {"text_nll": sum(sorted(nlls.pop(index))), "text_tokens": len(self._ids[index])})

        keys = [key for key, index in enumerate(item_of_window) if index in wanted]
        measure_rows(self._context, windows, keys, self._measure_batch, on_window)

    def _measure_batch(self, batch: RowBatch) -> Sequence[Mapping[str, Any]]:
        return [{"nll": nll} for nll in response_nll(self._context.require_model(), batch)]

    def _encode(self, example: Example) -> list[int]:
        require_plain_text(example)
        # Special tokens that are written in the text are ordinary text.
        encoding = self._context.tokenizer(
            example.messages[0].content, add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        ids = list(encoding["input_ids"])
        if not ids:
            raise HarnessError(example.location, "is a text without tokens", "remove the row")
        return ids

    def _prefix_id(self) -> int:
        tokenizer = self._context.tokenizer
        prefix_id = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if prefix_id is None:
            what = "the tokenizer has neither a bos_token nor an eos_token to start a text with"
            raise HarnessError(f"evaluate.{self._context.suite.name}", what, "add one to the tokenizer")
        return int(prefix_id)


def rolling_windows(ids: Sequence[int], prefix_id: int, length: int) -> Iterator[TokenizedExample]:
    """Yield the windows of a text as rows; see the module docstring.

    Args:
        ids: Token ids of the text.
        prefix_id: Token before the text.
        length: Number of input tokens of a window. Its row has one more token, which is only predicted.

    Yields:
        Rows whose labels are the tokens that the window predicts.
    """
    end = min(length, len(ids))
    yield _build_window([prefix_id, *ids[:end]], end)
    while end < len(ids):
        predicted = min(len(ids) - end, length)
        end += predicted
        yield _build_window(ids[end - length - 1 : end], predicted)


def _build_window(ids: Sequence[int], predicted: int) -> TokenizedExample:
    context_tokens = len(ids) - predicted
    return TokenizedExample("", "", tuple(ids), (-100,) * context_tokens + tuple(ids[context_tokens:]))
