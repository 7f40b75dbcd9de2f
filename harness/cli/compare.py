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
    write_text,
)
from harness.errors import HarnessError

TABLE_FORMATS = {
    "csv": "every score as CSV",
    "markdown": "one score of each suite as a Markdown table, one row per run,",
    "latex": "the same table as LaTeX (booktabs)",
}
"""Option -> what it writes."""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_command(
        subparsers,
        "compare",
        main,
        "Compare runs item by item: differences, tests, changed items, spec differences.",
        "harness compare runs/first runs/second --html comparison.html",
    )
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="run folders, MLflow run ids, or run names or their beginnings; EXPERIMENT/ARM is one arm",
    )
    parser.add_argument("--experiment", help="every run of this MLflow experiment")
    parser.add_argument("--uri", help="MLflow tracking URI; default: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db")
    parser.add_argument("--baseline", metavar="RUN", help="compare the others with this run; default: the first run")
    parser.add_argument("--score", metavar="SUITE/SCORE", help="show the items whose value of this score changed most")
    parser.add_argument(
        "--items", type=int_at_least(0), metavar="N", help="how many changed items (default 10; 0: none)"
    )
    add_json_argument(parser)
    parser.add_argument("--html", metavar="FILE", help="also write the comparison as one page to this file")
    for name, what in TABLE_FORMATS.items():
        parser.add_argument(f"--{name}", metavar="FILE", help=f"write {what} to this file; - prints it instead")


def main(arguments: argparse.Namespace) -> int:
    """Compare the runs and print the result."""
    from harness.comparison import compare, html_page, table_export
    from harness.terminal.comparison_table import format_comparison

    files = {name: file for name in TABLE_FORMATS if (file := getattr(arguments, name)) is not None}
    if list(files.values()).count("-") + arguments.json > 1:
        raise HarnessError("harness compare", "several outputs are to be printed", "give all but one a file")
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
    formatters = {
        "csv": table_export.format_csv,
        "markdown": table_export.format_markdown,
        "latex": table_export.format_latex,
    }
    for name, file in files.items():
        write_text(file, formatters[name](comparison))
    if "-" in files.values():
        return 0
    if arguments.json:
        print_json(comparison.to_json())
    else:
        print_renderable(format_comparison(comparison))
        for file in (*files.values(), arguments.html):
            if file:
                print(f"wrote {file}")
    return 0
