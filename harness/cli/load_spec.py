"""The spec that a command was given, and its arms: their faults are told before anything heavy is imported."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any


def spec_of(arguments: argparse.Namespace, *, trains: bool | None = True) -> tuple[Any, Any, Any]:
    """The spec, the registry and the plan: what is wrong with a spec is said before anything heavy is imported.

    trains: whether it will be run, or one model of it measured; None: neither, so that its metrics are not looked at.
    """
    from harness import registry
    from harness.spec import plan, preflight, schema
    from harness.spec import spec as spec_module

    found = registry.discover()
    loaded = spec_module.load(arguments.spec, schema.compose(found), arguments.overrides, found.broken)
    planned = plan.make(loaded, found)
    if trains is not None and loaded.document["arms"] is None:  # of arms each is looked at, with its changes
        metrics = preflight.check(loaded, planned, found, trains=trains)
        if trains:
            preflight.check_summaries(loaded, [(planned, metrics)])
    return loaded, found, planned


def loader(arguments: argparse.Namespace, found: Any) -> Any:
    """The spec anew with the overrides of an arm, without arms of its own."""
    from harness.spec import schema
    from harness.spec import spec as spec_module

    composed = schema.compose(found)

    def load(overrides: Sequence[str]) -> Any:
        return spec_module.load(arguments.spec, composed, [*arguments.overrides, *overrides, "arms=null"], found.broken)

    return load


def prove_arms(
    arguments: argparse.Namespace, spec: Any, found: Any, names: Sequence[str] = ()
) -> list[tuple[Any, Any]]:
    """Each arm with its spec; that it is valid and has a plan is proven before anything heavy is imported."""
    from harness.spec import arms, plan, preflight, preflight_arms

    if spec.document["arms"] is None:
        return []
    load = loader(arguments, found)
    made, measuring = [], []
    chosen = arms.chosen(arms.expand(spec.document["arms"], spec.where(("arms",))), names)
    for text in arms.replacing(chosen, spec.located.value):
        print(f"warning: {text}", file=sys.stderr)
    for arm in chosen:
        with arms.named(arm):
            own = load(arm.overrides())
            planned = plan.make(own, found)
            metrics = preflight.check(own, planned, found)
        made.append((arm, own))
        measuring.append(preflight_arms.Variant(arm.name, planned, metrics))
    preflight.check_summaries(spec, [(one.plan, one.metrics) for one in measuring])
    preflight_arms.check(spec, measuring)
    for text in preflight_arms.told(measuring):
        print(f"warning: {text}", file=sys.stderr)
    return made


def without_arms(spec: Any) -> None:
    """Say of a command that shows one run that it shows the spec itself."""
    if spec.document["arms"] is not None:
        text = "the spec has arms, and this is the spec without their changes; put one's in with --set"
        print(f"note: {text}", file=sys.stderr)
