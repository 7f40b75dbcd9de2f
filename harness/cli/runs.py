"""`harness runs`: list the runs of an output folder."""

from __future__ import annotations

import argparse

from harness.cli.options import Subparsers, add_command, add_json_argument, print_json, print_renderable


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_command(
        subparsers,
        "runs",
        main,
        "List runs, the newest first: date, status, verdict, and what can be resumed.",
        "harness runs",
    )
    parser.add_argument("output", metavar="FOLDER", nargs="?", default="runs", help="the runs' folder; default: runs")
    add_json_argument(parser)


def main(arguments: argparse.Namespace) -> int:
    """Print the list."""
    from dataclasses import asdict

    from harness.report.run_list import list_runs

    runs = list_runs(arguments.output)
    if arguments.json:
        print_json([asdict(run) for run in runs])
        return 0
    from harness.terminal.run_list import format_runs

    print_renderable(format_runs(runs, arguments.output))
    return 0
