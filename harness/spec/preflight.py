"""What of a spec is foreseen to fail after hours of training, told before anything is loaded.

Makes the metrics of a plan, which tells the names of the scores that its suites will give, and looks at all that asks
for one: the gate, early stopping, and in `axes` what arms are compared by. Imports nothing heavy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from harness import gate
from harness.errors import HarnessError, raise_all
from harness.interfaces.metric import Metric
from harness.registry import Registry
from harness.spec import matrix_summaries
from harness.spec.matrix_summaries import NEEDS_SEVERAL_STAGES, has_one_stage
from harness.spec.metric_factory import create_metric
from harness.spec.spec import Spec
from harness.types import Plan, Stage, Suite
from harness.utils import find_run

MetricsBySuite = Mapping[str, Mapping[str, Metric]]
"""Suite -> name of a metric -> the metric."""

CHEAP_INPUTS = ("likelihood", "choices", "text")
"""What a metric may read that is measured within a stage without being asked for: one forward pass of the rows."""


def create_metrics(plan: Plan, registry: Registry) -> dict[str, dict[str, Metric]]:
    """Create the metrics of every suite: suite -> name -> metric."""
    return {
        suite.name: {
            name: create_metric(registry, name, options, lang=suite.lang) for name, options in suite.metrics.items()
        }
        for suite in plan.suites
    }


def preflight(spec: Spec, plan: Plan, registry: Registry, *, will_train: bool = True) -> dict[str, dict[str, Metric]]:
    """The metrics of a plan, once everything that asks for a score, or for an earlier run, is known to find it.

    trains: whether the plan will be run, and not one model of it measured, which no gate judges and nothing ends.
    Raises HarnessError with all that is wrong.
    """
    metrics = create_metrics(plan, registry)
    raise_all(_duplicate_score_errors(spec, metrics))
    wrong = [*_gate_errors(spec, metrics), *_mid_stage_errors(spec, plan, metrics)] if will_train else []
    raise_all(
        [*wrong, *_missing_run_errors(spec), *(_fixed_server_model_errors(spec, plan.suites) if will_train else ())]
    )
    return metrics


def preflight_summaries(spec: Spec, plans: Sequence[tuple[Plan, MetricsBySuite]]) -> None:
    """Raise HarnessError for a condition of the gate on a summary that the matrix of no plan will come to.

    made: the plan of the spec with its metrics, or that of each of its arms, of which one is enough.
    """
    wrong = []
    for index, condition in enumerate(spec.document["gate"]):
        summary, score = condition["summary"], condition["score"]
        if summary is None or not all(matrix_summaries.is_unavailable(*one, summary, score) for one in plans):
            continue
        what, hint = matrix_summaries.unavailable_reason(summary, score)
        if summary in NEEDS_SEVERAL_STAGES and all(has_one_stage(planned) for planned, _ in plans):
            what = f"{summary!r} is about several stages, and the run has one"
            hint = "add stages (mode continual), or ask for what a general suite loses, e.g. by loses_at_most"
        wrong.append(HarnessError(spec.where(("gate", index, "summary")), what, hint))
    raise_all(wrong)


def mid_stage_suites(
    stage: Stage, suites: Sequence[Suite], metrics: MetricsBySuite
) -> tuple[tuple[Suite, ...], MetricsBySuite]:
    """The suites and metrics that are measured within a stage."""
    named = stage.train["evaluate_suites"]
    if named is not None:
        return tuple(one for one in suites if one.name in named), metrics
    cheap = {
        suite.name: {name: one for name, one in metrics[suite.name].items() if one.requires in CHEAP_INPUTS}
        for suite in suites
    }
    return tuple(one for one in suites if cheap[one.name]), cheap


def scores_with_direction(suites: MetricsBySuite) -> list[str]:
    """What the summaries of the matrix are called by: the scores that are better one way, each once."""
    called = gate.summary_score_names(suites)
    found = [
        called[metric, name]
        for made in suites.values()
        for metric, one in made.items()
        for name in one.score_names
        if one.higher_is_better is not None
    ]
    return list(dict.fromkeys(found))


def duplicate_score_names(metrics: Mapping[str, Metric]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each score that the metrics of one suite give more than once, with the metrics that give it."""
    given = [(score, name) for name, metric in metrics.items() for score in metric.score_names]
    for score, count in Counter(score for score, _ in given).items():
        if count > 1:
            yield score, tuple(name for one, name in given if one == score)


def _duplicate_score_errors(spec: Spec, metrics: MetricsBySuite) -> Iterator[HarnessError]:
    """A score of a suite has one address, `suite/score`, in gates, tables and MLflow alike."""
    for suite, made in metrics.items():
        for score, names in duplicate_score_names(made):
            if len(set(names)) == 1:
                what = f"the metric {names[0]!r} gives the score {score!r} twice"
                hint = "mend the plugin that brings it"
            else:
                both = " and ".join(repr(name) for name in dict.fromkeys(names))
                what = f"the metrics {both} both give the score '{suite}/{score}'"
                hint = "leave one out, or measure it in a suite of its own on the same source"
            yield HarnessError(spec.where(("evaluate", suite, "metrics", names[-1])), what, hint)


