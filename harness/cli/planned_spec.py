"""Load the spec of a command and validate its arms, before anything heavy is imported."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from harness.cli.options import print_warning, require_trusting_spec

if TYPE_CHECKING:
    from harness.registry import Registry
    from harness.spec.arms import Arm
    from harness.spec.spec import Spec
    from harness.types import Plan


def load_spec_and_plan(arguments: argparse.Namespace, *, trains: bool | None = True) -> tuple[Spec, Registry, Plan]:
    """Load and validate the spec that a command names.

    Args:
        arguments: Parsed arguments with `spec` and `overrides`.
        trains: Whether the spec will be trained (True) or one model of it evaluated (False). None: neither, so its
            metrics are not checked.

    Returns:
        The spec, the plugin registry and the plan.

    Raises:
        HarnessError: The spec is invalid.
    """
    from harness import registry
    from harness.runner.bounded_plan import build_bounded_plan
    from harness.spec import preflight, schema
    from harness.spec import spec as spec_module

    plugins = registry.discover_plugins()
    spec = spec_module.load_spec(
        arguments.spec, schema.compose_schema(plugins), arguments.overrides, plugins.broken_plugins
    )
    require_trusting_spec(arguments, spec.document)
    spec_plan = build_bounded_plan(spec, plugins)
    if trains is not None and spec.document["arms"] is None:  # arms are checked one by one, with their changes
        metrics = preflight.preflight(spec, spec_plan, plugins, will_train=trains)
        if trains:
            preflight.preflight_summaries(spec, [(spec_plan, metrics)])
    return spec, plugins, spec_plan


def arm_spec_loader(arguments: argparse.Namespace, registry: Registry) -> Callable[[Sequence[str]], Spec]:
    """Return a function that loads the spec with the overrides of an arm and without arms of its own."""
    from harness.spec import schema
    from harness.spec import spec as spec_module

    composed_schema = schema.compose_schema(registry)

    def load(overrides: Sequence[str]) -> Spec:
        return spec_module.load_spec(
            arguments.spec, composed_schema, [*arguments.overrides, *overrides, "arms=null"], registry.broken_plugins
        )

    return load


def validate_arms(
    arguments: argparse.Namespace, spec: Spec, registry: Registry, names: Sequence[str] = ()
) -> list[tuple[Arm, Spec]]:
    """Validate and plan every arm of a spec.

    Args:
        arguments: Parsed arguments with `spec` and `overrides`.
        spec: The spec; without arms the result is empty.
        registry: The plugin registry.
        names: The arms to validate; all arms if empty.

    Returns:
        Each arm with its own spec.

    Raises:
        HarnessError: An arm is invalid or unknown.
    """
    from harness.runner.bounded_plan import build_bounded_plan
    from harness.spec import arms, preflight, preflight_arms

    if spec.document["arms"] is None:
        return []
    load = arm_spec_loader(arguments, registry)
    arm_specs, planned_arms = [], []
    selected = arms.select_arms(arms.expand_arms(spec.document["arms"], spec.where(("arms",))), names)
    for warning in arms.override_warnings(selected, spec.located.value):
        print_warning(warning)
    for arm in selected:
        with arms.arm_error_context(arm):
            arm_spec = load(arm.overrides())
            arm_plan = build_bounded_plan(arm_spec, registry)
            metrics = preflight.preflight(arm_spec, arm_plan, registry)
        arm_specs.append((arm, arm_spec))
        planned_arms.append(preflight_arms.PlannedArm(arm.method, arm_plan, metrics))
    preflight.preflight_summaries(spec, [(planned.plan, planned.metrics) for planned in planned_arms])
    one_seed = {planned.name: planned for planned in reversed(planned_arms)}  # all seeds of an arm measure the same
    preflight_arms.preflight_arms(spec, list(reversed(one_seed.values())))
    for warning in preflight_arms.axis_warnings(planned_arms):
        print_warning(warning)
    return arm_specs


def note_arms_ignored(spec: Spec) -> None:
    """Print a note that a command which shows one run ignores the arms."""
    if spec.document["arms"] is not None:
        print(
            "note: the spec has arms; this shows the spec without their changes; apply one with --set", file=sys.stderr
        )
