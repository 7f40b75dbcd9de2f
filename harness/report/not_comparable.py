"""What of an experiment's arms cannot be compared with their baseline, because not both measured it, or not alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from harness.report.finished_run import Kept
from harness.report.paired_difference import align
from harness.types import Evaluation, Score


def comparable(score: Score, own: Evaluation, other: Evaluation) -> bool:
    """Whether another evaluation of the suite has the score too, measured in the same way and of some of its items."""
    return _reason(score, other) is None and bool(align(own, other).ids)


def alike(run: Kept, other: Kept, axis: str) -> bool:
    """Whether two runs measured a score, `suite/score`, in one way; a summary, `summary:score`, is not looked at."""
    suite, _, name = axis.partition("/")
    ways = [
        {score.signature for score in one.scores if score.name == name}
        for one in (run.last(suite), other.last(suite))
        if one
    ]
    return len(ways) < 2 or ways[0] == ways[1]


def share_items(arms: Iterable[Kept], suite: str) -> bool:
    """Whether some item of a suite was measured in every arm."""
    ends = [run.last(suite) for run in arms]
    return bool(set.intersection(*({item.id for item in one.items} if one else set() for one in ends)))


def left_out(arms: Mapping[str, Kept], base: str) -> tuple[str, ...]:
    """A sentence for each suite and score that some arms are not compared by, with their names and the reason.

    arms: name -> its finished run. base: the arm that all are compared with.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for arm, run in arms.items():
        if arm != base:
            for what, why in _of(run, arms[base], base):
                found.setdefault((what, why), []).append(repr(arm))
    return tuple(f"{what} is not compared for {', '.join(names)}: {why}" for (what, why), names in found.items())


def _of(run: Kept, base: Kept, name: str) -> Iterator[tuple[str, str]]:
    for suite in dict.fromkeys(one.suite for kept in (base, run) for stage in kept.evaluations for one in stage):
        first, second = base.last(suite), run.last(suite)
        if first is None:
            yield f"the suite {suite!r}", f"the baseline {name!r} did not measure it"
        elif second is None:
            yield f"the suite {suite!r}", "not measured there"
        elif not align(first, second).ids:
            yield f"the suite {suite!r}", f"it shares no item with the baseline {name!r}, as with other held-out rows"
        else:
            for score in second.scores:
                reason = _reason(score, first)
                if reason is not None:
                    yield f"{suite}/{score.name}", f"the baseline {name!r} {reason}"
            for score in first.scores:
                if second.like(score) is None and score.name not in {one.name for one in second.scores}:
                    yield f"{suite}/{score.name}", "not measured there"


def _reason(score: Score, other: Evaluation) -> str | None:
    found = other.like(score)
    if found is None:
        return "did not measure it"
    return None if found.signature == score.signature else f"measured it otherwise ({found.signature})"
