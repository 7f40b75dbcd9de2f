"""The `harness` command: parse the arguments, run one command, turn errors into exit codes.

Each command is a module of this package with `add_parser` and `main`. A command imports heavy packages inside `main`,
so `--help`, `validate`, `schema` and `plugins` start fast.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version

from harness.cli import (
    check,
    compare,
    evaluate,
    gate,
    plan,
    plugins,
    preview,
    report,
    run,
    runs,
    schema,
    score,
    track,
    validate,
)
from harness.distributed import failure, launch
from harness.errors import HarnessError
from harness.utils.formatting import printable

COMMANDS = (run, check, compare, runs, preview, validate, plan, evaluate, gate, report, score, track, plugins, schema)
"""The modules of all commands, the most used first, in the order of `--help`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    If several processes share a run, only the main process prints and returns these codes. Workers exit with 0.

    Args:
        argv: The arguments; None: those of the process.

    Returns:
        0 success, 1 failure inside a run, 2 bad input, 3 gate not passed, 130 interrupted.
    """
    return _run_command(argv) if launch.get_rank() == 0 else _worker_main(argv)


def _run_command(argv: Sequence[str] | None) -> int:
    parser = _build_parser()
    arguments = parser.parse_args(argv)
    if "main" not in arguments:
        parser.print_help()
        return 0
    try:
        arguments.processes = _process_count(arguments.command_name)
        code: int = arguments.main(arguments)
        sys.stdout.flush()  # raises BrokenPipeError here, and not at interpreter exit
        return code
    except HarnessError as error:
        for line in error.lines():
            print(f"harness: {printable(line)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("harness: interrupted", file=sys.stderr)
        return 130
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


def _worker_main(argv: Sequence[str] | None) -> int:
    """Take part in a run as a worker process, silently.

    An error before the processes have met occurs in the main process too, which prints it; the launcher then stops this
    process. Only if that does not happen does the worker print the error itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process is interrupted and stops the workers
    errors = io.StringIO()
    with open(os.devnull, "w") as devnull, contextlib.redirect_stdout(devnull), contextlib.redirect_stderr(errors):
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


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="harness",
        description="Fine-tune language models from one JSON spec, and know what they forgot.",
        epilog="example: harness run specs/mixed_sft.json",
    )
    parser.add_argument("--version", action="version", version=f"harness {version('harness-sft')}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser
