"""Work that the main process shares with a worker that waits for a broadcast."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

PROGRAM = """
import os, signal, sys, threading, time
from harness.distributed.setup import init_processes
from harness.utils.stop_signals import Interrupted, handle_stop_signals

interrupts = sys.argv[1] == "interrupt"
with handle_stop_signals(), init_processes(2) as processes:
    if processes.is_main:
        if interrupts:
            threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
        done = []
        try:
            results = [processes.share(number, lambda: done.append("own")) for number in (3, 4)]
        except Interrupted as error:
            print(error, flush=True)
            os._exit(0)
        print(results, done, processes.broadcast("value"), flush=True)
    else:
        def perform(number):
            if interrupts:
                time.sleep(60)
            return number * 10
        processes.perform = perform
        print(processes.broadcast(None), flush=True)
        processes.broadcast(None)  # there are no more runs
"""


def run_two(word):
    """Run the program in two processes and return what the main process prints, and the worker's output if it ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    path = {"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    main, worker = (
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, word],
            env={**shared, **path, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    )
    try:
        text = main.communicate(timeout=120)[0].strip()
        return text, worker.communicate(timeout=120)[0].strip() if word == "share" else ""
    finally:
        worker.kill()
        worker.communicate()


def test_a_worker_performs_requests_until_the_main_process_broadcasts_a_value():
    assert run_two("share") == ("[[30], [40]] ['own', 'own'] value", "value")


def test_a_signal_ends_the_wait_for_a_worker():
    started = time.monotonic()
    text, _ = run_two("interrupt")
    assert text == "interrupted by SIGTERM"
    assert time.monotonic() - started < 55, "the worker is busy for a minute"
