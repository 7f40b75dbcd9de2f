"""Find, before anything is loaded, what would fail only after hours of training.

Creates the metrics of a plan, whose score names are then known, and checks everything that refers to a score: the gate,
early stopping and, in `preflight_arms`, the comparison of arms. Imports nothing heavy.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from harness import gate
from harness.errors import ComponentError, HarnessError, located_errors, raise_all
from harness.interfaces.metric import Metric
from harness.registry import Registry
from harness.spec import matrix_summaries
from harness.spec.bfloat16_training import bfloat16_training_errors
from harness.spec.matrix_summaries import NEEDS_SEVERAL_STAGES, has_one_stage
from harness.spec.metric_factory import create_metric
from harness.spec.plan import create_mitigations, stage_mitigations
from harness.spec.primary_score import primary_score
from harness.spec.quantized_training import quantized_training_errors
from harness.spec.sharded_training import sharded_training_errors
from harness.spec.spec import Spec
from harness.types import Plan, Stage, Suite
from harness.utils import find_run

MetricsBySuite = Mapping[str, Mapping[str, Metric]]
"""Suite -> name of a metric -> the metric."""

CHEAP_INPUTS = ("likelihood", "choices", "text")
"""Inputs of the metrics that mid-stage evaluations compute by default: those of one forward pass."""


def create_metrics(spec: Spec, plan: Plan, registry: Registry) -> dict[str, dict[str, Metric]]:
    """Create the metrics of every suite: suite -> name -> metric.

    Raises:
        HarnessError: Options are wrong in a way that the schema cannot express; each with its place in the spec.
    """
    metrics: dict[str, dict[str, Metric]] = {}
    errors = []
    for suite in plan.suites:
        metrics[suite.name] = {}
        for name, options in suite.metrics.items():
            try:
                metrics[suite.name][name] = create_metric(registry, name, options, lang=suite.lang)
            except ComponentError:
                raise
            except HarnessError as error:
                option = error.where.removeprefix(f"metrics.{name}.")
                path = ("evaluate", suite.name, "metrics", name, *([option] if option in options else []))
                errors.append(HarnessError(spec.where(path), error.what, error.hint))
    raise_all(errors)
    return metrics


def preflight(spec: Spec, plan: Plan, registry: Registry, *, will_train: bool = True) -> dict[str, dict[str, Metric]]:
    """Create the metrics of a plan and verify that every referenced score and earlier run exists.

    Args:
        spec: The spec.
        plan: Its plan.
        registry: The plugin registry.
        will_train: Whether the plan will be trained. False: one model is evaluated, without gate or early stopping.

    Raises:
        HarnessError: Everything that is wrong.
    """
    metrics = create_metrics(spec, plan, registry)
    raise_all(_duplicate_score_errors(spec, metrics))
    errors = [
        *_sample_errors(spec, plan.suites, metrics),
        *_served_chat_errors(spec, plan.suites),
        *_missing_run_errors(spec),
    ]
    if will_train:
        errors = [
            *_primary_score_errors(spec, plan.suites, metrics),
            *_gate_errors(spec, plan.suites, metrics),
            *_mid_stage_errors(spec, plan, metrics),
            *_monitored_suite_errors(spec, plan, registry, metrics),
            *_double_interval_errors(spec, plan),
            *bfloat16_training_errors(spec, plan, registry),
            *quantized_training_errors(spec, plan, registry),
            *sharded_training_errors(spec, plan, registry),
            *_offloading_errors(spec, plan),
            *_router_loss_errors(spec, plan),
            *errors,
            *_fixed_server_model_errors(spec, plan.suites),
        ]
    raise_all(errors)
    return metrics


def unavailable_metric_errors(spec: Spec, metrics: MetricsBySuite) -> Iterator[HarnessError]:
    """Yield an error for each metric that needs something that is not installed."""
    return located_errors(
        (spec.where(("evaluate", suite, "metrics", name)), metric.check_available)
        for suite, suite_metrics in metrics.items()
        for name, metric in suite_metrics.items()
    )


def unavailable_optimizer_errors(spec: Spec, plan: Plan, registry: Registry) -> Iterator[HarnessError]:
    """Yield an error for each optimizer of a stage that needs something that is not installed."""
    optimizers = {name: options for stage in plan.stages for name, options in stage.train["optimizer"].items()}
    return located_errors(
        (spec.where(("train", "optimizer")), registry.create("optimizers", name, options).check_available)
        for name, options in optimizers.items()
    )


def preflight_summaries(spec: Spec, plans: Sequence[tuple[Plan, MetricsBySuite]]) -> None:
    """Reject gate conditions on summaries that the matrix of no plan can produce.

    Args:
        spec: The spec.
        plans: The plan of the spec with its metrics, or that of each arm. It is enough if one arm has the summary.

    Raises:
        HarnessError: A summary cannot be produced.
    """
    errors = []
    for index, condition in enumerate(spec.document["gate"]):
        summary, score = condition["summary"], condition["score"]
        if summary is None or not all(
            matrix_summaries.is_unavailable(plan, metrics, summary, score) for plan, metrics in plans
        ):
            continue
        what, hint = matrix_summaries.unavailable_reason(summary, score)
        if summary in NEEDS_SEVERAL_STAGES and all(has_one_stage(plan) for plan, _ in plans):
            what = f"{summary!r} needs several stages, but the run has one"
            hint = "add stages (mode continual), or judge a general suite, e.g. by loses_at_most"
        errors.append(HarnessError(spec.where(("gate", index, "summary")), what, hint))
    raise_all(errors)


def mid_stage_suites(
    stage: Stage, suites: Sequence[Suite], metrics: MetricsBySuite
) -> tuple[tuple[Suite, ...], MetricsBySuite]:
    """Return the suites and metrics of the mid-stage evaluations."""
    names = stage.train["evaluate_suites"]
    if names is not None:
        return tuple(suite for suite in suites if suite.name in names), metrics
    cheap = {
        suite.name: {
            name: metric
            for name, metric in metrics[suite.name].items()
            if metric.requires in CHEAP_INPUTS and not metric.computes_values
        }
        for suite in suites
    }
    return tuple(suite for suite in suites if cheap[suite.name]), cheap


def scores_with_direction(suites: MetricsBySuite) -> list[str]:
    """Return the scores that have a direction, as summaries of the matrix name them, each once."""
    summary_names = gate.summary_score_names(suites)
    names = [
        summary_names[metric_name, score]
        for metrics in suites.values()
        for metric_name, metric in metrics.items()
        for score in metric.score_names
        if metric.higher_is_better is not None
    ]
    return list(dict.fromkeys(names))


def duplicate_score_names(metrics: Mapping[str, Metric]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each score that the metrics of a suite produce more than once, with those metrics."""
    pairs = [(score, name) for name, metric in metrics.items() for score in metric.score_names]
    for score, count in Counter(score for score, _ in pairs).items():
        if count > 1:
            yield score, tuple(name for other, name in pairs if other == score)


