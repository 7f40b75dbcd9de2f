"""What of an experiment's arms cannot be compared with their baseline, because not both measured it, or not alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from harness.report.finished_run import FinishedRun
from harness.report.paired_difference import align_items
from harness.types import Evaluation, Score


def is_comparable(score: Score, evaluation: Evaluation, other: Evaluation) -> bool:
    """Whether another evaluation of the suite has the score too, measured in the same way and of some of its items."""
    return _mismatch_reason(score, other) is None and bool(align_items(evaluation, other).ids)


def measured_alike(run: FinishedRun, other: FinishedRun, axis: str) -> bool:
    """Whether two runs measured a score, `suite/score`, in one way; a summary, `summary:score`, is not looked at."""
    suite, _, name = axis.partition("/")
    ways = [
        {score.signature for score in one.scores if score.name == name}
        for one in (run.last_evaluation(suite), other.last_evaluation(suite))
        if one
    ]
    return len(ways) < 2 or ways[0] == ways[1]


def have_shared_items(arms: Iterable[FinishedRun], suite: str) -> bool:
    """Whether some item of a suite was measured in every arm."""
    ends = [run.last_evaluation(suite) for run in arms]
    return bool(set.intersection(*({item.id for item in one.items} if one else set() for one in ends)))


def not_compared_notes(arms: Mapping[str, FinishedRun], baseline: str) -> tuple[str, ...]:
    """A sentence for each suite and score that some arms are not compared by, with their names and the reason.

    arms: name -> its finished run. baseline: the arm that all are compared with.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for arm, run in arms.items():
        if arm != baseline:
            for what, why in _not_compared_reasons(run, arms[baseline], baseline):
                found.setdefault((what, why), []).append(repr(arm))
    return tuple(f"{what} is not compared for {', '.join(names)}: {why}" for (what, why), names in found.items())


def _not_compared_reasons(run: FinishedRun, baseline: FinishedRun, baseline_name: str) -> Iterator[tuple[str, str]]:
    for suite in dict.fromkeys(one.suite for kept in (baseline, run) for stage in kept.evaluations for one in stage):
        first, second = baseline.last_evaluation(suite), run.last_evaluation(suite)
        if first is None:
            yield f"the suite {suite!r}", f"the baseline {baseline_name!r} did not measure it"
        elif second is None:
            yield f"the suite {suite!r}", "not measured there"
        elif not align_items(first, second).ids:
            yield (
                f"the suite {suite!r}",
                f"it shares no item with the baseline {baseline_name!r}, as with other held-out rows",
            )
        else:
            for score in second.scores:
                reason = _mismatch_reason(score, first)
                if reason is not None:
                    yield f"{suite}/{score.name}", f"the baseline {baseline_name!r} {reason}"
            for score in first.scores:
                if second.matching_score(score) is None and score.name not in {one.name for one in second.scores}:
                    yield f"{suite}/{score.name}", "not measured there"


def _mismatch_reason(score: Score, other: Evaluation) -> str | None:
    found = other.matching_score(score)
    if found is None:
        return "did not measure it"
    return None if found.signature == score.signature else f"measured it otherwise ({found.signature})"
