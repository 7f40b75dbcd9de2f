"""`harness run --gpus N` starts N processes, ends them together and has the exit code of the main one."""

from __future__ import annotations

import subprocess
import sys
import time
from argparse import Namespace

import pytest

from harness.cli.main import _build_parser
from harness.cli.run import _arguments_of_a_process
from harness.distributed import local_launcher
from harness.errors import HarnessError


@pytest.fixture
def program(monkeypatch):
    """A function that sets the Python program of each process, which knows its rank as `rank`."""

    def set_program(code):
        real = subprocess.Popen

        def start(command, **options):
            text = f"import os, sys, time, signal\nrank = int(os.environ['RANK'])\n{code}"
            return real([sys.executable, "-c", text], **options)

        monkeypatch.setattr(local_launcher.subprocess, "Popen", start)
        monkeypatch.delenv("WORLD_SIZE", raising=False)

    return set_program


def test_every_process_knows_its_rank_and_the_others(program, tmp_path):
    names = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")
    program(f"open(f'{tmp_path}/{{rank}}', 'w').write(' '.join(os.environ[name] for name in {names}))")
    assert local_launcher.run_processes(["run"], 3) == 0
    assert [(tmp_path / str(rank)).read_text() for rank in range(3)] == [f"3 3 {rank} 127.0.0.1" for rank in range(3)]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("sys.exit(3 if rank == 0 else 0)", 3),
        ("sys.exit(0 if rank == 0 else 7)", 1),
        ("os.kill(os.getpid(), signal.SIGKILL) if rank == 0 else None", 1),
    ],
)
def test_the_exit_code_is_that_of_the_main_process(program, code, expected):
    program(code)
    assert local_launcher.run_processes(["run"], 2) == expected


def test_processes_that_do_not_end_after_a_failure_are_ended(program, monkeypatch):
    monkeypatch.setattr(local_launcher, "GRACE_SECONDS", 0.5)
    program("time.sleep(600) if rank else sys.exit(2)")
    started = time.monotonic()
    assert local_launcher.run_processes(["run"], 2) == 2
    assert time.monotonic() - started < 300


@pytest.mark.parametrize(
    ("name", "handler", "expected"),
    [
        ("SIGTERM", "lambda *_: sys.exit(75)", 75),
        ("SIGTERM", "signal.SIG_DFL", 75),  # before harness handles signals, or after
        ("SIGUSR1", "signal.SIG_DFL", 75),
        ("SIGINT", "signal.SIG_DFL", 130),
    ],
)
def test_a_signal_reaches_the_main_process(program, tmp_path, name, handler, expected):
    code = (
        f"signal.signal(signal.{name}, {handler})\nopen(f'{tmp_path}/{{rank}}', 'w').close()\n"
        "while rank == 0: time.sleep(0.05)\n"
        f"os.kill(os.getppid(), signal.{name})"
    )
    program(f"while rank == 1 and not os.path.exists('{tmp_path}/0'): time.sleep(0.05)\n{code}")
    assert local_launcher.run_processes(["run"], 2) == expected


def test_a_launcher_within_a_launcher_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(HarnessError, match="--gpus: a launcher has started 2 processes already"):
        local_launcher.run_processes(["run"], 2)


@pytest.mark.parametrize(
    "words",
    [
        ["run", "spec.json", "--set", "train.epochs=2", "--set", "seed=1", "--arm", "a", "--quiet"],
        ["run", "--resume", "name", "--allow-plugin-change", "--json"],
    ],
)
def test_processes_get_the_arguments_of_the_command(words):
    parsed: Namespace = _build_parser(words).parse_args([*words, "--gpus", "2"])
    assert parsed.gpus == 2
    assert _arguments_of_a_process(parsed) == words
