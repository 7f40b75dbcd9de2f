"""The plan of a spec within the limits of its model: `max_length` and `max_new_tokens` fit into its positions.

The limits come from the model's config. `harness validate` knows them if the config is on this machine already, every
command that prepares data always. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.model.model_config import find_model_config
from harness.model.position_limit import PositionLimit, position_limit
from harness.registry import Registry
from harness.spec import plan as plan_module
from harness.spec.metric_factory import create_metric
from harness.spec.spec import Spec
from harness.types import IGNORE_INDEX, Plan, Suite

if TYPE_CHECKING:
    from harness.data.tokenization.tokenize import TokenizedCorpus


def build_bounded_plan(spec: Spec, registry: Registry) -> Plan:
    """Build the plan of a spec, within the positions of its model if its config is on this machine.

    Raises:
        HarnessError: As `build_plan`.
    """
    plan = plan_module.build_plan(spec, registry)
    config = find_model_config(plan.model, spec.document["output"])
    return plan if config is None else bound_plan(plan, config, registry)


def bound_plan(plan: Plan, config: Mapping[str, Any], registry: Registry) -> Plan:
    """Return the plan with `max_length` and `max_new_tokens` that fit into the model's positions.

    A model with a table of positions cannot compute beyond it: `max_length` becomes the size of the table. For other
    models a warning is added. A plan that is bounded already is returned as it is.

    Args:
        plan: The plan.
        config: The model's config.
        registry: Creates the metrics, which say whether a suite generates answers.
    """
    limit = position_limit(config)
    if limit is None:
        return plan
    warnings = dict.fromkeys([*plan.warnings, *_length_warnings(plan, limit)])
    train = _bound_train(plan.train, limit)
    stages = tuple(replace(stage, train=_bound_train(stage.train, limit)) for stage in plan.stages)
    suites = []
    for suite in plan.suites:
        if suite.max_new_tokens >= limit.positions and generates_answers(suite, registry):
            bound = max(limit.positions // 2, 1)
            warnings[
                f"evaluate.{suite.name}.max_new_tokens {suite.max_new_tokens:,} leaves no position for a prompt: the "
                f"model has {limit.positions:,}, so answers have at most {bound:,} tokens"
            ] = None
            suite = replace(suite, max_new_tokens=bound)
        suites.append(suite)
    return replace(plan, train=train, stages=stages, suites=tuple(suites), warnings=tuple(warnings))


def generates_answers(suite: Suite, registry: Registry) -> bool:
    """Return whether a metric of the suite needs generated answers."""
    return any(
        create_metric(registry, name, options, lang=suite.lang).requires == "answer"
        for name, options in suite.metrics.items()
    )


def cut_prompt_warnings(
    suites: Sequence[Suite], tokenized: Mapping[str, TokenizedCorpus], config: Mapping[str, Any], registry: Registry
) -> Iterator[str]:
    """Yield a warning for each suite whose prompts leave too few positions for an answer, so that they are truncated.

    Args:
        suites: The suites of a bounded plan.
        tokenized: Suite -> its rows in tokens.
        config: The model's config.
        registry: See `bound_plan`.
    """
    limit = position_limit(config)
    for suite in suites if limit is not None else ():
        if limit is None or suite.name not in tokenized or not generates_answers(suite, registry):
            continue
        longest = limit.positions - suite.max_new_tokens
        rows = tokenized[suite.name].rows
        count = sum(_prompt_length(rows.labels(index)) > longest for index in range(len(rows)))
        if count:
            yield (
                f"the suite {suite.name!r} has {count:,} prompt(s) of more than {longest:,} tokens, whose beginning is "
                f"cut: the model has {limit.positions:,} positions, and max_new_tokens takes {suite.max_new_tokens:,}"
            )


def _prompt_length(labels: Any) -> int:
    """Return the number of tokens before the last response of a row. labels: (T,), see `TokenizedRows.labels`."""
    position = len(labels)
    while position and labels[position - 1] == IGNORE_INDEX:
        position -= 1  # after the response
    while position and labels[position - 1] != IGNORE_INDEX:
        position -= 1
    return position


def _length_warnings(plan: Plan, limit: PositionLimit) -> Iterator[str]:
    longer = sorted({int(stage.train["max_length"]) for stage in plan.stages if _is_longer(stage.train, limit)})
    for max_length in longer:
        if limit.is_hard:
            yield (
                f"train.max_length {max_length:,} is more than the {limit.positions:,} positions of the model: rows "
                f"are truncated to {limit.positions:,} tokens"
            )
        else:
            yield (
                f"train.max_length {max_length:,} is more than the {limit.positions:,} positions that the model was "
                f"trained with: it may handle longer rows badly"
            )


def _bound_train(train: Mapping[str, Any], limit: PositionLimit) -> Mapping[str, Any]:
    return {**train, "max_length": limit.positions} if limit.is_hard and _is_longer(train, limit) else train


def _is_longer(train: Mapping[str, Any], limit: PositionLimit) -> bool:
    return int(train["max_length"]) > limit.positions
