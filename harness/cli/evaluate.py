"""`harness evaluate`: evaluate a model without training it."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.cli import load_spec
from harness.cli.options import Subparsers, add_command, add_json_argument, add_spec_arguments, print_scores


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_command(
        subparsers,
        "evaluate",
        main,
        "Evaluate the model of a finished run, or the base model of a spec. Trains nothing.",
        "harness evaluate specs/mixed_sft.json",
    )
    add_spec_arguments(parser, text="a spec, or the folder or name of a run")
    add_json_argument(parser, "print the scores as JSON")


def main(arguments: argparse.Namespace) -> int:
    """Evaluate the model and print its scores."""
    from harness.utils.find_run import find_run

    is_spec = Path(arguments.spec).is_file() or arguments.spec.endswith(".json")
    run_folder = None if is_spec else find_run(arguments.spec)
    if run_folder is not None:
        arguments.spec = str(run_folder / "spec.json")
    spec, registry, _ = load_spec.load_spec_and_plan(arguments, trains=False)
    from harness.runner import api
    from harness.terminal.console import Console

    with Console.from_options(quiet=arguments.json, json=False) as console:
        registry.manager.register(console, name="console")
        scores_file, evaluations = api.evaluate_model(spec, registry, run_folder)
    print_scores(evaluations, as_json=arguments.json)
    if not arguments.json:
        print(f"saved in {scores_file}")
    return 0
