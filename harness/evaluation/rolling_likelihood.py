"""Plain texts foretold whole, each by itself, by windows that roll over those longer than the model's context.

The windows are those of lm-evaluation-harness's `loglikelihood_rolling`: a first one behind the begin-of-sequence
token (without one, the end-of-sequence token), each further one behind one token that was foretold already, the last
one pulled back to a full context. Every token is foretold exactly once.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from harness.errors import HarnessError
from harness.evaluation.batching import longest_first
from harness.evaluation.context import EvalContext, ItemCallback
from harness.evaluation.likelihood import measure_rows, response_nll
from harness.types import Example, TokenizedExample


class RollingLikelihoods:
    """The negative log-likelihood of every text."""

    def __init__(self, context: EvalContext) -> None:
        self._context = context
        self._window = min(context.max_length, context.max_positions())
        self.settings: Mapping[str, Any] = {"max_length": self._window}

    @cached_property
    def _ids(self) -> list[list[int]]:
        return [self._encode(example) for example in self._context.examples]

    def request_key(self, index: int) -> Any:
        return self._ids[index]

    def run(self, todo: Sequence[int], on_item: ItemCallback) -> None:
        prefix = self._prefix_id()
        where, rows = [], []
        for index in todo:
            for row in rolling_windows(self._ids[index], prefix, self._window):
                where.append(index)
                rows.append(row)
        left = Counter(where)
        nlls: dict[int, list[float]] = defaultdict(list)

        def done(key: int, facts: Mapping[str, Any]) -> None:
            index = where[key]
            nlls[index].append(facts["nll"])
            if len(nlls[index]) == left[index]:
                on_item(index, {"text_nll": sum(sorted(nlls.pop(index))), "text_tokens": len(self._ids[index])})

        order = longest_first([len(row.input_ids) for row in rows])
        measure_rows(self._context, {key: rows[key] for key in order}, self._measure_batch, done)

    def _measure_batch(self, rows: Sequence[TokenizedExample]) -> Sequence[Mapping[str, Any]]:
        nlls = response_nll(self._context.require_model(), rows, self._context.tokenizer.pad_token_id)
        return [{"nll": nll} for nll in nlls]

    def _encode(self, example: Example) -> list[int]:
        if [message.role for message in example.messages] != ["text"]:
            what = "is a conversation, and a metric of its suite reads plain text"
            raise HarnessError(example.location, what, 'give the suite a source of the form "text"')
        # Special tokens that the text spells out are text.
        given = self._context.tokenizer(
            example.messages[0].content, add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        ids = list(given["input_ids"])
        if not ids:
            raise HarnessError(example.location, "is a text without a token", "leave the row out")
        return ids

    def _prefix_id(self) -> int:
        words = self._context.tokenizer
        first = words.bos_token_id if words.bos_token_id is not None else words.eos_token_id
        if first is None:
            what = "the tokenizer has no token that a text could begin after"
            raise HarnessError(f"evaluate.{self._context.suite.name}", what, "give it a bos_token or an eos_token")
        return int(first)


def rolling_windows(ids: Sequence[int], prefix_id: int, length: int) -> Iterator[TokenizedExample]:
    """Rows of at most length + 1 tokens, the last of which is only foretold; labels where a token is foretold."""
    done = min(length, len(ids))
    yield _build_window([prefix_id, *ids[:done]], done)
    while done < len(ids):
        new = min(len(ids) - done, length)
        end = done + new
        yield _build_window(ids[end - length - 1 : end], new)
        done = end


def _build_window(ids: Sequence[int], predicted: int) -> TokenizedExample:
    before = len(ids) - predicted
    return TokenizedExample("", "", tuple(ids), (-100,) * before + tuple(ids[before:]))
