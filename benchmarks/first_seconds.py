"""Time and peak memory of commands that load no model, side by side with an earlier commit.

    python benchmarks/first_seconds.py --before 5aaa73a specs/mixed_sft.json

The earlier commit is checked out in a temporary git worktree. Each side takes its own spec of that name. Both sides run
in turn, each in a process of its own; the medians and their ratio are printed. The first run of each is not counted: it
converts the model and fills the caches.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from earlier_commit import ROOT, checked_out, command_of

COMMANDS = ("validate", "check", "plan", "preview")


def measure(root: Path, command: str, spec: Path) -> tuple[float, float]:
    """Run one command with the code in `root`, and return its wall time in seconds and its peak memory in MB."""
    words, environment = command_of(root, os.environ)
    started = time.perf_counter()
    process = subprocess.Popen(
        [*words, command, str(spec)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd=root,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"harness {command} {spec} exits with {process.returncode} in {root}")
    return time.perf_counter() - started, _megabytes(usage)


def _megabytes(usage: resource.struct_rusage) -> float:
    return usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def main() -> None:
    """Measure every command on both sides in turn, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "spec", type=Path, nargs="?", default=Path("specs/mixed_sft.json"), help="relative to the repository"
    )
    parser.add_argument("--before", required=True, metavar="COMMIT", help="the commit to compare with")
    parser.add_argument("--json", type=Path, help="write seconds and MB of every round to this file")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=COMMANDS)
    arguments = parser.parse_args()
    table: dict[str, dict[str, list[tuple[float, float]]]] = {}
    print(f"{'command':10}{'before':>18}{'now':>18}{'ratio':>16}")
    with checked_out(arguments.before) as before:
        for command in arguments.commands:
            results: dict[Path, list[tuple[float, float]]] = {before: [], ROOT: []}
            for repeat in range(arguments.repeats + 1):
                for root, values in results.items():
                    result = measure(root, command, arguments.spec)
                    values += [result] if repeat else []
            table[command] = {"before": results[before], "now": results[ROOT]}
            (old_time, old_memory), (new_time, new_memory) = (
                tuple(map(statistics.median, zip(*values, strict=True))) for values in results.values()
            )
            print(
                f"{command:10}{old_time:8.2f} s {old_memory:5.0f} MB{new_time:8.2f} s {new_memory:5.0f} MB"
                f"{new_time / old_time:7.2f} / {new_memory / old_memory:.2f}"
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
