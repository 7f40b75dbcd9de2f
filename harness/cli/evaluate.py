"""`harness evaluate`: evaluate a model without training it."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.cli import planned_spec
from harness.cli.options import Subparsers, add_command, add_json_argument, add_spec_arguments, print_scores
from harness.cli.run import print_gate_failures
from harness.errors import HarnessError
from harness.spec.yaml_locations import SPEC_SUFFIXES


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_command(
        subparsers,
        "evaluate",
        main,
        "Evaluate the model of a run, the base model of a spec, or a model tuned elsewhere. Trains nothing.",
        "harness evaluate specs/mixed_sft.json",
    )
    add_spec_arguments(parser, text="a spec, or the folder or name of a run")
    parser.add_argument(
        "--tuned",
        metavar="MODEL",
        help="compare the spec's base model with a model tuned elsewhere: a folder (full model or adapter) or a hub id",
    )
    add_json_argument(parser, "print the scores as JSON")


def main(arguments: argparse.Namespace) -> int:
    """Evaluate the model and print its scores; with `--tuned`, print the report of base and tuned model."""
    if arguments.tuned is not None:
        return _evaluate_tuned(arguments)
    from harness.utils.find_run import find_run

    is_spec = Path(arguments.spec).is_file() or arguments.spec.endswith(SPEC_SUFFIXES)
    run_folder = None if is_spec else find_run(arguments.spec)
    if run_folder is not None:
        arguments.spec = str(run_folder / "spec.json")
    spec, registry, _ = planned_spec.load_spec_and_plan(arguments, trains=False)
    from harness.runner import evaluate_model
    from harness.terminal.console import Console

    with Console.from_options(quiet=arguments.json, json=False) as console:
        registry.manager.register(console, name="console")
        scores_file, evaluations = evaluate_model.evaluate_model(spec, registry, run_folder)
    print_scores(evaluations, as_json=arguments.json)
    if not arguments.json:
        print(f"saved in {scores_file}")
    return 0


def _evaluate_tuned(arguments: argparse.Namespace) -> int:
    spec, registry, _ = planned_spec.load_spec_and_plan(arguments)
    if spec.document["arms"] is not None:
        raise HarnessError("--tuned", "the spec has arms", "remove them: --set arms=null")
    from harness.runner.evaluate_tuned import evaluate_tuned
    from harness.terminal.console import Console

    with Console.from_options(quiet=False, json=arguments.json) as console:
        registry.manager.register(console, name="console")
        report = evaluate_tuned(spec, registry, arguments.tuned)
    return print_gate_failures(report.gate)
