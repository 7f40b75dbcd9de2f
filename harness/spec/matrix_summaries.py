"""Which numbers the stage × suite matrix of a plan will come to, known before it is run."""

from __future__ import annotations

from collections.abc import Mapping

from harness import gate
from harness.interfaces.metric import Metric
from harness.types import Plan
from harness.utils import find_run

NEEDS_EARLIER_STAGE = ("backward_transfer", "forgetting", "forgetting_since_learned", "forgetting_from_best")
"""Summaries of what earlier stages taught: no number where no suite examines a stage before the last one."""

NEEDS_SEVERAL_STAGES = (*NEEDS_EARLIER_STAGE, "forward_transfer")
"""Summaries of the matrix that are no number where there is one stage alone."""

NEEDS_GENERAL_SUITE = ("general_ability_delta", "relative_forgetting")
"""Summaries of the general suites, and no number where none of them measures the score."""


def stage_of_suite(plan: Plan) -> dict[str, int]:
    """Suite -> the first stage, from 1, that teaches what it examines."""
    found: dict[str, int] = {}
    for number, stage in enumerate(plan.stages, start=1):
        sources = {part.source for part in stage.sources}
        for suite in plan.suites:
            its_own = suite.source in sources or suite.name == stage.name
            if suite.name in stage.suites if stage.suites else its_own:
                found.setdefault(suite.name, number)
    return found


def continues_earlier_run(plan: Plan) -> bool:
    """Whether a run goes on from another, whose stages and suites are in its matrix too."""
    return bool(plan.model["path"].startswith(find_run.RUN_SCHEME))


def has_one_stage(plan: Plan) -> bool:
    """Whether the matrix will have one stage; a run that goes on from another has the stages of both."""
    return len(plan.stages) == 1 and not continues_earlier_run(plan)


def is_unavailable(plan: Plan, metrics: Mapping[str, Mapping[str, Metric]], summary: str, score: str) -> bool:
    """Whether it is known that a run of the plan will not come to a summary of a score.

    metrics: suite -> name of a metric -> the metric. score: as `gate.called` calls it. False for a run that goes on
    from another, since what that one taught and measured is not known here.
    """
    if continues_earlier_run(plan):
        return False
    called = gate.summary_score_names(metrics)
    having = [
        suite
        for suite in plan.suites
        if any(called[name, one] == score for name, metric in metrics[suite.name].items() for one in metric.score_names)
    ]
    if summary in NEEDS_GENERAL_SUITE:
        return not any(suite.role == "general" for suite in having)
    taught = stage_of_suite(plan)
    stages = [taught[suite.name] for suite in having if suite.name in taught]
    if summary in NEEDS_EARLIER_STAGE:
        return not any(stage < len(plan.stages) for stage in stages)
    if summary == "forward_transfer":
        return not any(stage > 1 for stage in stages)
    return not stages


def unavailable_reason(summary: str, score: str) -> tuple[str, str]:
    """What a run lacks that will not come to a summary of a score, and the remedy."""
    if summary in NEEDS_GENERAL_SUITE:
        what = f"{summary!r} is about general suites, and none of them measures {score!r}"
        return what, 'measure it in a suite with "role": "general", or ask for another score'
    which = {"forward_transfer": "a stage after the first"} | dict.fromkeys(
        NEEDS_EARLIER_STAGE, "a stage before the last one"
    )
    what = f"no suite that measures {score!r} examines what {which.get(summary, 'a stage')} taught"
    return what, "give that stage such a suite: on its source, of its name, or in its 'suites' (mode continual)"
