"""`harness plan`: show what would run."""

from __future__ import annotations

import argparse

from harness.cli import planned_spec
from harness.cli.options import (
    Subparsers,
    add_command,
    add_json_argument,
    add_spec_arguments,
    int_at_least,
    print_json,
    print_renderable,
)


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_command(
        subparsers,
        "plan",
        main,
        "Show what would run: stages, rows, tokens, shares, steps, memory. Loads no model.",
        "harness plan specs/mixed_sft.json",
    )
    add_spec_arguments(parser)
    parser.add_argument(
        "--device", metavar="NAME", help="estimate memory and time on a GPU, e.g. h100-80, a10-24, rtx-4090"
    )
    parser.add_argument(
        "--gpus",
        type=int_at_least(1),
        default=1,
        metavar="N",
        help="count steps, memory and time for N GPUs, of all nodes together",
    )
    add_json_argument(parser)


def main(arguments: argparse.Namespace) -> int:
    """Summarize the plan and print it."""
    spec, registry, _ = planned_spec.load_spec_and_plan(arguments)
    planned_spec.validate_arms(arguments, spec, registry)
    planned_spec.note_arms_ignored(spec)
    from harness.runner import plan_summary
    from harness.terminal import plan_table
    from harness.terminal.console import Console

    with Console.from_options(quiet=True, json=False) as console:
        registry.manager.register(console, name="console")
        summary = plan_summary.summarize_plan(spec, registry, arguments.device, arguments.gpus)
    if arguments.json:
        print_json(summary)
    else:
        print_renderable(plan_table.format_plan(summary))
    return 0
