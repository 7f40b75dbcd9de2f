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

from harness.data.tokenization.tokenize import encode
from harness.errors import HarnessError
from harness.evaluation.batching import longest_first
from harness.evaluation.context import UNCUT, Finish, Subject, plain_prompt
from harness.evaluation.generation import decode
from harness.evaluation.likelihood import read_rows, response_nll
from harness.types import Example, Message, Row


@dataclass(frozen=True)
class Pair:
    """A question and one choice as ids, of which the last `tokens` are the choice's. joined: the tokenizer made one
    token of the question's end and the choice's beginning; that token counts as the question's. cut: the question
    lost its beginning."""

    ids: tuple[int, ...]
    tokens: int
    joined: bool
    cut: bool = False

    def row(self) -> Row:
        labels = (-100,) * (len(self.ids) - self.tokens) + self.ids[len(self.ids) - self.tokens :]
        return Row("", "", self.ids, labels)


class Choices:
    """The log-likelihood of every choice of every question."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        suite = subject.suite
        self.settings: Mapping[str, Any] = {
            "max_length": subject.max_length,
            "plain": suite.plain,
            "delimiter": suite.delimiter if suite.plain else None,
        }

    @cached_property
    def _pairs(self) -> list[list[Pair]]:
        return [[self._cut(pair) for pair in self._encode(example)] for example in self._subject.examples]

    def asked(self, index: int) -> Any:
        return [[list(pair.ids), pair.tokens] for pair in self._pairs[index]]

    def run(self, todo: Sequence[int], finish: Finish) -> None:
        where = [(index, number) for index in todo for number in range(len(self._pairs[index]))]
        pairs = [self._pairs[index][number] for index, number in where]
        found: dict[int, dict[int, float]] = defaultdict(dict)

        def done(key: int, facts: Mapping[str, Any]) -> None:
            index, number = where[key]
            found[index][number] = facts["ll"]
            if len(found[index]) == len(self._pairs[index]):
                finish(index, self._facts(index, found.pop(index)))

        order = longest_first([len(pair.ids) for pair in pairs])
        read_rows(self._subject, {key: pairs[key].row() for key in order}, self._read, done)

    def _read(self, rows: Sequence[Row]) -> Sequence[Mapping[str, Any]]:
        nlls = response_nll(self._subject.here(), rows, self._subject.tokenizer.pad_token_id)
        return [{"ll": -nll} for nll in nlls]

    def _facts(self, index: int, lls: Mapping[int, float]) -> Mapping[str, Any]:
        pairs = self._pairs[index]
        return {
            "choice_lls": tuple(lls[number] for number in range(len(pairs))),
            "joined": sum(pair.joined for pair in pairs),
            "row_cut": any(pair.cut for pair in pairs),
        }

    def _encode(self, example: Example) -> list[Pair]:
        right_one(example)
        if not self._subject.suite.plain:
            return self._by_template(example)
        context = plain_prompt(example)
        return [self._plain(context, self._subject.suite.delimiter + choice) for choice in example.choices]

    def _plain(self, context: str, choice: str) -> Pair:
        """As `_encode_pair` of lm-evaluation-harness, save that a choice left without a token gets its own."""
        spaces = len(context) - len(context.rstrip())
        context, choice = context[: len(context) - spaces], context[len(context) - spaces :] + choice
        before, whole = self._subject.plain(context), self._subject.plain(context + choice)
        joined = whole[: len(before)] != before
        if len(whole) > len(before):
            return Pair(tuple(whole), len(whole) - len(before), joined)
        own = self._subject.tokenizer(choice, add_special_tokens=False)["input_ids"]
        return Pair((*before, *own), len(own), True)

    def _by_template(self, example: Example) -> list[Pair]:
        one = self._subject
        before = one.prompt(example)
        pairs = []
        for choice in example.choices:
            answered = replace(example, messages=(*example.messages[:-1], Message("assistant", choice)))
            row = encode(answered, one.suite.source, one.template, one.tokenizer, UNCUT)
            ids = list(row.input_ids)
            shared = next((place for place, (x, y) in enumerate(zip(before, ids, strict=False)) if x != y), len(before))
            tokens = self._tokens(choice, ids[shared:])
            pairs.append(Pair(tuple(ids[: shared + tokens]), tokens, shared < len(before)))
        return pairs

    def _tokens(self, choice: str, response: list[int]) -> int:
        """How many tokens of a response hold the choice, the end of the turn and what may follow left out."""
        wanted = "".join(choice.split())
        low, high = 1, len(response)
        while low < high:
            middle = (low + high) // 2
            if wanted in "".join(decode(self._subject.tokenizer, response[:middle]).split()):
                high = middle
            else:
                low = middle + 1
        return low

    def _cut(self, pair: Pair) -> Pair:
        """The pair within max_length, the last token not counted, as it is never fed."""
        beyond = len(pair.ids) - 1 - min(self._subject.max_length, self._subject.positions())
        if beyond <= 0:
            return pair
        ids = pair.ids[beyond:]
        return Pair(ids, min(pair.tokens, len(ids) - 1), pair.joined, cut=True)


def right_one(example: Example) -> int:
    """The index of the right choice. Raises HarnessError for a row that is no multiple-choice question."""
    if len(example.choices) < 2:
        what = "is no multiple-choice question, and a metric of its suite weighs choices"
        raise HarnessError(example.place, what, 'give the row "choices" and "answer", or leave the metric out')
    if example.messages[-1].content not in example.choices:
        raise HarnessError(example.place, "has a response that is none of its choices", "mend the row")
    return example.choices.index(example.messages[-1].content)
