"""`harness validate`: check a spec and every name in it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.cli import planned_spec
from harness.cli.options import Subparsers, add_command, add_spec_arguments, print_json, print_warning
from harness.errors import raise_all

if TYPE_CHECKING:
    from harness.spec.arms import Arm


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_command(
        subparsers,
        "validate",
        main,
        "Check a spec, every name in it, and the first rows of its files.",
        "harness validate my.json",
    )
    add_spec_arguments(parser)
    parser.add_argument("--filled", action="store_true", help="print the spec with all defaults filled in")


def main(arguments: argparse.Namespace) -> int:
    """Validate the spec and the first rows of its local text files; print a summary line, or the filled spec."""
    from harness.data.reading import first_rows
    from harness.data.reading.row_formats import with_row_format
    from harness.spec.error_locations import locate_errors

    spec, registry, plan = planned_spec.load_spec_and_plan(arguments)
    arms = planned_spec.validate_arms(arguments, spec, registry)
    errors = [
        error
        for name, (kind, options) in plan.sources.items()
        if first_rows.reads_local_text(kind, options)
        for error in first_rows.first_row_errors(
            name, registry.create("sources", kind, options), with_row_format(options, registry)
        )
    ]
    with locate_errors(spec):
        raise_all(errors)
    for warning in plan.warnings:
        print_warning(warning)
    if arguments.filled:
        print_json(spec.document)
        return 0
    stages = ", ".join(stage.name for stage in plan.stages)
    arm_list = f", {_describe_arms([arm for arm, _ in arms])}" if arms else ""
    suites = f"{len(plan.suites)} suite(s)"
    print(f"{arguments.spec} is valid: {len(plan.stages)} stage(s) ({stages}), {suites}{arm_list}")
    return 0


def _describe_arms(arms: Sequence[Arm]) -> str:
    """Return the number of arms with their names, and the number of seeds that each runs with."""
    methods = list(dict.fromkeys(arm.method for arm in arms))
    seeds = f" x {len(arms) // len(methods)} seeds" if len(arms) > len(methods) else ""
    return f"{len(methods)} arm(s){seeds} ({', '.join(methods)})"
