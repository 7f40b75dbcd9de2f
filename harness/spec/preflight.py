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
from harness.spec.matrix_summaries import OF_STAGES, has_one_stage
from harness.spec.spec import Spec
from harness.types import Plan, Stage, Suite
from harness.utils import find_run

Metrics = Mapping[str, Mapping[str, Metric]]
"""Suite -> name of a metric -> the metric."""

CHEAP = ("likelihood", "choices", "text")
"""What a metric may read that is measured within a stage without being asked for: one forward pass of the rows."""


def metrics_of(planned: Plan, registry: Registry) -> dict[str, dict[str, Metric]]:
    """The metrics of every suite, made: suite -> name -> instance."""
    return {
        suite.name: {name: registry.make("metrics", name, options) for name, options in suite.metrics.items()}
        for suite in planned.suites
    }


def check(spec: Spec, planned: Plan, registry: Registry, *, trains: bool = True) -> dict[str, dict[str, Metric]]:
    """The metrics of a plan, once everything that asks for a score, or for an earlier run, is known to find it.

    trains: whether the plan will be run, and not one model of it measured, which no gate judges and nothing ends.
    Raises HarnessError with all that is wrong.
    """
    metrics = metrics_of(planned, registry)
    raise_all(_clashes(spec, metrics))
    wrong = [*_wrong_gate(spec, metrics), *_wrong_watching(spec, planned, metrics)] if trains else []
    raise_all([*wrong, *_unknown_run(spec), *(_one_answer_for_all(spec, planned.suites) if trains else ())])
    return metrics


def check_summaries(spec: Spec, made: Sequence[tuple[Plan, Metrics]]) -> None:
    """Raise HarnessError for a condition of the gate on a summary that the matrix of no plan will come to.

    made: the plan of the spec with its metrics, or that of each of its arms, of which one is enough.
    """
    wrong = []
    for index, condition in enumerate(spec.document["gate"]):
        summary, score = condition["summary"], condition["score"]
        if summary is None or not all(matrix_summaries.lacks(*one, summary, score) for one in made):
            continue
        what, hint = matrix_summaries.why(summary, score)
        if summary in OF_STAGES and all(has_one_stage(planned) for planned, _ in made):
            what = f"{summary!r} is about several stages, and the run has one"
            hint = "add stages (mode continual), or ask for what a general suite loses, e.g. by loses_at_most"
        wrong.append(HarnessError(spec.where(("gate", index, "summary")), what, hint))
    raise_all(wrong)


def within(stage: Stage, suites: Sequence[Suite], metrics: Metrics) -> tuple[tuple[Suite, ...], Metrics]:
    """The suites and metrics that are measured within a stage."""
    named = stage.train["evaluate_suites"]
    if named is not None:
        return tuple(one for one in suites if one.name in named), metrics
    cheap = {
        suite.name: {name: one for name, one in metrics[suite.name].items() if one.reads in CHEAP} for suite in suites
    }
    return tuple(one for one in suites if cheap[one.name]), cheap


def directed_names(suites: Metrics) -> list[str]:
    """What the summaries of the matrix are called by: the scores that are better one way, each once."""
    called = gate.called(suites)
    found = [
        called[metric, name]
        for made in suites.values()
        for metric, one in made.items()
        for name in one.names
        if one.higher_is_better is not None
    ]
    return list(dict.fromkeys(found))


