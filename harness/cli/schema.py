"""`harness schema`: print the JSON Schema of specs, composed from the core and all plugins."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from harness.cli.options import Subparsers, add_command
from harness.errors import HarnessError


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_command(
        subparsers,
        "schema",
        main,
        "Print the JSON Schema of specs.",
        "harness schema --output specs/harness.schema.json",
    )
    parser.add_argument("--output", metavar="FILE", help="write it to this file")


def main(arguments: argparse.Namespace) -> int:
    """Print the schema, or write it to a file."""
    from harness import registry
    from harness.spec import schema

    text = json.dumps(schema.compose_schema(registry.discover_plugins()), indent=2, ensure_ascii=False) + "\n"
    if not arguments.output:
        print(text, end="")
        return 0
    try:
        Path(arguments.output).write_text(text, encoding="utf-8")
    except OSError as error:
        raise HarnessError(arguments.output, f"cannot write it: {error.strerror}", "name another file") from None
    return 0
