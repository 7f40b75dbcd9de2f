"""`harness compare`: compare runs item by item."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.cli.options import (
    Subparsers,
    add_command,
    add_json_argument,
    int_at_least,
    print_json,
    print_renderable,
)


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_command(
        subparsers,
        "compare",
        main,
        "Compare runs item by item: differences, tests, changed items, spec differences.",
        "harness compare runs/first runs/second --html comparison.html",
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folders, MLflow run ids or run names")
    parser.add_argument("--experiment", help="every run of this MLflow experiment")
    parser.add_argument("--uri", help="MLflow tracking URI; default: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db")
    parser.add_argument("--baseline", metavar="RUN", help="compare the others with this run; default: the first run")
    parser.add_argument("--score", metavar="SUITE/SCORE", help="show the items whose value of this score changed most")
    parser.add_argument(
        "--items", type=int_at_least(0), default=10, metavar="N", help="how many changed items (default 10; 0: none)"
    )
    add_json_argument(parser)
    parser.add_argument("--html", metavar="FILE", help="also write the comparison as one page to this file")


def main(arguments: argparse.Namespace) -> int:
    """Compare the runs and print the result."""
    from harness.comparison import compare, html_page
    from harness.terminal.comparison_table import format_comparison

    comparison = compare.compare_runs(
        arguments.runs,
        arguments.experiment,
        arguments.uri,
        baseline=arguments.baseline,
        score=arguments.score,
        items=arguments.items,
    )
    if arguments.html:
        html_page.write_comparison_html(comparison, Path(arguments.html))
    if arguments.json:
        print_json(comparison.to_json())
    else:
        print_renderable(format_comparison(comparison))
    return 0
