"""Multiple choice by likelihood: the log-likelihood of each choice after its question.

With `plain` this is lm-evaluation-harness's `multiple_choice`, token for token. With the template, the question is
rendered as in training and the choice replaces the response, without the end of the turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from harness.data.tokenization.tokenize import tokenize_example
from harness.evaluation.context import NO_LENGTH_LIMIT, EvalContext, ItemCallback, build_plain_prompt
from harness.evaluation.generation import decode_tokens
from harness.evaluation.likelihood import measure_rows, response_nll
from harness.evaluation.row_batch import RowBatch
from harness.evaluation.row_requirements import gold_index
from harness.types import Example, Message, TokenizedExample


@dataclass(frozen=True)
class ChoiceRequest:
    """A question and one choice as token ids.

    Attributes:
        ids: The tokens of the question, then those of the choice.
        choice_tokens: Number of tokens of the choice.
        boundary_merged: Whether the tokenizer merged the end of the question and the beginning of the choice into one
            token. That token counts as part of the question.
        truncated: Whether the question lost its beginning.
    """

    ids: tuple[int, ...]
    choice_tokens: int
    boundary_merged: bool
    truncated: bool = False

    def to_tokenized_example(self) -> TokenizedExample:
        """Return the request as a row whose labels are the tokens of the choice."""
        question_tokens = len(self.ids) - self.choice_tokens
        labels = (-100,) * question_tokens + self.ids[question_tokens:]
        return TokenizedExample("", "", self.ids, labels)


class ChoiceLikelihoods:
    """Log-likelihood of every choice of every question."""

    def __init__(self, context: EvalContext) -> None:
        self._context = context
        suite = context.suite
        self.settings: Mapping[str, Any] = {
            "max_length": context.max_length,
            "plain": suite.plain,
            "delimiter": suite.delimiter if suite.plain else None,
        }

    @cached_property
    def _requests(self) -> list[list[ChoiceRequest]]:
        return [
            [self._truncate(request) for request in self._encode_requests(example)]
            for example in self._context.examples
        ]

    def request_key(self, index: int) -> Any:
        """Return the token ids of the item's requests and the length of each choice."""
        return [[list(request.ids), request.choice_tokens] for request in self._requests[index]]

    def run(self, todo: Sequence[int], on_item: ItemCallback) -> None:
        """Measure the items `todo`; see `ModelMeasurement.run`."""

        def on_question(index: int, fields: Sequence[Mapping[str, Any]]) -> None:
            requests = self._requests[index]
            on_item(
                index,
                {
                    "choice_lls": tuple(choice_fields["ll"] for choice_fields in fields),
                    "joined": sum(request.boundary_merged for request in requests),
                    "row_cut": any(request.truncated for request in requests),
                },
            )

        rows = {
            index: tuple(request.to_tokenized_example() for request in requests)
            for index, requests in enumerate(self._requests)
        }
        measure_rows(self._context, rows, todo, self._measure_batch, on_question)

    def _measure_batch(self, batch: RowBatch) -> Sequence[Mapping[str, Any]]:
        return [{"ll": -nll} for nll in response_nll(self._context.require_model(), batch)]

    def _encode_requests(self, example: Example) -> list[ChoiceRequest]:
        gold_index(example)
        if not self._context.suite.plain:
            return self._encode_with_template(example)
        prompt = build_plain_prompt(example)
        return [self._encode_plain(prompt, self._context.suite.delimiter + choice) for choice in example.choices]

    def _encode_plain(self, prompt: str, choice: str) -> ChoiceRequest:
        """Encode as `_encode_pair` of lm-evaluation-harness does.

        One difference: a choice without a token of its own is tokenized separately.
        """
        spaces = len(prompt) - len(prompt.rstrip())
        prompt, choice = prompt[: len(prompt) - spaces], prompt[len(prompt) - spaces :] + choice
        prompt_ids, all_ids = self._context.plain_ids(prompt), self._context.plain_ids(prompt + choice)
        boundary_merged = all_ids[: len(prompt_ids)] != prompt_ids
        if len(all_ids) > len(prompt_ids):
            return ChoiceRequest(tuple(all_ids), len(all_ids) - len(prompt_ids), boundary_merged)
        choice_ids = self._context.tokenizer(choice, add_special_tokens=False)["input_ids"]
        return ChoiceRequest((*prompt_ids, *choice_ids), len(choice_ids), True)

    def _encode_with_template(self, example: Example) -> list[ChoiceRequest]:
        context = self._context
        prompt_ids = context.prompt_ids(example)
        requests = []
        for choice in example.choices:
            answered = replace(example, messages=(*example.messages[:-1], Message("assistant", choice)))
            row = tokenize_example(
                answered,
                context.suite.source,
                context.template,
                context.tokenizer,
                NO_LENGTH_LIMIT,
                verify=False,
            )
            ids = list(row.input_ids)
            shared = next(
                (position for position, (x, y) in enumerate(zip(prompt_ids, ids, strict=False)) if x != y),
                len(prompt_ids),
            )
            choice_tokens = self._count_choice_tokens(choice, ids[shared:])
            requests.append(
                ChoiceRequest(tuple(ids[: shared + choice_tokens]), choice_tokens, shared < len(prompt_ids))
            )
        return requests

    def _count_choice_tokens(self, choice: str, response: list[int]) -> int:
        """Return the number of tokens at the start of a response that contain the choice.

        The end of the turn and everything after it do not count. Spaces are ignored.
        """
        choice_text = "".join(choice.split())
        low, high = 1, len(response)
        while low < high:
            middle = (low + high) // 2
            if choice_text in "".join(decode_tokens(self._context.tokenizer, response[:middle]).split()):
                high = middle
            else:
                low = middle + 1
        return low

    def _truncate(self, request: ChoiceRequest) -> ChoiceRequest:
        """Truncate the question to fit max_length. The last token does not count, as it is not an input."""
        excess = len(request.ids) - 1 - min(self._context.max_length, self._context.max_positions())
        if excess <= 0:
            return request
        ids = request.ids[excess:]
        return ChoiceRequest(ids, min(request.choice_tokens, len(ids) - 1), request.boundary_merged, truncated=True)
