"""`harness check`: verify the data of a spec."""

from __future__ import annotations

import argparse
import sys

from harness.cli import planned_spec
from harness.cli.options import (
    Subparsers,
    add_command,
    add_json_argument,
    add_spec_arguments,
    print_json,
    print_renderable,
)
from harness.utils.formatting import printable


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_command(
        subparsers,
        "check",
        main,
        "Verify the data of a spec: rows, masks, lengths, shares, duplicates, contamination.",
        "harness check specs/mixed_sft.json",
    )
    add_spec_arguments(parser)
    add_json_argument(parser)


def main(arguments: argparse.Namespace) -> int:
    """Run all data checks. Returns 2 if one fails."""
    spec, registry, _ = planned_spec.load_spec_and_plan(arguments)
    arms = planned_spec.validate_arms(arguments, spec, registry)
    planned_spec.note_arms_ignored(spec)
    from harness.model.cached_tokenizer import SharedLightTokenizers
    from harness.runner import data_check, prepare_arms
    from harness.terminal.check_table import format_check
    from harness.terminal.console import Console

    with Console.from_options(quiet=arguments.json or not sys.stdout.isatty(), show_rows=True) as console:
        registry.manager.register(console, name="console")
        load_light = SharedLightTokenizers()
        result = data_check.run_data_checks(spec, registry, load_light)
        if arms:
            prepare_arms.check_arms(arms, registry, load_light=load_light)
    if arguments.json:
        print_json(result)
    else:
        print_renderable(format_check(result))
    sys.stdout.flush()  # the table comes before its errors where both go to one terminal
    for line in result["failures"]:
        print(f"harness: {printable(line)}", file=sys.stderr)
    return 0 if result["ok"] else 2
