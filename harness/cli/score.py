"""`harness score`: score the stored answers of a run again."""

from __future__ import annotations

import argparse
from typing import Any

from harness.cli.options import Subparsers, add_command, add_json_argument, print_scores
from harness.errors import HarnessError
from harness.utils.formatting import shorten_text
from harness.utils.json_depth import load_json


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_command(
        subparsers,
        "score",
        main,
        "Score the stored answers of a run again, with its own or other metrics. Loads no model.",
        "harness score runs/mixed-sft-20260101-120000-ab12 --metric bleu",
    )
    parser.add_argument("run", metavar="RUN", help="the folder or the name of a run")
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME[={…}]",
        dest="metrics",
        help="a metric, with options as JSON if needed; default: the run's metrics",
    )
    parser.add_argument("--suite", action="append", default=[], metavar="NAME", dest="suites", help="only this suite")
    add_json_argument(parser, "print the scores as JSON")


def main(arguments: argparse.Namespace) -> int:
    """Score the stored answers and print the scores."""
    from harness import registry
    from harness.evaluation import rescore
    from harness.utils.find_run import find_run

    plugins = registry.discover_plugins()
    metrics = dict(_parse_metric_option(text) for text in arguments.metrics) or None
    evaluations = rescore.score_run(find_run(arguments.run), metrics, plugins, suites=arguments.suites)
    print_scores(evaluations, as_json=arguments.json)
    return 0


def _parse_metric_option(text: str) -> tuple[str, dict[str, Any]]:
    name, equals, options = text.partition("=")
    if not equals:
        return name, {}
    where = f"--metric {shorten_text(text, 100)}"
    example = """e.g. 'bleu={"lang": "zh"}'"""
    try:
        parsed = load_json(options)
    except ValueError as error:
        raise HarnessError(where, f"its options are not JSON: {error}", example) from None
    if not isinstance(parsed, dict):
        raise HarnessError(where, "its options are not a JSON object", example)
    return name, parsed
