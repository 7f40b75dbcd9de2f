"""Start the processes of one run as a launcher would, on one or several simulated nodes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

PROGRAM = Path(__file__).parents[1] / "harness" / "runner" / "command_with_fault.py"
ENOUGH = 240


@dataclass(frozen=True)
class Ended:
    """How two processes ended. codes: of each; None where its launcher would have had to end it."""

    codes: tuple[int | None, ...]
    out: str
    errors: str

    def complaints(self) -> list[str]:
        """The error lines of the command."""
        return [line for line in self.errors.splitlines() if line.startswith("harness: ")]


def start(
    *words, processes=2, nodes=1, fault=None, record=None, environment=None, waits=ENOUGH, own=(), folders=(), then=None
):
    """Start the command as torchrun would, so that each exit code is seen.

    nodes: simulated, with equally many processes. fault: (what, process, update). record: a program that records, and
    the folder of its files. own: a process's own variables, by rank. folders: its working folder, by rank. then: a
    function that gets the processes when they have started.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = ["-m", "harness"] if fault is None else [str(PROGRAM), *map(str, fault)]
    program = program if record is None else list(map(str, record))
    on_node = processes // nodes
    shared = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": on_node, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = []
    for rank in range(processes):
        ranks = {"RANK": rank, "LOCAL_RANK": rank % on_node, "GROUP_RANK": rank // on_node}
        variables = {**shared, **ranks, **(environment or {}), **(own[rank] if own else {})}
        started.append(
            subprocess.Popen(
                [sys.executable, *program, *map(str, words)],
                env=os.environ | {name: str(value) for name, value in variables.items()},
                cwd=folders[rank] if folders else None,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    main, *others = started
    try:
        if then is not None:
            then(started)
        outputs = [main.communicate(timeout=ENOUGH)]
        codes: list[int | None] = [main.returncode]
        for other in others:
            try:
                outputs.append(other.communicate(timeout=waits))
                codes.append(other.returncode)
            except subprocess.TimeoutExpired:
                other.kill()
                outputs.append(other.communicate())
                codes.append(None)
    finally:
        for process in started:
            process.kill()
    return Ended(tuple(codes), "".join(out for out, _ in outputs), "".join(errors for _, errors in outputs))


def send_when_there(pattern, folder, rank, name="SIGTERM"):
    """Return a function for `then`: it sends a signal to a process once a file like `pattern` is in the folder."""

    def send(started):
        deadline = time.monotonic() + ENOUGH
        while not list(folder.glob(pattern)):
            assert time.monotonic() < deadline, f"there is no {pattern}"
            assert all(process.poll() is None for process in started), "a process has ended"
            time.sleep(0.05)
        started[rank].send_signal(getattr(signal, name))

    return send
