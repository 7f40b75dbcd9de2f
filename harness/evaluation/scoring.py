"""Items → scores with their uncertainty. Needs no model: what was generated once can be scored again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

from harness.errors import HarnessError, RunError
from harness.interfaces.metric import Metric
from harness.seeding import derive_seed
from harness.spec.preflight import duplicate_score_names
from harness.statistics.intervals import estimate
from harness.types import Evaluation, Item, LimitViolation, Score, Suite


def find_limit_violations(
    suite: Suite, stage: int, items: Sequence[Item], scores: Sequence[Score]
) -> tuple[LimitViolation, ...]:
    """Which of the suite's limits (`max_empty`, `max_truncated`, `max_unparsed`, `max_cut`) its items break."""
    answered = [item for item in items if item.answer is not None]
    counts = (
        ("empty", suite.max_empty, sum(item.finish == "empty" for item in answered), len(answered), ""),
        ("truncated", suite.max_truncated, sum(item.finish == "length" for item in answered), len(answered), ""),
        ("cut", suite.max_cut, sum(item.prompt_cut or item.row_cut for item in items), len(items), ""),
        *(
            ("unparsed", suite.max_unparsed, score.counts["unparsed"], score.n, score.metric)
            for score in _one_score_per_metric(scores)
            if "unparsed" in score.counts
        ),
    )
    return tuple(
        LimitViolation(stage, suite.name, what, count, n, allowed, metric)
        for what, allowed, count, n, metric in counts
        if allowed is not None and n and count > allowed * n
    )


def raise_on_violations(evaluations: Iterable[Evaluation], *, first_stage: int = 0) -> None:
    """Raise RunError (exit code 1) naming every limit that these evaluations break; to be called when all is saved.

    first_stage: the first one that counts. A pretrained base model (stage 0) that cannot end an answer under a chat
    template is no reason to fail a run that teaches it to.
    """
    found = [breach for one in evaluations if one.stage >= first_stage for breach in one.violations]
    if found:
        stages = [f"evaluate.{one.suite}.max_{one.what}: after stage {one.stage} {one}" for one in found]
        hint = "look at the answers in the run's folder; check the template, max_new_tokens and stop"
        raise RunError("; ".join(stages), "the scores do not measure the model", hint)


def _one_score_per_metric(scores: Sequence[Score]) -> Iterator[Score]:
    yield from {score.metric: score for score in scores}.values()


_COUNTERS: dict[str, dict[str, Callable[[Item], bool]]] = {
    "answer": {
        "empty": lambda item: item.finish == "empty",
        "truncated": lambda item: item.finish == "length",
        "prompt_cut": lambda item: item.prompt_cut,
    },
    "likelihood": {"row_cut": lambda item: item.row_cut},
    "base": {"row_cut": lambda item: item.row_cut},
    "choices": {"row_cut": lambda item: item.row_cut, "boundary": lambda item: item.joined > 0},
    "text": {},
}
"""What is counted beside a score, by what its metric reads."""


def score_items(
    items: Sequence[Item], metrics: Mapping[str, Metric], *, seed: int, suite: str = "", stage: int = 0
) -> tuple[Score, ...]:
    """Every score that the metrics draw from a suite's items, with standard error, 95 % interval and counts.

    metrics: by name. The interval has a closed form where the metric says so, else the items are resampled, drawn by
    (seed, suite, score): the same draws at every stage.
    Raises HarnessError when an item lacks what a metric reads, a metric gives other scores than it names, or two give
    scores of one name.
    """
    for name, names in duplicate_score_names(metrics):
        what = f"the score {name!r} is given by {' and '.join(map(repr, names))}"
        raise HarnessError(f"metrics.{names[-1]}", what, "leave one out, or score it by itself")
    return tuple(
        one
        for name, metric in metrics.items()
        for one in _scores_of_metric(items, name, metric, suite=suite, stage=stage, seed=seed)
    )


def _scores_of_metric(
    items: Sequence[Item], metric_name: str, metric: Metric, *, suite: str, stage: int, seed: int
) -> Sequence[Score]:
    statistics = [metric.statistics(item) for item in items]
    for given in statistics:
        if set(given) != set(metric.score_names):
            what = (
                f"gives {', '.join(sorted(given)) or 'no score'} where it names {', '.join(sorted(metric.score_names))}"
            )
            raise HarnessError(f"metrics.{metric_name}", what, "the plugin that defines the metric must mend this")
    counts = {what: sum(map(counted, items)) for what, counted in _COUNTERS[metric.requires].items()}
    if metric.requires == "answer":
        counts["unparsed"] = sum(not metric.is_parsed(item) for item in items)
    found, signature = [], metric.signature()
    for name in metric.score_names:
        vectors = tuple(given[name] for given in statistics)
        bootstrap = derive_seed(seed, "bootstrap", suite, name)
        result = estimate(vectors, partial(metric.aggregate, name), seed=bootstrap, ratio=metric.is_ratio(name))
        found.append(
            Score(
                stage=stage,
                suite=suite,
                metric=metric_name,
                name=name,
                value=result.value,
                n=result.n,
                stderr=result.stderr,
                low=result.low,
                high=result.high,
                higher_is_better=metric.higher_is_better,
                signature=signature,
                statistics=vectors,
                method=result.method,
                counts=counts,
            )
        )
    return found
