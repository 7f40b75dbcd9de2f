"""Options and output helpers that several commands share."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

    from harness.types import Evaluation

Subparsers = Any
"""What `ArgumentParser.add_subparsers` returns; argparse gives its type no public name."""

Command = Callable[[argparse.Namespace], int]
"""The `main` of a command: parsed arguments to exit code."""


def add_command(
    subparsers: Subparsers, name: str, main: Command, summary: str, example: str
) -> argparse.ArgumentParser:
    """Add a command's parser.

    Args:
        subparsers: The subparsers of the `harness` parser.
        name: The word that the user types.
        main: The function that runs the command.
        summary: One sentence for `--help`.
        example: A full command line for `--help`.

    Returns:
        The parser, to add the command's own arguments to.
    """
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name, help=summary, description=summary, epilog=f"example: {example}"
    )
    parser.set_defaults(main=main, command_name=name)
    return parser


def add_spec_arguments(
    parser: argparse.ArgumentParser, *, optional: bool = False, text: str = "the spec, a JSON file"
) -> None:
    """Add `SPEC` and `--set`."""
    parser.add_argument("spec", metavar="SPEC", nargs="?" if optional else None, help=text)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a value of the spec, e.g. train.learning_rate=1e-5; it is validated like the rest",
    )


def add_json_argument(parser: argparse.ArgumentParser, text: str = "print JSON") -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help=text)


def int_at_least(minimum: int) -> Callable[[str], int]:
    """Return an argparse type for integers that are not below `minimum`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer") from None
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{value} is below {minimum}")
        return value

    return parse


def print_json(document: object) -> None:
    """Print a document as indented JSON."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


def write_text(file: str, text: str) -> None:
    """Write a text to a file; `-` prints it."""
    if file == "-":
        sys.stdout.write(text)
    else:
        Path(file).write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def print_renderable(renderable: RenderableType) -> None:
    """Print something of rich to standard output, at the terminal's width."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=False)
    with console.capture() as captured:  # rich exits with 1 itself when the reader of a pipe has closed it
        console.print(renderable)
    sys.stdout.write(captured.get())


def print_scores(evaluations: Sequence[Evaluation], *, as_json: bool) -> None:
    """Print scores as a table or as JSON."""
    from harness.terminal.report_table import scores_table
    from harness.utils import json_files

    if as_json:
        print_json(json_files.json_safe(json_files.scores_as_dicts(evaluations)))
    else:
        print_renderable(scores_table(evaluations))
