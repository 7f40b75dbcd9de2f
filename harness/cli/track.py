"""`harness track`: send a run to a tracking server after it has ended."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cli.options import Subparsers, add_command, print_warning

if TYPE_CHECKING:
    from harness.spec.spec import Spec


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_command(
        subparsers,
        "track",
        main,
        "Send a finished or interrupted run to MLflow; what it has already is not sent twice.",
        "harness track runs/mixed-sft-20260101-120000-ab12 --uri https://mlflow.example",
    )
    parser.add_argument("run", metavar="RUN", help="the folder or the name of a run or experiment")
    parser.add_argument("--uri", help="the tracking store; default: where the run was tracked, else that of its spec")


def main(arguments: argparse.Namespace) -> int:
    """Send the run and print its address."""
    from harness.utils.find_run import find_run

    folder = find_run(arguments.run)
    from harness import registry
    from harness.runner.send_run import Sender
    from harness.spec import schema
    from harness.spec import spec as spec_module

    plugins = registry.discover_plugins()
    composed_schema = schema.compose_schema(plugins)

    def load_spec(file: Path) -> Spec:
        return spec_module.load_spec(file, composed_schema, (), plugins.broken_plugins)

    def warn(text: str) -> None:
        print_warning(text)

    pages = Sender(plugins, load_spec, arguments.uri, warn).send(folder)
    for line in filter(None, (pages.command, pages.run, pages.view)):
        print(line)
    return 0
