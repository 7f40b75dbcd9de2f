"""`harness validate`: check a spec and every name in it."""

from __future__ import annotations

import argparse
import sys

from harness.cli import planned_spec
from harness.cli.options import Subparsers, add_command, add_spec_arguments, print_json
from harness.errors import raise_all


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

    spec, registry, plan = planned_spec.load_spec_and_plan(arguments)
    arms = planned_spec.validate_arms(arguments, spec, registry)
    errors = [
        error
        for name, (kind, options) in plan.sources.items()
        if first_rows.reads_local_text(kind, options)
        for error in first_rows.first_row_errors(name, registry.create("sources", kind, options), options)
    ]
    raise_all(errors)
    for warning in plan.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if arguments.filled:
        print_json(spec.document)
        return 0
    stages = ", ".join(stage.name for stage in plan.stages)
    arm_list = f", {len(arms)} arm(s) ({', '.join(arm.name for arm, _ in arms)})" if arms else ""
    suites = f"{len(plan.suites)} suite(s)"
    print(f"{arguments.spec} is valid: {len(plan.stages)} stage(s) ({stages}), {suites}{arm_list}")
    return 0
