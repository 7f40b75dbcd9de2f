"""`harness preview`: show rendered rows with the trained tokens marked."""

from __future__ import annotations

import argparse
import os
import sys

from harness.cli import planned_spec
from harness.cli.options import Subparsers, add_command, add_spec_arguments, int_at_least, print_renderable


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_command(
        subparsers,
        "preview",
        main,
        "Show rendered rows with the trained tokens colored.",
        "harness preview specs/mixed_sft.json --source helpdesk --rows 2",
    )
    add_spec_arguments(parser)
    parser.add_argument("--source", help="the source to show; default: every trained source")
    parser.add_argument("--rows", type=int_at_least(1), default=2, metavar="N", help="rows per source (default 2)")
    parser.add_argument("--plain", action="store_true", help="mark trained text with brackets instead of color")


def main(arguments: argparse.Namespace) -> int:
    """Print the first rows of each source."""
    spec, registry, _ = planned_spec.load_spec_and_plan(arguments)
    from harness.terminal import row_preview
    from harness.terminal.console import Console

    planned_spec.note_arms_ignored(spec)
    plain = arguments.plain or not sys.stdout.isatty() or bool(os.environ.get("NO_COLOR"))
    with Console.from_options(quiet=True, json=False) as console:
        registry.manager.register(console, name="console")
        rows = row_preview.preview_rows(spec, registry, arguments.source, arguments.rows, plain=plain)
    for row in rows:
        print_renderable(row)
    return 0
