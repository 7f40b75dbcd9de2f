"""Time a run of the default spec, with an earlier commit in turn: wall seconds, and seconds by phase.

    python benchmarks/default_run.py [--before 5aaa73a] [--rounds 1] [--json FILE]

The spec is that of commit 5aaa73a, kept in `benchmarks/default_run_spec.json`. The earlier commit is checked out in a
temporary git worktree. Each run has an empty cache, except for the converted model. A commit that does not report its
phases has only wall seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from earlier_commit import ROOT, checked_out, command_of

SPEC = ROOT / "benchmarks" / "default_run_spec.json"


def model_cache() -> Path:
    """Return the folder of converted models, with the model of the spec."""
    from harness.utils.cache_dir import cache_root

    run_command(ROOT, "plan", ROOT, os.environ)  # converts the model if it is not there
    return cache_root() / "models"


def run_command(code: Path, command: str, folder: Path, environment: Any) -> str:
    """Run a command on the spec with the code of a folder, and return what it prints."""
    words, environment = command_of(code, environment)
    process = subprocess.run(
        [*words, command, str(SPEC), *(["--set", f"output={folder}/runs"] if command == "run" else [])],
        env=environment, cwd=folder if command == "run" else code, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if process.returncode:
        sys.exit(f"harness {command} fails in {code}:\n{process.stderr[-2000:]}")
    return process.stdout


def time_run(code: Path, models: Path) -> dict[str, Any]:
    """Run the spec; return wall seconds, the seconds by phase, and the sentence of the verdict."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "cache").mkdir()
        (folder / "cache" / "models").symlink_to(models)
        environment = {**os.environ, "HARNESS_CACHE": str(folder / "cache")}
        started = time.perf_counter()
        run_command(code, "run", folder, environment)
        seconds = time.perf_counter() - started
        (file,) = folder.glob("runs/*/report.json")
        report = json.loads(file.read_text())
    phases = report["run"].get("phases", {})
    result = {"seconds": seconds, "phases": phases, "verdict": report.get("verdict", {}).get("headline")}
    if phases:
        outside = seconds - report["run"]["seconds"] - phases["prepare"]
        result["before_first_computation"] = outside + phases["prepare"] + phases["load"]
        result["overhead"] = 1 - (phases["evaluate"] + phases["train"]) / seconds
    return result


def main() -> None:
    """Run both sides in turn, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", metavar="COMMIT", help="the commit to compare with")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_args()
    models = model_cache()
    results: dict[str, list[dict[str, Any]]] = {"before": [], "now": []} if arguments.before else {"now": []}
    with checked_out(arguments.before) as before:
        for _ in range(arguments.rounds):
            for name, runs in results.items():
                runs.append(time_run(before if name == "before" else ROOT, models))
                print(f"{name:7} {runs[-1]['seconds']:6.1f} s  {runs[-1]['phases']}  {runs[-1]['verdict']}")
    if arguments.before:
        ratios = [now["seconds"] / old["seconds"] for old, now in zip(results["before"], results["now"], strict=True)]
        print(f"now / before: {statistics.median(ratios):.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