def clashing(metrics: Mapping[str, Metric]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each score that the metrics of one suite give more than once, with the metrics that give it."""
    given = [(score, name) for name, metric in metrics.items() for score in metric.names]
    for score, count in Counter(score for score, _ in given).items():
        if count > 1:
            yield score, tuple(name for one, name in given if one == score)


def _clashes(spec: Spec, metrics: Metrics) -> Iterator[HarnessError]:
    """A score of a suite has one address, `suite/score`, in gates, tables and MLflow alike."""
    for suite, made in metrics.items():
        for score, names in clashing(made):
            if len(set(names)) == 1:
                what = f"the metric {names[0]!r} gives the score {score!r} twice"
                hint = "mend the plugin that brings it"
            else:
                both = " and ".join(repr(name) for name in dict.fromkeys(names))
                what = f"the metrics {both} both give the score '{suite}/{score}'"
                hint = "leave one out, or measure it in a suite of its own on the same source"
            yield HarnessError(spec.where(("evaluate", suite, "metrics", names[-1])), what, hint)


def _unknown_run(spec: Spec) -> Iterator[HarnessError]:
    """An earlier run to go on from that is not there, or has no result."""
    path = spec.document["model"]["path"]
    if path.startswith(find_run.SCHEME):
        where = spec.where(("model", "path"))
        try:
            find_run.finished_run(path.removeprefix(find_run.SCHEME), spec.document["output"], where=where)
        except HarnessError as error:
            yield error


def _one_answer_for_all(spec: Spec, suites: Sequence[Suite]) -> Iterator[HarnessError]:
    """Suites whose server would answer alike for the base and the tuned model."""
    for suite in suites:
        if suite.server is not None and "{stage}" not in suite.server["model"]:
            where = spec.where(("evaluate", suite.name, "server", "model"))
            what = f"the server's model {suite.server['model']!r} is the same before and after training"
            yield HarnessError(where, what, "put {stage} into the name, or use `harness evaluate` for one model")


# -- the gate ---------------------------------------------------------------------------------------------------------


def _wrong_gate(spec: Spec, metrics: Metrics) -> Iterator[HarnessError]:
    """Conditions that no run of the spec could be judged by."""
    given = {f"{suite}/{name}" for suite, made in metrics.items() for one in made.values() for name in one.names}
    called = gate.called(metrics)
    for index, condition in enumerate(spec.document["gate"]):
        known = given if condition["summary"] is None else set(called.values())
        if condition["score"] not in known:
            what = f"no metric gives the score {gate.key_of(condition)!r}"
            yield HarnessError(spec.where(("gate", index, "score")), what, _there_are(condition["score"], known))
        elif _is_directed(condition) and not _has_direction(condition, metrics):
            what, hint = f"neither direction of {gate.key_of(condition)!r} is better", "ask how far it rises or falls"
            yield HarnessError(spec.where(("gate", index, "score")), what, hint)


def _there_are(asked: str, known: Iterable[str]) -> str:
    there = sorted(known)
    near = get_close_matches(asked, there, 1)
    return f"{f'did you mean {near[0]!r}? ' if near else ''}there are: {', '.join(there) or 'none'}"


def _is_directed(condition: Mapping[str, Any]) -> bool:
    return condition["summary"] is not None or any(condition.get(test) is not None for test in gate.DIRECTED)


def _has_direction(condition: Mapping[str, Any], suites: Metrics) -> bool:
    """Whether the condition's score is better one way, in its suite or, of a summary, in any."""
    if condition["summary"] is not None:
        return condition["score"] in directed_names(suites)
    suite, _, name = condition["score"].partition("/")
    return any(one.higher_is_better is not None for one in suites[suite].values() if name in one.names)


# -- within a stage ---------------------------------------------------------------------------------------------------


def _wrong_watching(spec: Spec, planned: Plan, metrics: Metrics) -> Iterator[HarnessError]:
    """What is wrong with the settings by which a stage is measured on its way."""
    for number, stage in enumerate(planned.stages):
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
        known = {one.name: one for one in planned.suites}
        unknown = [suite for suite in named or () if suite not in known]
        for suite in unknown:
            hint = f"the spec's suites are: {', '.join(known) or 'none'}"
            yield HarnessError(where("evaluate_suites"), f"there is no suite {suite!r}", hint)
        for suite in named or ():
            if suite in known and known[suite].server is not None:
                what = f"the suite {suite!r} is answered by a server, which does not have the weights of every update"
                yield HarnessError(where("evaluate_suites"), what, "leave it out")
        suites, chosen = within(stage, planned.suites, metrics)
        given = {f"{s.name}/{name}": one for s in suites for one in chosen[s.name].values() for name in one.names}
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