def _duplicate_score_errors(spec: Spec, metrics: MetricsBySuite) -> Iterator[HarnessError]:
    """Yield errors of scores that two metrics produce: gates, tables and MLflow need `suite/score` to be unique."""
    for suite, suite_metrics in metrics.items():
        for score, names in duplicate_score_names(suite_metrics):
            if len(set(names)) == 1:
                what = f"the metric {names[0]!r} produces the score {score!r} twice"
                hint = "fix the plugin that provides it"
            else:
                both = " and ".join(repr(name) for name in dict.fromkeys(names))
                what = f"the metrics {both} both produce the score '{suite}/{score}'"
                hint = "remove one, or measure it in another suite on the same source"
            yield HarnessError(spec.where(("evaluate", suite, "metrics", names[-1])), what, hint)


def _primary_score_errors(spec: Spec, suites: Sequence[Suite], metrics: MetricsBySuite) -> Iterator[HarnessError]:
    """Yield errors of suites whose primary score is not measured or has no direction."""
    for suite in suites:
        if suite.primary is not None and primary_score(suite, metrics[suite.name]) is None:
            known = {
                name
                for metric in metrics[suite.name].values()
                if metric.higher_is_better is not None
                for name in metric.score_names
            }
            measured = any(suite.primary in metric.score_names for metric in metrics[suite.name].values())
            problem = "has no better direction" if measured else "is not measured"
            where = spec.where(("evaluate", suite.name, "primary"))
            yield HarnessError(where, f"the score {suite.primary!r} {problem}", _available_hint(suite.primary, known))


