"""The items whose score changed most between two runs, with what was asked and what each run answered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.comparison.paired_scores import PairedScore, PairwiseComparer
from harness.errors import HarnessError
from harness.interfaces.metric import Metric
from harness.report.paired_difference import align_items
from harness.types import Evaluation, Item, Score


@dataclass(frozen=True)
class ItemAnswer:
    """What one run did with an item. value: the score of the item by itself. answer: the generated text, or what its
    likelihoods say; None where it was not kept. finish: why the text ended."""

    value: float
    answer: str | None
    finish: str | None


@dataclass(frozen=True)
class ChangedItem:
    """An item, and what the baseline (`first`) and a run (`second`, by its index) did with it. change: of its score."""

    run: int
    suite: str
    score: str
    id: str
    prompt: str
    reference: str
    change: float
    first: ItemAnswer
    second: ItemAnswer


def select_score(pairs: Sequence[PairedScore], name: str | None) -> str | None:
    """The score, as `suite/score`, whose items are shown; None where nothing was compared.

    name: the user's choice; None: the first of the first domain suite. Raises HarnessError for one that there is not.
    """
    known = list(dict.fromkeys(f"{one.suite}/{one.score}" for one in pairs))
    if name is not None:
        if name not in known:
            raise HarnessError("--score", f"no score {name!r} was compared", f"there are: {', '.join(known) or 'none'}")
        return name
    domain = [f"{one.suite}/{one.score}" for one in pairs if one.role == "domain"]
    return next(iter(domain or known), None)


def most_changed_items(
    comparer: PairwiseComparer, pairs: Sequence[PairedScore], score: str, count: int
) -> tuple[tuple[ChangedItem, ...], tuple[str, ...]]:
    """For each run the `count` items whose score changed most against the baseline, and notes on what is missing.

    Of a corpus score, such as BLEU, an item's own is what the metric gives for that item alone.
    """
    made: list[ChangedItem] = []
    notes: list[str] = []
    for pair in pairs:
        if f"{pair.suite}/{pair.score}" == score:
            first, second = (
                comparer.last_evaluation(comparer.baseline, pair.suite),
                comparer.last_evaluation(pair.run, pair.suite),
            )
            items = []
            for number, one in ((comparer.baseline, first), (pair.run, second)):
                try:
                    items.append(comparer.loaded_runs[number].load_items(pair.suite, one.stage))
                except HarnessError as error:
                    items.append({})
                    notes.append(f"answers of {comparer.loaded_runs[number].summary.name}: {error.what}")
            made += _most_changed_in_pair(
                pair, first, second, items, comparer.get_metric(pair.suite, _score_of_pair(first, pair)), count
            )
    return tuple(made), tuple(dict.fromkeys(notes))


def _most_changed_in_pair(
    pair: PairedScore,
    first: Evaluation,
    second: Evaluation,
    items: Sequence[dict[str, Item]],
    metric: Metric,
    count: int,
) -> list[ChangedItem]:
    before, after = (_score_by_item_id(one, _score_of_pair(one, pair), metric) for one in (first, second))
    moved = {one: after[one] - before[one] for one in align_items(first, second).ids}
    real = [one for one, change in moved.items() if math.isfinite(change) and change]
    made = []
    for one in sorted(real, key=lambda one: (-abs(moved[one]), one))[:count]:
        known = items[0].get(one) or items[1].get(one)
        made.append(
            ChangedItem(
                run=pair.run,
                suite=pair.suite,
                score=pair.score,
                id=one,
                prompt=known.prompt if known else "",
                reference=known.reference if known else "",
                change=moved[one],
                first=_item_answer(before[one], items[0].get(one)),
                second=_item_answer(after[one], items[1].get(one)),
            )
        )
    return made


def _score_of_pair(evaluation: Evaluation, pair: PairedScore) -> Score:
    return next(one for one in evaluation.scores if (one.metric, one.name) == (pair.metric, pair.score))


def _score_by_item_id(evaluation: Evaluation, score: Score, metric: Metric) -> dict[str, float]:
    return {
        item.id: float(metric.aggregate(score.name, list(vector)))
        for item, vector in zip(evaluation.items, score.statistics, strict=True)
    }


def _item_answer(value: float, item: Item | None) -> ItemAnswer:
    if item is None:
        return ItemAnswer(value, None, None)
    answer = item.answer
    if answer is None and item.choice_lls is not None:
        likely = sorted(zip(item.choice_lls, item.choices, strict=True), reverse=True)
        answer = "; ".join(f"{choice} ({ll:.2f} nats)" for ll, choice in likely)
    elif answer is None and item.nll is not None:
        answer = f"{item.nll:.2f} nats over the {item.tokens} tokens of the reference"
    elif answer is None and item.text_nll is not None:
        answer = f"{item.text_nll:.2f} nats over the {item.text_tokens} tokens of the text"
    return ItemAnswer(value, answer, item.finish)
