"""The items whose primary score changed in a run: right → wrong and wrong → right, or those that moved most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.evaluation.scoring import item_values
from harness.interfaces.metric import Metric
from harness.statistics.intervals import Estimate, estimate
from harness.types import Evaluation, Item

MAX_FLIPPED_ITEMS = 100
"""Listed items of each direction, for a score that is 0 or 1 for each item."""
MAX_MOVED_ITEMS = 3
"""Listed items of each direction, for any other score."""


@dataclass(frozen=True)
class ItemAnswer:
    """The answer of one model to an item.

    Attributes:
        value: The score of this item alone.
        answer: The generated text, or the likelihoods as text; None if it was not stored.
        finish: Why the generated text ended; `length` if it was cut at `max_new_tokens`.
    """

    value: float
    answer: str | None
    finish: str | None


@dataclass(frozen=True)
class MovedItem:
    """An item with its answers by the base model and after the last stage."""

    id: str
    prompt: str
    reference: str
    before: ItemAnswer
    after: ItemAnswer


@dataclass(frozen=True)
class SuiteFlips:
    """The items of a suite whose primary score changed.

    Attributes:
        suite: Name of the suite.
        score: Name of its primary score.
        n: Number of items.
        lost: Share of items that went from right to wrong, with Wilson's interval; None if the score is not 0 or 1.
        gained: The same from wrong to right.
        guessed: For multiple choice: the share of items that a model which knows an answer or guesses is expected to
            lose by guessing alone, and likewise to gain. `lost` minus it is chance-adjusted forgetting (Harmon et
            al., 2025, arXiv:2510.17776).
        worse: Items that got worse, the largest change first; at most `MAX_FLIPPED_ITEMS` or `MAX_MOVED_ITEMS`.
        better: Items that got better.
    """

    suite: str
    score: str
    n: int
    lost: Estimate | None
    gained: Estimate | None
    guessed: float | None
    worse: tuple[MovedItem, ...]
    better: tuple[MovedItem, ...]


def find_flips(first: Evaluation, last: Evaluation, metric: Metric, score_name: str) -> SuiteFlips | None:
    """Find the items of a suite that changed between two evaluations of the same items.

    Args:
        first: The evaluation before training.
        last: The evaluation after the last stage, with the same items in the same order.
        metric: The metric of the primary score, which has a direction.
        score_name: Name of the primary score.

    Returns:
        The flips; None if an evaluation has no statistics of the score.
    """
    before, after = (_values_of_score(evaluation, metric, score_name) for evaluation in (first, last))
    if not before or {len(before), len(after)} != {len(first.items)} or len(last.items) != len(first.items):
        return None
    sign = 1.0 if metric.higher_is_better else -1.0
    changes = [sign * (new - old) for old, new in zip(before, after, strict=True)]
    is_binary = all(value in (0.0, 1.0) for value in (*before, *after))
    limit = MAX_FLIPPED_ITEMS if is_binary else MAX_MOVED_ITEMS
    ranked = sorted(
        (index for index, change in enumerate(changes) if change and math.isfinite(change)),
        key=lambda index: (-abs(changes[index]), last.items[index].id),
    )

    def moved(index: int) -> MovedItem:
        item = first.items[index]
        answers = describe_answer(before[index], item), describe_answer(after[index], last.items[index])
        return MovedItem(item.id, item.prompt, item.reference, *answers)

    return SuiteFlips(
        suite=first.suite,
        score=score_name,
        n=len(changes),
        lost=_share([change < 0 for change in changes]) if is_binary else None,
        gained=_share([change > 0 for change in changes]) if is_binary else None,
        guessed=_expected_guesses(before, after, first.items) if is_binary else None,
        worse=tuple(moved(index) for index in ranked if changes[index] < 0)[:limit],
        better=tuple(moved(index) for index in ranked if changes[index] > 0)[:limit],
    )


def _values_of_score(evaluation: Evaluation, metric: Metric, score_name: str) -> list[float]:
    score = next((score for score in evaluation.scores if score.name == score_name), None)
    return [] if score is None else item_values(score, metric)


def describe_answer(value: float, item: Item | None) -> ItemAnswer:
    """Return an item's answer; without a generated text, its likelihoods as text.

    Args:
        value: The score of the item.
        item: The item; None if it was not stored.
    """
    if item is None:
        return ItemAnswer(value, None, None)
    answer = item.answer
    if answer is None and item.choice_lls is not None:
        ranked = sorted(zip(item.choice_lls, item.choices, strict=True), reverse=True)
        answer = "; ".join(f"{choice} ({ll:.2f} nats)" for ll, choice in ranked)
    elif answer is None and item.nll is not None:
        answer = f"{item.nll:.2f} nats over the {item.tokens} tokens of the reference"
    elif answer is None and item.text_nll is not None:
        answer = f"{item.text_nll:.2f} nats over the {item.text_tokens} tokens of the text"
    return ItemAnswer(value, answer, item.finish)


def _share(flags: Sequence[bool]) -> Estimate:
    return estimate([(float(flag), 1.0) for flag in flags], lambda total: total[0] / total[1], ratio=True)


def _expected_guesses(before: Sequence[float], after: Sequence[float], items: Sequence[Item]) -> float | None:
    """Return the share of items that flip in one direction by guessing alone.

    A model knows an answer or guesses uniformly among k choices. With accuracy a it guesses right on (1 − a) / (k − 1)
    of the items. If guesses before and after training are independent, (1 − a) (1 − b) / (k − 1) of the items are
    guessed right before and wrong after, and as many the other way round.
    """
    if not all(len(item.choices) > 1 for item in items):
        return None
    per_choice = math.fsum(1 / (len(item.choices) - 1) for item in items) / len(items)
    wrong = [1 - math.fsum(values) / len(values) for values in (before, after)]
    return wrong[0] * wrong[1] * per_choice
