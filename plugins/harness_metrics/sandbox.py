"""Run Python code that a model wrote, and tests of it, in a process without network, read-only and with limits.

The process gets namespaces of its own (Linux, unprivileged): no network, no other processes, and every file system
read-only. Limits of the kernel bound its time, memory and open files. `sandbox_child` runs there: it proves by a secret
number that the tests have run. This protects against what a model writes by accident, such as a loop without end or a
deleted folder, and against answers that only pretend to pass. It is not a protection against an attacker; use a virtual
machine for that.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from harness_metrics.sandbox_child import CANNOT_ISOLATE, FLAGS

_CHILD = str(Path(__file__).with_name("sandbox_child.py"))


def run_python(code: str, tests: str, seconds: int, megabytes: int, *, isolated: bool) -> bool:
    """Return whether a Python program and then its tests run to their end without an exception.

    Args:
        code: The program.
        tests: Code that is run after the program, with its names.
        seconds: Limit of the processor time. The limit of the wall time is twice as long.
        megabytes: Limit of the memory.
        isolated: Whether it has no network and read-only files; False: it has those of this process.

    Raises:
        OSError: The machine does not allow the isolation.
    """
    nonce = secrets.token_hex(16)
    job = {"code": code, "tests": tests, "nonce": nonce, "seconds": seconds, "megabytes": megabytes}
    command = ["-I", "-S", _CHILD, "isolate"] if isolated else [*FLAGS, _CHILD, "run"]
    with tempfile.TemporaryDirectory(prefix="harness-code-") as folder, tempfile.TemporaryFile() as stdin:
        stdin.write(json.dumps(job).encode())
        stdin.seek(0)
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env={"PYTHONHASHSEED": "0"},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            output = _read_output(process, limit=len(nonce) + 1, deadline=time.monotonic() + 2 * seconds)
        finally:
            _kill_group(process)
    if isolated and process.returncode == CANNOT_ISOLATE:
        raise OSError("this machine does not allow a process to isolate itself (user namespaces)")
    return output == nonce.encode()


@cache
def can_isolate() -> bool:
    """Return whether this machine can run code without network and with read-only files."""
    try:
        return sys.platform == "linux" and run_python("", "", 10, 512, isolated=True)
    except OSError:
        return False


def _read_output(process: subprocess.Popen[bytes], limit: int, deadline: float) -> bytes:
    """Return what the process writes until it ends, at most `limit` bytes; b"" if it has not ended at the deadline."""
    assert process.stdout is not None
    output, poll = b"", select.poll()
    poll.register(process.stdout, select.POLLIN)
    while len(output) < limit:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(1000 * left):
            return b""
        chunk = os.read(process.stdout.fileno(), limit - len(output))
        if not chunk:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            break
        output += chunk
    return output


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and all that it started, and wait for it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()