def _sample_errors(spec: Spec, suites: Sequence[Suite], metrics: MetricsBySuite) -> Iterator[HarnessError]:
    """Yield an error for each suite with several equal answers, and for each metric that needs more of them."""
    for suite in suites:
        where = spec.where(("evaluate", suite.name, "samples"))
        if suite.samples > 1 and not suite.temperature:
            what = f"with temperature 0, all {suite.samples} answers to a prompt are equal"
            yield HarnessError(where, what, f'set evaluate.{suite.name}.temperature, e.g. to 0.8, or "samples" to 1')
        for name, metric in metrics[suite.name].items():
            if metric.min_samples > suite.samples:
                what = (
                    f"the metric {name!r} needs {metric.min_samples} answers to each prompt, but gets {suite.samples}"
                )
                yield HarnessError(where, what, f'set "samples" to {metric.min_samples} or more')


def _served_chat_errors(spec: Spec, suites: Sequence[Suite]) -> Iterator[HarnessError]:
    """Yield an error for each setting of a suite with which the answers of a chat server cannot be compared."""
    for suite in suites:
        if suite.server is None or not suite.server["chat"]:
            continue
        if suite.temperature:
            what = "with server.chat, greedy answers are compared with those of the run, and these are sampled"
            where = spec.where(("evaluate", suite.name, "temperature"))
            yield HarnessError(where, what, 'set "temperature" to 0, or remove chat')
        if suite.plain:
            what = "with server.chat, the server renders the prompts, and these are plain text"
            yield HarnessError(spec.where(("evaluate", suite.name, "plain")), what, 'remove "plain" or chat')


def _missing_run_errors(spec: Spec) -> Iterator[HarnessError]:
    """Yield an error if the earlier run to continue does not exist or has no result."""
    path = spec.document["model"]["path"]
    if path.startswith(find_run.RUN_SCHEME):
        where = spec.where(("model", "path"))
        try:
            find_run.find_finished_run(path.removeprefix(find_run.RUN_SCHEME), spec.document["output"], where=where)
        except HarnessError as error:
            yield error


def _fixed_server_model_errors(spec: Spec, suites: Sequence[Suite]) -> Iterator[HarnessError]:
    """Yield errors of suites whose server would use the same model before and after training."""
    for suite in suites:
        if suite.server is not None and "{stage}" not in suite.server["model"]:
            where = spec.where(("evaluate", suite.name, "server", "model"))
            what = f"the server's model {suite.server['model']!r} is the same before and after training"
            yield HarnessError(where, what, "put {stage} into the name, or use `harness evaluate` for one model")


# -- the gate ---------------------------------------------------------------------------------------------------------


def _gate_errors(spec: Spec, suites: Sequence[Suite], metrics: MetricsBySuite) -> Iterator[HarnessError]:
    """Yield errors of gate conditions that no run of the spec could meet or fail."""
    suite_scores = {
        f"{suite}/{score}"
        for suite, suite_metrics in metrics.items()
        for metric in suite_metrics.values()
        for score in metric.score_names
    }
    summary_names = gate.summary_score_names(metrics)
    primary = {suite.name: primary_score(suite, metrics[suite.name]) for suite in suites}
    primary_names = {f"{suite}/{found[1]}" for suite, found in primary.items() if found is not None}
    for index, condition in enumerate(spec.document["gate"]):
        known = suite_scores if condition["summary"] is None else set(summary_names.values())
        if condition["score"] not in known:
            what = f"no metric produces the score {gate.condition_key(condition)!r}"
            yield HarnessError(spec.where(("gate", index, "score")), what, _available_hint(condition["score"], known))
        elif _needs_direction(condition) and not _has_direction(condition, metrics):
            what, hint = (
                f"{gate.condition_key(condition)!r} has no better direction",
                "use rises_at_most or falls_at_most",
            )
            yield HarnessError(spec.where(("gate", index, "score")), what, hint)
        elif all(condition.get(test) is None for test in gate.TESTS) and condition["score"] not in primary_names:
            what = f"{condition['score']!r} is not the primary score of its suite, so the condition needs a test"
            yield HarnessError(spec.where(("gate", index)), what, f"use one of {', '.join(gate.TESTS)}")


