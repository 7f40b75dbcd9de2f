"""The `harness` command: parse the arguments, run one command, turn errors into exit codes.

Each command is a module of this package with `add_parser` and `main`. A command imports heavy packages inside `main`,
so `--help`, `validate`, `schema` and `plugins` start fast.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import NoReturn

from harness.cli import (
    cache,
    chat,
    check,
    compare,
    doctor,
    evaluate,
    export,
    gate,
    generate,
    import_,
    init,
    plan,
    plugins,
    preview,
    rate,
    recipes,
    report,
    run,
    runs,
    schema,
    score,
    track,
    validate,
)
from harness.cli.options import DISABLE_OPTION, add_disable_option
from harness.cli.plugin_commands import PLUGIN_COMMAND, PluginCommand, add_plugin_commands
from harness.distributed import failure, launch
from harness.errors import ComponentError, HarnessError
from harness.interfaces.guard import describe_exception
from harness.utils.formatting import printable, shorten_text, shorten_words
from harness.utils.output import reserve_output
from harness.utils.redaction import redact_text
from harness.utils.stop_signals import Interrupted, handle_stop_signals
from harness.utils.traceback_file import write_traceback

COMMANDS = (
    *(init, recipes, import_, run, check, compare, runs, preview, validate, plan, evaluate),
    *(chat, generate, export, gate, rate, report, score, track, cache, plugins, schema, doctor),
)
"""The modules of all commands, the most used first, in the order of `--help`."""

MAX_ARGUMENT_ERROR = 600
"""Characters of an error about arguments."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    If several processes share a run, only the main process prints and returns these codes. Workers exit with 0.

    Args:
        argv: The arguments; None: those of the process.

    Returns:
        0 success, 1 failure inside a run or a plugin, 2 bad input, 3 gate not passed, 75 stopped by a signal, 130 by
        Ctrl-C.
    """
    if launch.get_rank() != 0:
        return _worker_main(argv)
    with handle_stop_signals():
        return _run_command(argv)


def _run_command(argv: Sequence[str] | None) -> int:
    try:
        words = sys.argv[1:] if argv is None else argv
        _disable_plugins(words)  # before the commands of plugins are looked for
        parser = _build_parser(words)
        arguments = parser.parse_args(words)
        code = _call_command(parser, arguments)
        sys.stdout.flush()  # raises BrokenPipeError here, and not at interpreter exit
        return code
    except HarnessError as error:
        for line in error.lines():
            print(f"harness: {printable(shorten_words(redact_text(line)))}", file=sys.stderr)
        if isinstance(error, ComponentError) and error.__cause__ is not None:
            print(f"harness: traceback: {write_traceback(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as error:
        lines = [str(error) or "interrupted", *getattr(error, "__notes__", ())]
        print(f"harness: {'; '.join(map(printable, lines))}", file=sys.stderr)
        return error.exit_code if isinstance(error, Interrupted) else 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        path, reason = error.filename or "harness", error.strerror or error
        print(
            f"harness: {path}: cannot read or write it: {reason}; free disk space or fix the permissions",
            file=sys.stderr,
        )
        return 1
    except Exception as error:
        file = write_traceback(error)
        if file is None:
            raise
        what = f"this is a fault of harness: {shorten_text(redact_text(describe_exception(error)), MAX_ARGUMENT_ERROR)}"
        remedy = f"please report it with {file}; a run can be resumed: harness runs"
        print(f"harness: {printable(what)}; {remedy}", file=sys.stderr)
        return 1


def _call_command(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Run the command of the arguments. Those of a plugin's command are its own: none is read or set here."""
    plugin_command: PluginCommand | None = getattr(arguments, PLUGIN_COMMAND, None)
    if plugin_command is not None:
        _process_count(plugin_command.name)
        return plugin_command.run(arguments)
    if "main" not in arguments:
        parser.print_help()
        return 0
    if getattr(arguments, "trust_remote_code", False):
        os.environ["HARNESS_TRUST_REMOTE_CODE"] = "1"  # inherited by the processes that the command starts
    arguments.processes = _process_count(arguments.command_name)
    with reserve_output() if getattr(arguments, "json", False) else contextlib.nullcontext():
        code: int = arguments.main(arguments)
    return code


def _disable_plugins(argv: Sequence[str]) -> None:
    """Add the distributions of `--disable-plugin` to those that the environment disables.

    Processes that the command starts inherit them.
    """
    if not any(word.startswith(DISABLE_OPTION) for word in argv):
        return
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_disable_option(parser)
    names = parser.parse_known_args(argv)[0].disabled_plugins
    if names:
        from harness.plugin_entry_points import DISABLE_VARIABLE

        os.environ[DISABLE_VARIABLE] = ",".join(filter(None, [os.environ.get(DISABLE_VARIABLE, ""), *names]))


def _worker_main(argv: Sequence[str] | None) -> int:
    """Take part in a run as a worker process, silently.

    An error before the processes have met occurs in the main process too, which prints it; the launcher then stops this
    process. Only if that does not happen does the worker print the error itself.
    """
    errors = io.StringIO()
    with (
        handle_stop_signals(always_defer=True),  # the main process is interrupted and stops the workers
        open(os.devnull, "w") as devnull,
        contextlib.redirect_stdout(devnull),
        contextlib.redirect_stderr(errors),
    ):
        try:
            code = _run_command(argv)
        except SystemExit as exit_:  # raised by argparse
            code = int(exit_.code or 0)
    if code:
        time.sleep(failure.SHUTDOWN_TIMEOUT)
        print(errors.getvalue(), end="", file=sys.stderr)
    return code


def _process_count(command_name: str) -> int:
    """Return how many processes share the command; only `run` can be shared."""
    if command_name == "run":
        return launch.get_world_size()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise HarnessError(
            "torchrun",
            f"harness {command_name} runs in one process, but WORLD_SIZE is {os.environ['WORLD_SIZE']}",
            "start it without a launcher; only harness run uses several processes",
        )
    return 1


class _Parser(argparse.ArgumentParser):
    """A parser whose errors neither control a terminal nor repeat a long argument."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the error, and exit with 2."""
        super().error(shorten_text(printable(" ".join(message.split())), MAX_ARGUMENT_ERROR))


def _build_parser(argv: Sequence[str] = ()) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="harness",
        description="Fine-tune language models from one JSON spec, and know what they forgot.",
        epilog="example: harness run specs/mixed_sft.json",
    )
    parser.add_argument("--version", action="version", version=f"harness {version('harness-sft')}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(subparsers)
    add_plugin_commands(subparsers, argv, subparsers.choices)
    return parser
