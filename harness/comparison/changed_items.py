"""The items whose score changed most between two runs, with the question and the answer of each run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.comparison.paired_scores import PairedScore, PairwiseComparer
from harness.errors import HarnessError
from harness.evaluation.scoring import item_values
from harness.interfaces.metric import Metric
from harness.report.flips import ItemAnswer, describe_answer
from harness.report.paired_difference import align_items
from harness.types import Evaluation, Item, Score


@dataclass(frozen=True)
class ChangedItem:
    """An item with its answers by the baseline and by one run.

    Attributes:
        run: Index of the run.
        change: Difference of the item's score, run − baseline.
        first: Answer of the baseline.
        second: Answer of the run.
    """

    run: int
    suite: str
    score: str
    id: str
    prompt: str
    reference: str
    change: float
    first: ItemAnswer
    second: ItemAnswer


def select_score(pairs: Sequence[PairedScore], name: str | None, primary: Mapping[str, str]) -> str | None:
    """Return the score, as `suite/score`, whose items are shown; None if nothing was compared.

    Args:
        pairs: The compared scores.
        name: The user's choice; None: the primary score of the first domain suite, else the first score.
        primary: Suite -> its primary score, as `suite/score`.

    Raises:
        HarnessError: If no score of this name was compared.
    """
    compared = list(dict.fromkeys(f"{pair.suite}/{pair.score}" for pair in pairs))
    if name is not None:
        if name not in compared:
            hint = f"there are: {', '.join(compared) or 'none'}"
            raise HarnessError("--score", f"no score {name!r} was compared", hint)
        return name
    domain = [f"{pair.suite}/{pair.score}" for pair in pairs if pair.role == "domain"]
    first = next(iter(domain or compared), None)
    chosen = None if first is None else primary.get(first.partition("/")[0])
    return chosen if chosen in compared else first


def most_changed_items(
    comparer: PairwiseComparer, pairs: Sequence[PairedScore], score: str, count: int
) -> tuple[tuple[ChangedItem, ...], tuple[str, ...]]:
    """Find for each run the items whose score changed most against the baseline.

    The item's value of a corpus score, such as BLEU, is what the metric returns for that item alone.

    Args:
        comparer: Has compared the runs.
        pairs: The compared scores.
        score: The score to rank by, as `suite/score`.
        count: Number of items for each run.

    Returns:
        The items, run by run, and notes on answers that are missing.
    """
    changed: list[ChangedItem] = []
    notes: list[str] = []
    for pair in pairs:
        if f"{pair.suite}/{pair.score}" != score:
            continue
        evaluations = [comparer.last_evaluation(run, pair.suite) for run in (comparer.baseline, pair.run)]
        items = []
        for run_index, evaluation in zip((comparer.baseline, pair.run), evaluations, strict=True):
            loaded_run = comparer.loaded_runs[run_index]
            try:
                items.append(loaded_run.load_items(pair.suite, evaluation.stage))
            except HarnessError as error:
                items.append({})
                notes.append(f"answers of {loaded_run.summary.name}: {error.what}")
        metric = comparer.get_metric(pair.suite, _score_of_pair(evaluations[0], pair))
        changed += _most_changed_in_pair(pair, evaluations, items, metric, count)
    return tuple(changed), tuple(dict.fromkeys(notes))


def _most_changed_in_pair(
    pair: PairedScore, evaluations: Sequence[Evaluation], items: Sequence[dict[str, Item]], metric: Metric, count: int
) -> list[ChangedItem]:
    """Rank the items of one pair. evaluations, items: of the baseline and of the run."""
    first, second = evaluations
    before, after = (_score_by_item_id(each, _score_of_pair(each, pair), metric) for each in evaluations)
    changes = {item_id: after[item_id] - before[item_id] for item_id in align_items(first, second).ids}
    changed_ids = [item_id for item_id, change in changes.items() if math.isfinite(change) and change]
    changed = []
    for item_id in sorted(changed_ids, key=lambda item_id: (-abs(changes[item_id]), item_id))[:count]:
        item = items[0].get(item_id) or items[1].get(item_id)
        changed.append(
            ChangedItem(
                run=pair.run,
                suite=pair.suite,
                score=pair.score,
                id=item_id,
                prompt=item.prompt if item else "",
                reference=item.reference if item else "",
                change=changes[item_id],
                first=describe_answer(before[item_id], items[0].get(item_id)),
                second=describe_answer(after[item_id], items[1].get(item_id)),
            )
        )
    return changed


def _score_of_pair(evaluation: Evaluation, pair: PairedScore) -> Score:
    return next(score for score in evaluation.scores if (score.metric, score.name) == (pair.metric, pair.score))


def _score_by_item_id(evaluation: Evaluation, score: Score, metric: Metric) -> dict[str, float]:
    return {item.id: value for item, value in zip(evaluation.items, item_values(score, metric), strict=True)}