def _available_hint(requested: str, available: Iterable[str]) -> str:
    names = sorted(available)
    near = get_close_matches(requested, names, 1)
    return f"{f'did you mean {near[0]!r}? ' if near else ''}available: {', '.join(names) or 'none'}"


def _needs_direction(condition: Mapping[str, Any]) -> bool:
    return condition["summary"] is not None or any(condition.get(test) is not None for test in gate.DIRECTED_TESTS)


def _has_direction(condition: Mapping[str, Any], suites: MetricsBySuite) -> bool:
    """Return whether the condition's score has a direction, in its suite or, for a summary, in any."""
    if condition["summary"] is not None:
        return condition["score"] in scores_with_direction(suites)
    suite, _, name = condition["score"].partition("/")
    return any(metric.higher_is_better is not None for metric in suites[suite].values() if name in metric.score_names)


def _offloading_errors(spec: Spec, plan: Plan) -> Iterator[HarnessError]:
    """Yield an error for each stage that offloads the inputs of its layers, but does not recompute the layers."""
    for stage in plan.stages:
        if stage.train["offload_activations"] and stage.train["gradient_checkpointing"] is not True:
            what = f"the stage {stage.name!r} may keep more than the input of each layer"
            hint = "set train.gradient_checkpointing to true, or train.offload_activations to false"
            yield HarnessError(spec.where(("train", "offload_activations")), what, hint)


def _router_loss_errors(spec: Spec, plan: Plan) -> Iterator[HarnessError]:
    """Yield an error for each stage whose compiled layers would not return what their routers computed."""
    for stage in plan.stages:
        if stage.train["router_loss"] != 0 and stage.train["compile"]:
            what = f"the compiled layers of the stage {stage.name!r} do not return what their routers computed"
            yield HarnessError(spec.where(("train", "router_loss")), what, "set train.compile to false, or it to 0")


def _double_interval_errors(spec: Spec, plan: Plan) -> Iterator[HarnessError]:
    """Yield an error for each stage whose checkpoints or evaluations are due by steps and by epochs."""
    for stage in plan.stages:
        for action in ("save", "evaluate"):
            if stage.train[f"{action}_steps"] is not None and stage.train[f"{action}_epochs"] is not None:
                what = f"the stage {stage.name!r} has {action}_steps too"
                yield HarnessError(spec.where(("train", f"{action}_epochs")), what, "remove one of them")


# -- mid-stage evaluation and early stopping --------------------------------------------------------------------------


