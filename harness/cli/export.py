"""`harness export`: write the trained model of a run in another form."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from harness.cli.options import Subparsers, add_command, add_trust_argument, find_run_to_load
from harness.errors import HarnessError
from harness.utils.formatting import shorten_text
from harness.utils.json_depth import load_json


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_command(
        subparsers,
        "export",
        main,
        "Write the trained model of a run in another form, and compare it with the run's model.",
        "harness export runs/mixed-sft-20260101-120000-ab12 --to merged my-model",
    )
    parser.usage = "harness export RUN --to EXPORTER [FOLDER] [--set KEY=VALUE] [--no-verify]"
    parser.add_argument("run", metavar="RUN", help="the folder or the name of a finished run")
    parser.add_argument(
        "--to",
        metavar=("EXPORTER", "FOLDER"),
        nargs="+",
        required=True,
        help="the exporter, e.g. merged, and the folder to create; default: RUN/export/EXPORTER",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="options", help="an option of the exporter"
    )
    parser.add_argument(
        "--no-verify",
        action="store_false",
        dest="verify",
        help="do not load the export again to compare it with the run's model",
    )
    add_trust_argument(parser)


def main(arguments: argparse.Namespace) -> int:
    """Export the model and print what was written."""
    run = find_run_to_load(arguments)  # before the heavy imports
    from harness.registry import discover_plugins
    from harness.runner.export_model import export_model
    from harness.runner.folder import EXPORT_FOLDER
    from harness.terminal.console import Console

    name, *folders = arguments.to
    if len(folders) > 1:
        raise HarnessError("--to", f"{len(folders)} folders are named", "name one folder")
    folder = Path(folders[0]) if folders else run / EXPORT_FOLDER / name.replace("/", "-")
    registry = discover_plugins()
    with Console.from_options(quiet=True) as console:
        registry.manager.register(console, name="console")
        options = dict(map(_parse_option, arguments.options))
        first, *lines = export_model(registry, run, name, options, folder, verify=arguments.verify)
    print("\n".join([f"{folder}: {first}", *lines]))
    return 0


def _parse_option(option: str) -> tuple[str, Any]:
    key, equals, text = option.partition("=")
    if not equals or not key:
        raise HarnessError(f"--set {shorten_text(option, 100)}", "an option is key=value", "e.g. --set dtype=float32")
    try:
        return key, load_json(text)
    except ValueError:
        return key, text
