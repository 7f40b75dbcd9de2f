"""Measure the default spec: with an empty cache, when the model is fetched and converted, and with a filled one.

    python benchmarks/default_run.py [--spec specs/mixed_sft.json]

Prints wall seconds of both runs, by phase as the program reports them, and the load of the machine. The figures mean
little on a machine that does other work.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def time_run(spec: str, folder: str) -> float:
    """Run a spec, print its phases, and return the wall seconds."""
    environment = {**os.environ, "HARNESS_CACHE": f"{folder}/cache"}
    command = [sys.executable, "-m", "harness.cli.main", "run", str(Path(spec).resolve())]
    started = time.perf_counter()
    process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if process.returncode:
        sys.exit(process.stderr)
    for line in process.stdout.splitlines():
        if " in " in line and line.partition(":")[0].split(" ")[0] in ("fetch", "prepare", "load", "evaluate", "train"):
            print(f"    {line}")
    return seconds


def main() -> None:
    """Run the spec twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", default=str(ROOT / "specs/mixed_sft.json"))
    arguments = parser.parse_args()
    print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        first = time_run(arguments.spec, folder)
        print(f"first run, empty cache:   {first:6.1f} s")
        second = time_run(arguments.spec, folder)
        print(f"second run, filled cache: {second:6.1f} s ({second / first:.2f} of the first)")


if __name__ == "__main__":
    main()