def _mid_stage_errors(spec: Spec, plan: Plan, metrics: MetricsBySuite) -> Iterator[HarnessError]:
    """Yield errors in the settings of mid-stage evaluation and early stopping."""
    for index, stage in enumerate(plan.stages):
        every = "evaluate_steps" if stage.train["evaluate_epochs"] is None else "evaluate_epochs"
        settings, named = stage.train["early_stopping"], stage.train["evaluate_suites"]

        def where(key: str, *more: str, at: int = index, settings: Mapping[str, Any] = stage.train) -> str:
            if settings[key] == spec.document["train"][key]:
                return spec.where(("train", key, *more))
            return spec.where(("mode", next(iter(spec.document["mode"])), "stages", at, "train", key, *more))

        if stage.train[every] is None:
            if settings is not None:
                what = "no mid-stage evaluation is configured that could stop the stage"
                yield HarnessError(where("early_stopping"), what, 'set how often: "evaluate_steps": 50')
            continue
        known = {suite.name: suite for suite in plan.suites}
        unknown = [suite for suite in named or () if suite not in known]
        for suite in unknown:
            hint = f"the spec's suites are: {', '.join(known) or 'none'}"
            yield HarnessError(where("evaluate_suites"), f"there is no suite {suite!r}", hint)
        for suite in named or ():
            if suite in known and known[suite].server is not None:
                what = f"the suite {suite!r} uses a server, which does not have the weights of this step"
                yield HarnessError(where("evaluate_suites"), what, "remove it")
        suites, suite_metrics = mid_stage_suites(stage, plan.suites, metrics)
        measured = {
            f"{suite.name}/{score}": metric
            for suite in suites
            for metric in suite_metrics[suite.name].values()
            for score in metric.score_names
        }
        if not measured and not unknown:
            hint = "name suites in evaluate_suites, or add a metric such as response_perplexity"
            yield HarnessError(where(every), "no suite has a metric that mid-stage evaluations compute", hint)
        for score in settings["scores"] if settings is not None else ():
            if score not in measured:
                hint = f"measured mid-stage: {', '.join(measured) or 'none'}; name other suites in evaluate_suites"
                yield HarnessError(
                    where("early_stopping", "scores", score), f"{score!r} is not measured mid-stage", hint
                )
            elif measured[score].higher_is_better is None:
                what = f"{score!r} has no better direction"
                yield HarnessError(where("early_stopping", "scores", score), what, "weigh another score")


def _monitored_suite_errors(
    spec: Spec, plan: Plan, registry: Registry, metrics: MetricsBySuite
) -> Iterator[HarnessError]:
    """Yield errors of suites that a mitigation monitors, but that mid-stage evaluations do not measure."""
    continues_run = spec.document["model"]["path"].startswith(find_run.RUN_SCHEME)
    suites = {suite.name: suite for suite in plan.suites}
    for index, stage in enumerate(plan.stages):
        evaluated, suite_metrics = mid_stage_suites(stage, plan.suites, metrics)
        evaluated_names = [suite.name for suite in evaluated]
        measured: dict[str, Suite] = {}
        for suite in evaluated:
            primary = primary_score(suite, metrics[suite.name])
            if primary is not None and primary[0] in suite_metrics[suite.name].values():
                measured[suite.name] = suite
        for name, mitigation in create_mitigations(stage_mitigations(plan, stage), registry):
            where = spec.where(("mitigations", name))
            monitored = mitigation.monitored_suites
            if monitored is not None and not monitored:
                continue
            if stage.train["evaluate_steps"] is None and stage.train["evaluate_epochs"] is None:
                what = f"the stage {stage.name!r} has no mid-stage evaluation, after which {name!r} would act"
                yield HarnessError(where, what, 'set how often, in train: "evaluate_steps": 50')
                continue
            if stage.adapter == "new" and (index > 0 or continues_run):
                what = f"the stage {stage.name!r} begins with a new adapter, whose scores were not measured before it"
                yield HarnessError(where, what, "set its 'adapter' to \"merge\", or leave the mitigation out of it")
            if monitored is None and not any(suite.role == "general" for suite in measured.values()):
                what = f"mid-stage evaluations of the stage {stage.name!r} measure no primary score of a general suite"
                yield HarnessError(where, what, "name a general suite in train.evaluate_suites")
            for suite_name in monitored or ():
                if suite_name not in suites:
                    hint = f"the spec's suites are: {', '.join(suites) or 'none'}"
                    yield HarnessError(where, f"there is no suite {suite_name!r}", hint)
                elif primary_score(suites[suite_name], metrics[suite_name]) is None:
                    what = f"the suite {suite_name!r} has no score with a better direction"
                    yield HarnessError(where, what, "name another suite")
                elif suite_name not in measured:
                    what = f"mid-stage evaluations do not measure the primary score of the suite {suite_name!r}"
                    names = json.dumps(list(dict.fromkeys([*evaluated_names, suite_name])))
                    yield HarnessError(where, what, f"set train.evaluate_suites to {names}")
