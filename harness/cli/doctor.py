"""`harness doctor`: check the machine."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from harness.cli.options import Subparsers, add_command, add_json_argument, print_json
from harness.utils.formatting import printable

SIGNS = {"ok": "✓", "warning": "!", "failed": "✗"}


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_command(
        subparsers,
        "doctor",
        main,
        "Check the machine: device, memory, versions, disk, caches, hub, tracker and plugins.",
        "harness doctor",
    )
    parser.add_argument("--output", metavar="FOLDER", type=Path, default=Path("runs"), help="the folder of runs")
    parser.add_argument("--uri", metavar="URI", help="the MLflow store; default: MLFLOW_TRACKING_URI, or mlflow.db")
    add_json_argument(parser)


def main(arguments: argparse.Namespace) -> int:
    """Print each check; return 1 if no spec can run."""
    from harness.registry import discover_plugins
    from harness.runner.machine_check import check_machine

    checks = []
    for check in check_machine(discover_plugins(), arguments.output, arguments.uri):
        checks.append(check)
        if not arguments.json:
            print(f"{SIGNS[check.state]} {check.name:<10} {printable(check.text)}", flush=True)
            if check.hint:
                print(f"  {'':<10} {printable(check.hint)}")
    if arguments.json:
        print_json([asdict(check) for check in checks])
    return int(any(check.state == "failed" for check in checks))
