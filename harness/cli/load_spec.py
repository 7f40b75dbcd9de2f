"""The spec that a command was given, and its arms: their faults are told before anything heavy is imported."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any


def load_spec_and_plan(arguments: argparse.Namespace, *, trains: bool | None = True) -> tuple[Any, Any, Any]:
    """The spec, the registry and the plan: what is wrong with a spec is said before anything heavy is imported.

    trains: whether it will be run, or one model of it measured; None: neither, so that its metrics are not looked at.
    """
    from harness import registry
    from harness.spec import plan, preflight, schema
    from harness.spec import spec as spec_module

    found = registry.discover_plugins()
    loaded = spec_module.load_spec(
        arguments.spec, schema.compose_schema(found), arguments.overrides, found.broken_plugins
    )
    planned = plan.build_plan(loaded, found)
    if trains is not None and loaded.document["arms"] is None:  # of arms each is looked at, with its changes
        metrics = preflight.preflight(loaded, planned, found, will_train=trains)
        if trains:
            preflight.preflight_summaries(loaded, [(planned, metrics)])
    return loaded, found, planned


def arm_spec_loader(arguments: argparse.Namespace, registry: Any) -> Any:
    """The spec anew with the overrides of an arm, without arms of its own."""
    from harness.spec import schema
    from harness.spec import spec as spec_module

    composed = schema.compose_schema(registry)

    def load(overrides: Sequence[str]) -> Any:
        return spec_module.load_spec(
            arguments.spec, composed, [*arguments.overrides, *overrides, "arms=null"], registry.broken_plugins
        )

    return load


def validate_arms(
    arguments: argparse.Namespace, spec: Any, registry: Any, names: Sequence[str] = ()
) -> list[tuple[Any, Any]]:
    """Each arm with its spec; that it is valid and has a plan is proven before anything heavy is imported."""
    from harness.spec import arms, plan, preflight, preflight_arms

    if spec.document["arms"] is None:
        return []
    load = arm_spec_loader(arguments, registry)
    made, measuring = [], []
    chosen = arms.select_arms(arms.expand_arms(spec.document["arms"], spec.where(("arms",))), names)
    for text in arms.override_warnings(chosen, spec.located.value):
        print(f"warning: {text}", file=sys.stderr)
    for arm in chosen:
        with arms.arm_error_context(arm):
            own = load(arm.overrides())
            planned = plan.build_plan(own, registry)
            metrics = preflight.preflight(own, planned, registry)
        made.append((arm, own))
        measuring.append(preflight_arms.PlannedArm(arm.name, planned, metrics))
    preflight.preflight_summaries(spec, [(one.plan, one.metrics) for one in measuring])
    preflight_arms.preflight_arms(spec, measuring)
    for text in preflight_arms.axis_warnings(measuring):
        print(f"warning: {text}", file=sys.stderr)
    return made


def note_arms_ignored(spec: Any) -> None:
    """Say of a command that shows one run that it shows the spec itself."""
    if spec.document["arms"] is not None:
        text = "the spec has arms, and this is the spec without their changes; put one's in with --set"
        print(f"note: {text}", file=sys.stderr)
