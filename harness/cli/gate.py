"""`harness gate`: judge a finished run by the gate of a spec."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from harness.cli import planned_spec
from harness.cli.options import Subparsers, add_command, add_json_argument, add_spec_arguments, print_json
from harness.errors import HarnessError, raise_all


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_command(
        subparsers,
        "gate",
        main,
        "Judge a finished run by the gate of a spec; exit code 3 unless it passes.",
        "harness gate runs/mixed-sft-20260101-120000-ab12 specs/mixed_sft.json",
    )
    parser.add_argument("run", metavar="RUN", help="the folder or the name of a run")
    add_spec_arguments(parser)
    add_json_argument(parser)


def main(arguments: argparse.Namespace) -> int:
    """Evaluate the gate. Returns 3 unless every blocking condition passes."""
    from harness.utils.find_run import find_finished_run

    folder, conditions = _collect_errors(
        lambda: find_finished_run(arguments.run), lambda: _load_gate_conditions(arguments)
    )
    from harness.gate import evaluate_gate, gate_outcome
    from harness.report.run_report import gate_scores_of_run
    from harness.utils import json_files

    results = evaluate_gate(conditions, gate_scores_of_run(folder))
    if arguments.json:
        print_json(json_files.json_safe([result.to_json() for result in results]))
    else:
        for result in results:
            print(result.format_line())
    return 0 if gate_outcome(results) == "passed" else 3


def _load_gate_conditions(arguments: argparse.Namespace) -> Any:
    spec, _, _ = planned_spec.load_spec_and_plan(arguments, trains=None)
    if not spec.document["gate"]:
        raise HarnessError(arguments.spec, "the spec has no gate", 'add conditions under "gate"')
    return spec.document["gate"]


def _collect_errors(*loaders: Callable[[], Any]) -> list[Any]:
    """Return what each loader gives; raise the errors of all loaders together, in their order."""
    values, errors = [], []
    for load in loaders:
        try:
            values.append(load())
        except HarnessError as error:
            errors.append(error)
    raise_all(errors)
    return values
