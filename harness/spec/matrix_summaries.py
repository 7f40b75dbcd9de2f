"""Determine, before a run, which summaries its stage × suite matrix can produce."""

from __future__ import annotations

from collections.abc import Mapping

from harness import gate
from harness.interfaces.metric import Metric
from harness.types import Plan
from harness.utils import find_run

NEEDS_EARLIER_STAGE = ("backward_transfer", "forgetting", "forgetting_since_learned", "forgetting_from_best")
"""Summaries of earlier stages. They need a suite that measures a stage before the last one."""

NEEDS_SEVERAL_STAGES = (*NEEDS_EARLIER_STAGE, "forward_transfer")
"""Summaries that need more than one stage."""

NEEDS_GENERAL_SUITE = ("general_ability_delta", "relative_forgetting")
"""Summaries of general suites. They need a general suite that measures the score."""


def stage_of_suite(plan: Plan) -> dict[str, int]:
    """Return suite -> index, from 1, of the first stage that teaches what the suite measures."""
    stage_indices: dict[str, int] = {}
    for index, stage in enumerate(plan.stages, start=1):
        sources = {source.source for source in stage.sources}
        for suite in plan.suites:
            is_default = suite.source in sources or suite.name == stage.name
            if suite.name in stage.suites if stage.suites else is_default:
                stage_indices.setdefault(suite.name, index)
    return stage_indices


def continues_earlier_run(plan: Plan) -> bool:
    """Return whether a run continues an earlier one, whose stages and suites are in its matrix too."""
    return bool(plan.model["path"].startswith(find_run.RUN_SCHEME))


def has_one_stage(plan: Plan) -> bool:
    """Return whether the matrix will have one stage. A continued run has the stages of both runs."""
    return len(plan.stages) == 1 and not continues_earlier_run(plan)


def takes_part(summary: str, task_stage: int, stage_count: int) -> bool:
    """Return whether a task takes part in a summary of tasks.

    Args:
        summary: A key of `statistics.forgetting.SUMMARIES`.
        task_stage: The stage, from 1, that taught the task.
        stage_count: Number of stages.
    """
    if summary in NEEDS_EARLIER_STAGE:
        return task_stage < stage_count
    return task_stage > 1 or summary != "forward_transfer"


def is_unavailable(plan: Plan, metrics: Mapping[str, Mapping[str, Metric]], summary: str, score: str) -> bool:
    """Return whether a run of the plan certainly cannot produce a summary of a score.

    Args:
        plan: The plan.
        metrics: Suite -> metric name -> metric.
        summary: The summary's name.
        score: The score, as `gate.summary_score_names` names it.

    Returns:
        False for a continued run, since the stages and suites of the earlier run are not known here.
    """
    if continues_earlier_run(plan):
        return False
    summary_names = gate.summary_score_names(metrics)
    with_score = [
        suite
        for suite in plan.suites
        if any(
            summary_names[name, suite_score] == score
            for name, metric in metrics[suite.name].items()
            for suite_score in metric.score_names
        )
    ]
    if summary in NEEDS_GENERAL_SUITE:
        return not any(suite.role == "general" for suite in with_score)
    taught = stage_of_suite(plan)
    stages = [taught[suite.name] for suite in with_score if suite.name in taught]
    if summary in NEEDS_EARLIER_STAGE:
        return not any(stage < len(plan.stages) for stage in stages)
    if summary == "forward_transfer":
        return not any(stage > 1 for stage in stages)
    return not stages


def unavailable_reason(summary: str, score: str) -> tuple[str, str]:
    """Return why a run cannot produce a summary of a score, and the remedy."""
    if summary in NEEDS_GENERAL_SUITE:
        what = f"{summary!r} needs a general suite, but none measures {score!r}"
        return what, 'measure it in a suite with "role": "general", or name another score'
    which = {"forward_transfer": "a stage after the first"} | dict.fromkeys(
        NEEDS_EARLIER_STAGE, "a stage before the last one"
    )
    what = f"no suite with the score {score!r} measures what {which.get(summary, 'a stage')} taught"
    return what, "add such a suite: on that stage's source, with its name, or in its 'suites' (mode continual)"
