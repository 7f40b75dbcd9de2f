"""Multiple choice by likelihood: how likely each choice is after its question.

With the template off this is lm-evaluation-harness's `multiple_choice`, token for token. With it on, the question is
asked as in training and the choice stands where the response does; the end of the turn is no part of a choice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from harness.data.tokenization.tokenize import tokenize_example
from harness.errors import HarnessError
from harness.evaluation.batching import longest_first
from harness.evaluation.context import NO_LENGTH_LIMIT, EvalContext, ItemCallback, build_plain_prompt
from harness.evaluation.generation import decode_tokens
from harness.evaluation.likelihood import measure_rows, response_nll
from harness.types import Example, Message, TokenizedExample


@dataclass(frozen=True)
class ChoiceRequest:
    """A question and one choice as ids, of which the last `choice_tokens` are the choice's. boundary_merged: the
    tokenizer made one token of the question's end and the choice's beginning; that token counts as the question's.
    truncated: the question lost its beginning."""

    ids: tuple[int, ...]
    choice_tokens: int
    boundary_merged: bool
    truncated: bool = False

    def to_tokenized_example(self) -> TokenizedExample:
        labels = (-100,) * (len(self.ids) - self.choice_tokens) + self.ids[len(self.ids) - self.choice_tokens :]
        return TokenizedExample("", "", self.ids, labels)


class ChoiceLikelihoods:
    """The log-likelihood of every choice of every question."""

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
        return [[self._truncate(pair) for pair in self._encode_requests(example)] for example in self._context.examples]

    def request_key(self, index: int) -> Any:
        return [[list(pair.ids), pair.choice_tokens] for pair in self._requests[index]]

    def run(self, todo: Sequence[int], on_item: ItemCallback) -> None:
        where = [(index, number) for index in todo for number in range(len(self._requests[index]))]
        pairs = [self._requests[index][number] for index, number in where]
        found: dict[int, dict[int, float]] = defaultdict(dict)

        def done(key: int, facts: Mapping[str, Any]) -> None:
            index, number = where[key]
            found[index][number] = facts["ll"]
            if len(found[index]) == len(self._requests[index]):
                on_item(index, self._item_fields(index, found.pop(index)))

        order = longest_first([len(pair.ids) for pair in pairs])
        measure_rows(
            self._context, {key: pairs[key].to_tokenized_example() for key in order}, self._measure_batch, done
        )

    def _measure_batch(self, rows: Sequence[TokenizedExample]) -> Sequence[Mapping[str, Any]]:
        nlls = response_nll(self._context.require_model(), rows, self._context.tokenizer.pad_token_id)
        return [{"ll": -nll} for nll in nlls]

    def _item_fields(self, index: int, lls: Mapping[int, float]) -> Mapping[str, Any]:
        pairs = self._requests[index]
        return {
            "choice_lls": tuple(lls[number] for number in range(len(pairs))),
            "joined": sum(pair.boundary_merged for pair in pairs),
            "row_cut": any(pair.truncated for pair in pairs),
        }

    def _encode_requests(self, example: Example) -> list[ChoiceRequest]:
        gold_index(example)
        if not self._context.suite.plain:
            return self._encode_with_template(example)
        context = build_plain_prompt(example)
        return [self._encode_plain(context, self._context.suite.delimiter + choice) for choice in example.choices]

    def _encode_plain(self, prompt: str, choice: str) -> ChoiceRequest:
        """As `_encode_pair` of lm-evaluation-harness, save that a choice left without a token gets its own."""
        spaces = len(prompt) - len(prompt.rstrip())
        prompt, choice = prompt[: len(prompt) - spaces], prompt[len(prompt) - spaces :] + choice
        before, whole = self._context.plain_ids(prompt), self._context.plain_ids(prompt + choice)
        joined = whole[: len(before)] != before
        if len(whole) > len(before):
            return ChoiceRequest(tuple(whole), len(whole) - len(before), joined)
        own = self._context.tokenizer(choice, add_special_tokens=False)["input_ids"]
        return ChoiceRequest((*before, *own), len(own), True)

    def _encode_with_template(self, example: Example) -> list[ChoiceRequest]:
        one = self._context
        before = one.prompt_ids(example)
        pairs = []
        for choice in example.choices:
            answered = replace(example, messages=(*example.messages[:-1], Message("assistant", choice)))
            row = tokenize_example(
                answered, one.suite.source, one.template, one.tokenizer, NO_LENGTH_LIMIT, verify=False
            )
            ids = list(row.input_ids)
            shared = next((place for place, (x, y) in enumerate(zip(before, ids, strict=False)) if x != y), len(before))
            tokens = self._count_choice_tokens(choice, ids[shared:])
            pairs.append(ChoiceRequest(tuple(ids[: shared + tokens]), tokens, shared < len(before)))
        return pairs

    def _count_choice_tokens(self, choice: str, response: list[int]) -> int:
        """How many tokens of a response hold the choice, the end of the turn and what may follow left out."""
        wanted = "".join(choice.split())
        low, high = 1, len(response)
        while low < high:
            middle = (low + high) // 2
            if wanted in "".join(decode_tokens(self._context.tokenizer, response[:middle]).split()):
                high = middle
            else:
                low = middle + 1
        return low

    def _truncate(self, request: ChoiceRequest) -> ChoiceRequest:
        """The pair within max_length, the last token not counted, as it is never fed."""
        beyond = len(request.ids) - 1 - min(self._context.max_length, self._context.max_positions())
        if beyond <= 0:
            return request
        ids = request.ids[beyond:]
        return ChoiceRequest(ids, min(request.choice_tokens, len(ids) - 1), request.boundary_merged, truncated=True)


def gold_index(example: Example) -> int:
    """The index of the right choice. Raises HarnessError for a row that is no multiple-choice question."""
    if len(example.choices) < 2:
        what = "is no multiple-choice question, and a metric of its suite weighs choices"
        raise HarnessError(example.location, what, 'give the row "choices" and "answer", or leave the metric out')
    if example.messages[-1].content not in example.choices:
        raise HarnessError(example.location, "has a response that is none of its choices", "mend the row")
    return example.choices.index(example.messages[-1].content)
