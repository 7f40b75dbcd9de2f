"""Options and output helpers that several commands share."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.utils.formatting import printable
from harness.utils.output import result_stream
from harness.utils.redaction import redact_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from harness.runner.respond import AnswerSettings
    from harness.types import Evaluation

Subparsers = Any
"""What `ArgumentParser.add_subparsers` returns; argparse gives its type no public name."""

DISABLE_OPTION = "--disable-plugin"

CommandMain = Callable[[argparse.Namespace], int]
"""The `main` of a command: parsed arguments to exit code."""


def add_command(
    subparsers: Subparsers, name: str, main: CommandMain, summary: str, example: str
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
    add_disable_option(parser)
    parser.set_defaults(main=main, command_name=name)
    return parser


def add_disable_option(parser: argparse.ArgumentParser) -> None:
    """Add `--disable-plugin`, which every command has. `harness.cli.main` reads it before it looks for plugins."""
    parser.add_argument(
        DISABLE_OPTION,
        action="append",
        default=[],
        metavar="DISTRIBUTION",
        dest="disabled_plugins",
        help="ignore the components, commands and listeners of a plugin package",
    )


def add_spec_arguments(
    parser: argparse.ArgumentParser, *, optional: bool = False, text: str = "the spec, a JSON or YAML file"
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
    add_trust_argument(parser)


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--trust-remote-code`. `harness.cli.main` passes it on to the code that loads models."""
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="execute the code of the model, if model.trust_remote_code of the spec agrees",
    )


def require_trusting_spec(arguments: argparse.Namespace, spec: Mapping[str, Any]) -> None:
    """Require that the spec trusts the code of its model if the command does.

    Args:
        arguments: The arguments of a command with `--trust-remote-code`.
        spec: The filled spec, or that of the run that the command uses.

    Raises:
        HarnessError: Only the command trusts it.
    """
    if getattr(arguments, "trust_remote_code", False) and not spec["model"].get("trust_remote_code"):
        what = "the spec does not set model.trust_remote_code"
        raise HarnessError("--trust-remote-code", what, "leave it out, or read the code and set the key to true")


def find_run_to_load(arguments: argparse.Namespace) -> Path:
    """Return the folder of the finished run that a command names. Imports nothing heavy.

    Raises:
        HarnessError: There is no such run, it has no result, or only the command trusts the code of its model.
    """
    from harness.report.finished_run import load_run_json
    from harness.utils.find_run import find_finished_run

    run = find_finished_run(arguments.run)
    require_trusting_spec(arguments, load_run_json(run, "spec.json"))
    return run


def add_json_argument(parser: argparse.ArgumentParser, text: str = "print JSON") -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help=text)


def add_answer_arguments(parser: argparse.ArgumentParser, *, max_new_tokens: int) -> None:
    """Add the options of generated answers: length, temperature, top-p and seed.

    Args:
        parser: The parser of the command.
        max_new_tokens: The default of `--max-new-tokens`.
    """
    parser.add_argument(
        "--max-new-tokens",
        type=int_at_least(1),
        default=max_new_tokens,
        metavar="N",
        help="maximum number of tokens of an answer (default: %(default)s)",
    )
    parser.add_argument(
        "--temperature",
        type=float_between(0.0, 10.0),
        default=0.0,
        metavar="T",
        help="temperature of sampling; 0, the default, takes the most likely token each time",
    )
    parser.add_argument(
        "--top-p",
        type=float_between(0.001, 1.0),
        default=1.0,
        metavar="P",
        help="sample from the most likely tokens with this probability together (default: 1)",
    )
    parser.add_argument(
        "--seed", type=int_at_least(0), default=0, metavar="N", help="seed of sampling (default: %(default)s)"
    )


def answer_settings(arguments: argparse.Namespace) -> AnswerSettings:
    """Return the settings that the options of `add_answer_arguments` name."""
    from harness.runner.respond import AnswerSettings

    return AnswerSettings(arguments.max_new_tokens, arguments.temperature, arguments.top_p, arguments.seed)


def float_between(minimum: float, maximum: float) -> Callable[[str], float]:
    """Return an argparse type for numbers from `minimum` to `maximum`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not minimum <= value <= maximum:
            raise argparse.ArgumentTypeError(f"{value:g} is not between {minimum:g} and {maximum:g}")
        return value

    return parse


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


def print_warning(text: str) -> None:
    """Print a warning on one line, without characters that control a terminal."""
    print(f"warning: {printable(redact_text(' '.join(text.split())))}", file=sys.stderr)


def print_json(document: object) -> None:
    """Print a document as indented JSON."""
    print(json.dumps(document, indent=2, ensure_ascii=False), file=result_stream())


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
