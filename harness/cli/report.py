"""`harness report`: write the page of a finished run or experiment again."""

from __future__ import annotations

import argparse

from harness.cli.options import Subparsers, add_command


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_command(
        subparsers,
        "report",
        main,
        "Write the page of a finished run or experiment again: report.html.",
        "harness report runs/mixed-sft-20260101-120000-ab12",
    )
    parser.add_argument("run", metavar="RUN", help="the folder or the name of a run or experiment")


def main(arguments: argparse.Namespace) -> int:
    """Write the page and print its path."""
    from harness.report.html import write
    from harness.utils.find_run import find_run

    folder = find_run(arguments.run)
    is_experiment = (folder / "arms.json").is_file()
    print(write.write_experiment_page(folder) if is_experiment else write.write_run_page(folder))
    return 0
