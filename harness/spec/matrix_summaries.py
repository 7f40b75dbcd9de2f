"""Which numbers the stage × suite matrix of a plan will come to, known before it is run."""

from __future__ import annotations

from collections.abc import Mapping

from harness import gate
from harness.interfaces.metric import Metric
from harness.types import Plan
from harness.utils import find_run

OF_EARLIER = ("backward_transfer", "forgetting", "forgetting_since_learned", "forgetting_from_best")
"""Summaries of what earlier stages taught: no number where no suite examines a stage before the last one."""

OF_STAGES = (*OF_EARLIER, "forward_transfer")
"""Summaries of the matrix that are no number where there is one stage alone."""

OF_GENERAL = ("general_ability_delta", "relative_forgetting")
"""Summaries of the general suites, and no number where none of them measures the score."""


def owners(planned: Plan) -> dict[str, int]:
    """Suite -> the first stage, from 1, that teaches what it examines."""
    found: dict[str, int] = {}
    for number, stage in enumerate(planned.stages, start=1):
        sources = {part.source for part in stage.parts}
        for suite in planned.suites:
            its_own = suite.source in sources or suite.name == stage.name
            if suite.name in stage.suites if stage.suites else its_own:
                found.setdefault(suite.name, number)
    return found


def goes_on(planned: Plan) -> bool:
    """Whether a run goes on from another, whose stages and suites are in its matrix too."""
    return bool(planned.model["path"].startswith(find_run.SCHEME))


def has_one_stage(planned: Plan) -> bool:
    """Whether the matrix will have one stage; a run that goes on from another has the stages of both."""
    return len(planned.stages) == 1 and not goes_on(planned)


def lacks(planned: Plan, metrics: Mapping[str, Mapping[str, Metric]], summary: str, score: str) -> bool:
    """Whether it is known that a run of the plan will not come to a summary of a score.

    metrics: suite -> name of a metric -> the metric. score: as `gate.called` calls it. False for a run that goes on
    from another, since what that one taught and measured is not known here.
    """
    if goes_on(planned):
        return False
    called = gate.called(metrics)
    having = [
        suite
        for suite in planned.suites
        if any(called[name, one] == score for name, metric in metrics[suite.name].items() for one in metric.names)
    ]
    if summary in OF_GENERAL:
        return not any(suite.role == "general" for suite in having)
    taught = owners(planned)
    stages = [taught[suite.name] for suite in having if suite.name in taught]
    if summary in OF_EARLIER:
        return not any(stage < len(planned.stages) for stage in stages)
    if summary == "forward_transfer":
        return not any(stage > 1 for stage in stages)
    return not stages


def why(summary: str, score: str) -> tuple[str, str]:
    """What a run lacks that will not come to a summary of a score, and the remedy."""
    if summary in OF_GENERAL:
        what = f"{summary!r} is about general suites, and none of them measures {score!r}"
        return what, 'measure it in a suite with "role": "general", or ask for another score'
    which = {"forward_transfer": "a stage after the first"} | dict.fromkeys(OF_EARLIER, "a stage before the last one")
    what = f"no suite that measures {score!r} examines what {which.get(summary, 'a stage')} taught"
    return what, "give that stage such a suite: on its source, of its name, or in its 'suites' (mode continual)"
