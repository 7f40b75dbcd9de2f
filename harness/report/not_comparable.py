"""Find the suites and scores by which an arm cannot be compared with the baseline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from harness.report.finished_run import FinishedRun
from harness.report.paired_difference import align_items
from harness.types import Evaluation, Score


def is_comparable(score: Score, evaluation: Evaluation, other: Evaluation) -> bool:
    """Return whether another evaluation has the same score with the same signature and some of the same items."""
    return _mismatch_reason(score, other) is None and bool(align_items(evaluation, other).ids)


def measured_alike(run: FinishedRun, other: FinishedRun, axis: str) -> bool:
    """Return whether two runs measured a score, `suite/score`, with one signature; true for a summary."""
    suite, _, name = axis.partition("/")
    signatures = [
        {score.signature for score in evaluation.scores if score.name == name}
        for evaluation in (run.last_evaluation(suite), other.last_evaluation(suite))
        if evaluation
    ]
    return len(signatures) < 2 or signatures[0] == signatures[1]


def not_compared_notes(arms: Mapping[str, FinishedRun], baseline: str) -> tuple[str, ...]:
    """Return a sentence for each suite and score by which some arms are not compared, with the reason.

    Args:
        arms: Name -> finished run.
        baseline: The arm with which all are compared.
    """
    arms_by_reason: dict[tuple[str, str], list[str]] = {}
    for arm, run in arms.items():
        if arm != baseline:
            for subject, reason in _not_compared_reasons(run, arms[baseline], baseline):
                arms_by_reason.setdefault((subject, reason), []).append(repr(arm))
    return tuple(
        f"{subject} is not compared for {', '.join(names)}: {reason}"
        for (subject, reason), names in arms_by_reason.items()
    )


def _not_compared_reasons(run: FinishedRun, baseline: FinishedRun, baseline_name: str) -> Iterator[tuple[str, str]]:
    evaluations = (evaluation for each in (baseline, run) for stage in each.evaluations for evaluation in stage)
    for suite in dict.fromkeys(evaluation.suite for evaluation in evaluations):
        first, second = baseline.last_evaluation(suite), run.last_evaluation(suite)
        if first is None:
            yield f"the suite {suite!r}", f"the baseline {baseline_name!r} did not measure it"
        elif second is None:
            yield f"the suite {suite!r}", "not measured there"
        elif not align_items(first, second).ids:
            reason = f"it has no common item with the baseline {baseline_name!r}, e.g. other held-out rows"
            yield f"the suite {suite!r}", reason
        else:
            for score in second.scores:
                mismatch = _mismatch_reason(score, first)
                if mismatch is not None:
                    yield f"{suite}/{score.name}", f"the baseline {baseline_name!r} {mismatch}"
            names = {score.name for score in second.scores}
            for score in first.scores:
                if second.matching_score(score) is None and score.name not in names:
                    yield f"{suite}/{score.name}", "not measured there"


def _mismatch_reason(score: Score, other: Evaluation) -> str | None:
    other_score = other.matching_score(score)
    if other_score is None:
        return "did not measure it"
    for each in (other_score, score):
        if each.unusable:
            return f"cannot be compared by it: UNUSABLE: {each.unusable}"
    if other_score.signature == score.signature:
        return None
    return f"measured it with another signature ({other_score.signature})"
