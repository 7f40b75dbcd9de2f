"""Run `harness` commands in forks of this process, which has imported everything: a try costs seconds, not a start.

A fork runs `harness.cli.main.main`, which the installed command runs too. `run_installed` starts the command itself.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LIMIT_SECONDS = 240.0
MODULES = ("harness.cli.main", "harness.runner.api", "harness.terminal.console", "harness.training.train_stage")
OPTIONAL_MODULES = ("trl.trainer.sft_trainer", "peft", "sacrebleu", "matplotlib.figure", "mlflow", "pandas")
TRACEBACK = re.compile(r"^Traceback \(most recent call last\)", re.MULTILINE)
FAULT = "this is a fault of harness"


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        code: Its exit code; minus the signal that killed it; None: it hung and was killed.
        text: Everything that it printed.
    """

    code: int | None
    text: str

    @property
    def has_traceback(self) -> bool:
        """Whether it printed a traceback, or wrote one to a file because of a fault of harness."""
        return bool(TRACEBACK.search(self.text)) or FAULT in self.text

    @property
    def error_lines(self) -> list[str]:
        """The lines with errors."""
        return [line for line in self.text.splitlines() if line.startswith("harness: ")]


def warm_up() -> None:
    """Import what commands import, so that forks need not."""
    import torch

    from harness import registry

    torch.set_num_threads(1)
    registry.discover_plugins()
    for module in (*MODULES, *OPTIONAL_MODULES):
        with contextlib.suppress(*((ImportError,) if module in OPTIONAL_MODULES else ())):
            importlib.import_module(module)


def empty_folder(folder: Path) -> Path:
    """Make a folder, without what it had, and return it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def start(
    arguments: Sequence[object],
    folder: Path,
    *,
    before: Callable[[], None] | None = None,
    environment: Mapping[str, str] | None = None,
    output: str = "output.txt",
) -> int:
    """Start a command in a fork, in a session and a working folder of its own, and return the process id.

    Args:
        arguments: Of the command.
        folder: The working folder; gets the file `output` with everything printed.
        before: Called in the fork before the command.
        environment: Variables to set.
        output: Name of the file.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        os.setsid()
        os.chdir(folder)
        stream = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        os.environ.update(environment or {})
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        if before is not None:
            before()
        from harness.cli.main import main

        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as error:
            code = int(error.code or 0)
        except BaseException:
            import traceback

            traceback.print_exc()
            code = 71
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
    finally:
        os._exit(code)


def wait(process: int, folder: Path, *, limit: float = LIMIT_SECONDS, output: str = "output.txt") -> Outcome:
    """Wait for a started command; kill it when the limit in seconds has passed."""
    end = time.monotonic() + limit
    while True:
        finished, status = os.waitpid(process, os.WNOHANG)
        if finished:
            code: int | None = os.waitstatus_to_exitcode(status)
            break
        if time.monotonic() > end:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            code = None
            break
        time.sleep(0.02)
    file = folder / output
    return Outcome(code, file.read_text(errors="replace") if file.is_file() else "")


def run(arguments: Sequence[object], folder: Path, **options: object) -> Outcome:
    """Start a command in a fork and wait for it; options of `start`, and `limit` of `wait`."""
    limit = float(options.pop("limit", LIMIT_SECONDS))  # type: ignore[arg-type]
    output = str(options.get("output", "output.txt"))
    return wait(start(arguments, folder, **options), folder, limit=limit, output=output)  # type: ignore[arg-type]


def run_installed(
    arguments: Sequence[object], folder: Path, *, environment: Mapping[str, str], kill_after: float | None = None
) -> Outcome:
    """Run the command in a process of its own; kill it after some seconds."""
    with (folder / "output.txt").open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "harness", *map(str, arguments)],
            cwd=folder,
            env={**os.environ, **environment},
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(LIMIT_SECONDS if kill_after is None else kill_after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None if kill_after is None else -signal.SIGKILL
    return Outcome(code, (folder / "output.txt").read_text(errors="replace"))


def run_folder(folder: Path, output: str = "runs") -> Path | None:
    """Return the newest run or experiment below the working folder of a command; None without one."""
    runs = sorted(file.parent for file in (folder / output).glob("*/spec.json"))
    return runs[-1] if runs else None
