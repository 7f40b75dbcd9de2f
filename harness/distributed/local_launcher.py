"""Start the processes of `harness run --gpus N` on this machine, and end them together. Imports no torch."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from types import FrameType

from harness.errors import HarnessError
from harness.utils.stop_signals import EXIT_CODES

FORWARDED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Signals that the main process handles, see `harness.utils.stop_signals`."""

POLL_SECONDS = 0.2
GRACE_SECONDS = 60.0
"""How long processes may run on after another one has failed: each of them reports the failure and ends by itself."""


def run_processes(arguments: Sequence[str], count: int) -> int:
    """Run `harness` with these arguments in several processes, as torchrun would, and return the main one's exit code.

    Signals are forwarded to the main process, which stops the others. If a process fails and others do not end, they
    are ended.

    Args:
        arguments: The arguments of `harness`.
        count: The number of processes, at least 1.

    Raises:
        HarnessError: A launcher has started several processes already.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        what = f"a launcher has started {os.environ['WORLD_SIZE']} processes already"
        raise HarnessError("--gpus", what, "leave out --gpus, or start harness without a launcher")
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // count)),
    }
    command = [sys.executable, "-m", "harness", *arguments]
    # Each in a session of its own: the terminal sends Ctrl-C to this process alone, which forwards it once.
    processes = [
        subprocess.Popen(command, env={**environment, "RANK": str(r), "LOCAL_RANK": str(r)}, start_new_session=True)
        for r in range(count)
    ]

    forwarded: set[int] = set()

    def forward(number: int, _: FrameType | None) -> None:
        forwarded.add(number)
        if processes[0].poll() is None:
            processes[0].send_signal(number)

    previous = {number: signal.signal(number, forward) for number in FORWARDED_SIGNALS}
    try:
        return _wait(processes, forwarded)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def _wait(processes: Sequence[subprocess.Popen[bytes]], forwarded: Collection[int]) -> int:
    """Wait for all processes; after the first failure, or the end of the main one, only for `GRACE_SECONDS`.

    Args:
        processes: The main one first.
        forwarded: The signals that were forwarded to it.

    Returns:
        The exit code of the command.
    """
    deadline: float | None = None
    while any(process.poll() is None for process in processes):
        has_ended = processes[0].poll() is not None or any(process.poll() for process in processes)
        if has_ended and deadline is None:
            deadline = time.monotonic() + GRACE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    codes = [process.poll() for process in processes]
    main_code = codes[0]
    if main_code is not None and -main_code in forwarded:  # received before or after harness handles signals
        return EXIT_CODES[signal.Signals(-main_code).name]
    if main_code is None or main_code < 0:  # it did not end by itself
        return 1
    return main_code or (1 if any(code not in (0, None) for code in codes) else 0)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
