"""Summarize the ratings of a task: means, wins, the side that was preferred, agreement, and what the items can show."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.evaluation.predictions import load_item_scores, predictions_path
from harness.rating.agreement import Agreement, measure_agreement
from harness.rating.power import power_of_comparison, power_of_means
from harness.rating.rubric import LEVELS, PREFERENCE
from harness.rating.store import BOTH_BAD, NOT_APPLICABLE, RaterState, RatingStore, Value
from harness.rating.task import SUMMARY_FILE, RatingTask, require_own_summaries, summary_folders
from harness.statistics.intervals import Estimate, estimate
from harness.statistics.item_statistics import ItemsAggregate
from harness.statistics.proportions import mcnemar_p, paired_difference_interval, wilson
from harness.types import MIN_ITEMS
from harness.utils.atomic_write import atomic_write
from harness.utils.json_files import write_json

FEEDBACK_FILE = "feedback.jsonl"
SUMMARY_FORMAT = 1
TIE = 3


@dataclass(frozen=True)
class RaterCount:
    """How far a rater is."""

    name: str
    rated: int
    skipped: int
    finished: bool


@dataclass(frozen=True)
class DimensionSummary:
    """The ratings of one dimension.

    Attributes:
        key: The dimension.
        name: Its name in the rubric.
        mean: The mean over the items, each the mean over its raters, with the bootstrap interval over items; None
            without ratings.
        counts: Level -> number of ratings, `na` included.
        agreement: Of several raters.
        judge: Of the mean rating with the grade by the metric `judge`; None if it did not grade these items.
        values: Item -> its mean.
    """

    key: str
    name: str
    mean: Estimate | None
    counts: Mapping[str, int]
    agreement: Agreement
    judge: Agreement | None
    values: Mapping[str, float]


@dataclass(frozen=True)
class ComparisonSummary:
    """The comparison of two models. An item is won by the model that its raters prefer in the mean.

    Attributes:
        wins: Items that the second model wins.
        ties: Items without a preference, `both_bad` included.
        losses: Items that the first model wins.
        both_bad: Number of ratings "both are bad".
        net: (wins − losses) / items, with its interval.
        mean: Mean preference, −2 (the first is much better) to 2, with the bootstrap interval over items.
        p: P-value of the exact sign test, without ties.
        verdict: `too few items` below 30; else `better` or `worse` (of the second model) if p is below 0.05, or `no
            evidence`.
        left_rate: Share of the ratings with a preference that preferred the left side, with Wilson's interval.
        left_p: P-value of "no side is preferred", exact.
        agreement: Of several raters.
        values: Item -> its mean preference.
    """

    wins: int
    ties: int
    losses: int
    both_bad: int
    net: Estimate | None
    mean: Estimate | None
    p: float
    verdict: str
    left_rate: Estimate | None
    left_p: float
    agreement: Agreement
    values: Mapping[str, float]


@dataclass(frozen=True)
class RatingSummary:
    """The result of a task.

    Attributes:
        task: Digest of the task.
        name: Name of the task.
        models: Names of the models; of two, the second is compared with the first.
        rubric: Language and digest of the rubric.
        items: Number of sampled items.
        raters: The raters.
        repeats: Number of decisions that raters made twice.
        repeats_equal: Share of them that are equal; NaN without any.
        dimensions: The dimensions; empty for a comparison.
        comparison: The comparison; None for one model.
        power: What this number of items can show, in words.
    """

    task: str
    name: str
    models: tuple[str, ...]
    rubric: str
    items: int
    raters: tuple[RaterCount, ...]
    repeats: int
    repeats_equal: float
    dimensions: tuple[DimensionSummary, ...]
    comparison: ComparisonSummary | None
    power: str

    def to_json(self) -> dict[str, Any]:
        """Return the summary as plain data."""
        return {"format": SUMMARY_FORMAT, **asdict(self)}


def summarize_ratings(task: RatingTask, store: RatingStore) -> RatingSummary:
    """Summarize the ratings so far.

    Args:
        task: The task.
        store: Its ratings.
    """
    states = {rater: store.load(rater) for rater in store.raters()}
    keys = [dimension.key for dimension in task.dimensions]
    counts = tuple(
        RaterCount(
            rater,
            sum(
                state.is_decided(shown, keys)
                for shown in state.values
                if shown not in state.skipped and not shown[1]  # no repeat
            ),
            sum(not repeat for _, repeat in state.skipped),
            state.finished,
        )
        for rater, state in states.items()
    )
    repeated = [pair for state in states.values() for pair in _repeated_values(state, task)]
    comparison = _summarize_comparison(task, states) if task.is_comparison else None
    dimensions = () if task.is_comparison else tuple(_summarize_dimensions(task, states))
    return RatingSummary(
        task=task.digest,
        name=task.folder.name,
        models=tuple(model.name for model in task.models),
        rubric=f"{task.rubric.language} {task.rubric.digest}",
        items=len(task.items),
        raters=counts,
        repeats=len(repeated),
        repeats_equal=sum(one == other for one, other in repeated) / len(repeated) if repeated else math.nan,
        dimensions=dimensions,
        comparison=comparison,
        power=power_of_means([entry.mean for entry in dimensions if entry.mean is not None])
        if comparison is None
        else power_of_comparison(comparison.wins, comparison.losses),
    )


def write_summary(task: RatingTask, store: RatingStore, summary: RatingSummary) -> tuple[Path, ...]:
    """Write `summary.json`, and `feedback.jsonl` with the ratings of each item, which a tracker sends.

    The folder of the second run of a comparison gets a copy of the summary.

    Args:
        task: The task.
        store: Its ratings.
        summary: Their summary.

    Returns:
        The folders of the runs.

    Raises:
        HarnessError: It would replace the summary of another task.
    """
    require_own_summaries(task)
    for folder in summary_folders(task):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / SUMMARY_FILE, summary.to_json(), indent=2)
    with atomic_write(task.folder / FEEDBACK_FILE) as draft:
        lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in _feedback_of_items(task, store))
        draft.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
    return tuple(dict.fromkeys(model.folder for model in task.models))


def _feedback_of_items(task: RatingTask, store: RatingStore) -> Iterator[dict[str, Any]]:
    """Yield each rated item with its texts and ratings; of a comparison, the preference for the second model."""
    states = {rater: store.load(rater) for rater in store.raters()}
    for item in task.items:
        ratings = []
        for rater, state in states.items():
            shown = (item.key, False)
            for key, value in {} if shown in state.skipped else state.values.get(shown, {}).items():
                number = canonical_value(value, state.left[shown], is_comparison=task.is_comparison)
                rating = {"name": key, "value": value if number is None else number, "rater": rater}
                ratings.append({**rating, "comment": state.comments.get(shown, "")})
        if ratings:
            answers = dict(zip((model.name for model in task.models), item.answers, strict=True))
            yield {"item": item.key, "prompt": item.prompt, "answers": answers, "ratings": ratings}


def canonical_value(value: Value, left: int, *, is_comparison: bool) -> float | None:
    """Return a level as a number, or the preference for the second model from −2 to 2; None for `na`.

    Args:
        value: The value as a rater gave it.
        left: Index of the model on the left.
        is_comparison: Whether two answers were compared.
    """
    if value == NOT_APPLICABLE:
        return None
    if not is_comparison:
        return float(value)
    preference = 0 if value == BOTH_BAD else int(value) - TIE
    return float(preference if left == 0 else -preference)


def _ratings_by_rater(
    states: Mapping[str, RaterState], dimension: str, task: RatingTask
) -> dict[str, dict[str, float]]:
    """Return rater -> item -> rating, without repeats, skipped items and `na`."""
    ratings: dict[str, dict[str, float]] = {}
    for rater, state in states.items():
        for (item, repeat), values in state.values.items():
            if repeat or (item, repeat) in state.skipped or dimension not in values:
                continue
            value = canonical_value(values[dimension], state.left[item, repeat], is_comparison=task.is_comparison)
            if value is not None:
                ratings.setdefault(rater, {})[item] = value
    return ratings


def _summarize_dimensions(task: RatingTask, states: Mapping[str, RaterState]) -> Sequence[DimensionSummary]:
    judged = _judge_grades(task)
    summaries = []
    for dimension in task.dimensions:
        ratings = _ratings_by_rater(states, dimension.key, task)
        values = _item_means(ratings)
        counts = Counter(
            str(of_item[dimension.key])
            for state in states.values()
            for (item, repeat), of_item in state.values.items()
            if not repeat and (item, repeat) not in state.skipped and dimension.key in of_item
        )
        grades = {item: of_item[dimension.key] for item, of_item in judged.items() if dimension.key in of_item}
        judge = measure_agreement({"people": values, "judge": grades}, "interval") if grades else None
        mean = _mean(values, LEVELS[0], LEVELS[-1])
        summaries.append(
            DimensionSummary(dimension.key, dimension.name, mean, counts, measure_agreement(ratings), judge, values)
        )
    return summaries


def _summarize_comparison(task: RatingTask, states: Mapping[str, RaterState]) -> ComparisonSummary:
    ratings = _ratings_by_rater(states, PREFERENCE, task)
    values = _item_means(ratings)
    wins, losses = sum(value > 0 for value in values.values()), sum(value < 0 for value in values.values())
    shown = [
        of_item[PREFERENCE]
        for state in states.values()
        for (item, repeat), of_item in state.values.items()
        if PREFERENCE in of_item and not repeat and (item, repeat) not in state.skipped
    ]
    left = sum(value != BOTH_BAD and int(value) < TIE for value in shown)
    right = sum(value != BOTH_BAD and int(value) > TIE for value in shown)
    p = mcnemar_p(wins, losses)
    if len(values) < MIN_ITEMS:
        verdict = "too few items"
    else:
        verdict = "no evidence" if p >= 0.05 else "better" if wins > losses else "worse"
    return ComparisonSummary(
        wins=wins,
        ties=len(values) - wins - losses,
        losses=losses,
        both_bad=sum(value == BOTH_BAD for value in shown),
        net=_net(wins, losses, len(values)),
        mean=_mean(values, -2, 2),
        p=p,
        verdict=verdict,
        left_rate=_rate(left, left + right),
        left_p=mcnemar_p(left, right),
        agreement=measure_agreement(ratings),
        values=values,
    )


def _item_means(ratings: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    by_item: dict[str, list[float]] = {}
    for of_rater in ratings.values():
        for item, value in of_rater.items():
            by_item.setdefault(item, []).append(value)
    return {item: math.fsum(values) / len(values) for item, values in sorted(by_item.items())}


def _mean(values: Mapping[str, float], lowest: int, highest: int) -> Estimate | None:
    """Return the mean over items with the standard error of the bootstrap over items, within the scale.

    Where all items are equal there is no interval: how they vary is not known.
    """
    if not values:
        return None
    vectors = [(value,) for value in values.values()]
    mean = estimate(vectors, ItemsAggregate(lambda matrix: float(np.mean(matrix[:, 0]))))
    if len(set(vectors)) == 1:
        return replace(mean, stderr=math.nan, low=math.nan, high=math.nan)
    return replace(mean, low=max(mean.low, lowest), high=min(mean.high, highest))


def _net(wins: int, losses: int, items: int) -> Estimate | None:
    if not items:
        return None
    return Estimate((wins - losses) / items, *paired_difference_interval(wins, losses, items), items, "paired")


def _rate(hits: int, count: int) -> Estimate | None:
    if not count:
        return None
    share = hits / count
    return Estimate(share, math.sqrt(share * (1 - share) / count), *wilson(hits, count), count, "wilson")


def _repeated_values(state: RaterState, task: RatingTask) -> Sequence[tuple[float | None, float | None]]:
    """Return (first, second) decision of everything that a rater decided twice."""
    return [
        tuple(  # type: ignore[misc]
            canonical_value(state.values[item, again][key], state.left[item, again], is_comparison=task.is_comparison)
            for again in (False, True)
        )
        for (item, repeat), values in state.values.items()
        if repeat and not {(item, False), (item, True)} & state.skipped
        for key in values
        if key in state.values.get((item, False), {})
    ]


def _judge_grades(task: RatingTask) -> dict[str, dict[str, float]]:
    """Return item -> dimension -> grade of the metric `judge`, as far as the run has them."""
    model = task.models[0]
    grades: dict[str, dict[str, float]] = {}
    for suite in dict.fromkeys(item.suite for item in task.items):
        scores = load_item_scores(predictions_path(model.folder / "predictions", suite, model.stage))
        for item_id, of_item in scores.items():
            grades[f"{suite}/{item_id}"] = {
                name.removeprefix("judge_"): value
                for name, value in of_item.items()
                if name.startswith("judge_") and isinstance(value, int | float) and math.isfinite(value)
            }
    return grades