def _missing_run_errors(spec: Spec) -> Iterator[HarnessError]:
    """An earlier run to go on from that is not there, or has no result."""
    path = spec.document["model"]["path"]
    if path.startswith(find_run.RUN_SCHEME):
        where = spec.where(("model", "path"))
        try:
            find_run.find_finished_run(path.removeprefix(find_run.RUN_SCHEME), spec.document["output"], where=where)
        except HarnessError as error:
            yield error


def _fixed_server_model_errors(spec: Spec, suites: Sequence[Suite]) -> Iterator[HarnessError]:
    """Suites whose server would answer alike for the base and the tuned model."""
    for suite in suites:
        if suite.server is not None and "{stage}" not in suite.server["model"]:
            where = spec.where(("evaluate", suite.name, "server", "model"))
            what = f"the server's model {suite.server['model']!r} is the same before and after training"
            yield HarnessError(where, what, "put {stage} into the name, or use `harness evaluate` for one model")


# -- the gate ---------------------------------------------------------------------------------------------------------


def _gate_errors(spec: Spec, metrics: MetricsBySuite) -> Iterator[HarnessError]:
    """Conditions that no run of the spec could be judged by."""
    given = {f"{suite}/{name}" for suite, made in metrics.items() for one in made.values() for name in one.score_names}
    called = gate.summary_score_names(metrics)
    for index, condition in enumerate(spec.document["gate"]):
        known = given if condition["summary"] is None else set(called.values())
        if condition["score"] not in known:
            what = f"no metric gives the score {gate.condition_key(condition)!r}"
            yield HarnessError(spec.where(("gate", index, "score")), what, _available_hint(condition["score"], known))
        elif _needs_direction(condition) and not _has_direction(condition, metrics):
            what, hint = (
                f"neither direction of {gate.condition_key(condition)!r} is better",
                "ask how far it rises or falls",
            )
            yield HarnessError(spec.where(("gate", index, "score")), what, hint)


def _available_hint(requested: str, available: Iterable[str]) -> str:
    there = sorted(available)
    near = get_close_matches(requested, there, 1)
    return f"{f'did you mean {near[0]!r}? ' if near else ''}there are: {', '.join(there) or 'none'}"


def _needs_direction(condition: Mapping[str, Any]) -> bool:
    return condition["summary"] is not None or any(condition.get(test) is not None for test in gate.DIRECTED_TESTS)


def _has_direction(condition: Mapping[str, Any], suites: MetricsBySuite) -> bool:
    """Whether the condition's score is better one way, in its suite or, of a summary, in any."""
    if condition["summary"] is not None:
        return condition["score"] in scores_with_direction(suites)
    suite, _, name = condition["score"].partition("/")
    return any(one.higher_is_better is not None for one in suites[suite].values() if name in one.score_names)


# -- within a stage ---------------------------------------------------------------------------------------------------


def _mid_stage_errors(spec: Spec, plan: Plan, metrics: MetricsBySuite) -> Iterator[HarnessError]:
    """What is wrong with the settings by which a stage is measured on its way."""
    for number, stage in enumerate(plan.stages):
        every, settings, named = (stage.train[key] for key in ("evaluate_steps", "early_stopping", "evaluate_suites"))

        def where(key: str, *more: str, at: int = number, own: Mapping[str, Any] = stage.train) -> str:
            if own[key] == spec.document["train"][key]:
                return spec.where(("train", key, *more))
            return spec.where(("mode", next(iter(spec.document["mode"])), "stages", at, "train", key, *more))

        if every is None:
            if settings is not None:
                what = "nothing is measured within the stage that could end it"
                yield HarnessError(where("early_stopping"), what, 'say how often: "evaluate_steps": 50')
            continue
        known = {one.name: one for one in plan.suites}
        unknown = [suite for suite in named or () if suite not in known]
        for suite in unknown:
            hint = f"the spec's suites are: {', '.join(known) or 'none'}"
            yield HarnessError(where("evaluate_suites"), f"there is no suite {suite!r}", hint)
        for suite in named or ():
            if suite in known and known[suite].server is not None:
                what = f"the suite {suite!r} is answered by a server, which does not have the weights of every update"
                yield HarnessError(where("evaluate_suites"), what, "leave it out")
        suites, chosen = mid_stage_suites(stage, plan.suites, metrics)
        given = {f"{s.name}/{name}": one for s in suites for one in chosen[s.name].values() for name in one.score_names}
        if not given and not unknown:
            hint = "name suites in evaluate_suites, or add a metric such as response_perplexity"
            yield HarnessError(where("evaluate_steps"), "no suite has a metric that is measured within a stage", hint)
        for score in settings["scores"] if settings is not None else ():
            if score not in given:
                hint = f"measured within a stage are: {', '.join(given) or 'none'}; others need evaluate_suites"
                yield HarnessError(where("early_stopping", "scores", score), f"{score!r} is not measured there", hint)
            elif given[score].higher_is_better is None:
                what = f"{score!r} has no better direction"
                yield HarnessError(where("early_stopping", "scores", score), what, "weigh another score")
