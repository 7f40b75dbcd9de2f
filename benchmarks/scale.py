"""Measure how time and memory grow with rows, items, arms and stages: one process for each size.

    python benchmarks/scale.py [--only rows items arms stages] [--quick]

Prints the seconds and the peak memory of each size, and per unit. A curve is linear if the time per unit does not grow.
The table of docs/performance.md is replaced.

    rows    `harness check` of a spec with generated rows: read, tokenize, verify, lay out, find duplicates
    items   real metrics, report.json and report.html of a run with this many items, and a comparison of two such runs
    arms    arms.json and the page of an experiment with this many arms
    stages  the report and page of a run with this many stages
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- begin: benchmarks/scale.py -->", "<!-- end: benchmarks/scale.py -->"
SIZES = {
    "rows": (1_000, 10_000, 100_000, 1_000_000),
    "items": (100, 1_000, 10_000, 100_000),
    "arms": (1, 4, 16, 64),
    "stages": (1, 4, 8, 32),
}
sys.path.insert(0, str(ROOT / "tests"))


def write_rows(file: Path, count: int, seed: int) -> None:
    """Write generated conversations, of 20 to 120 words each."""
    generator = random.Random(seed)
    words = ["".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=generator.randint(2, 9))) for _ in range(4000)]
    with file.open("w", encoding="utf-8") as stream:
        for index in range(count):
            prompt = f"{index} {' '.join(generator.choices(words, k=generator.randint(10, 40)))}?"
            completion = " ".join(generator.choices(words, k=generator.randint(10, 80)))
            stream.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")


def check_rows(count: int, folder: Path) -> dict[str, Callable[[], object]]:
    """Return the steps over training rows."""
    from harness.cli import main

    spec = json.loads((ROOT / "specs" / "mixed_sft.json").read_text(encoding="utf-8"))
    write_rows(folder / "rows.jsonl", count, 1)
    write_rows(folder / "heldout.jsonl", 200, 2)
    spec["sources"] = {
        "task": {"jsonl": {"path": str(folder / "rows.jsonl")}},
        "task_heldout": {"jsonl": {"path": str(folder / "heldout.jsonl")}},
    }
    spec |= {"mode": {"domain": {"sources": ["task"]}}, "mitigations": {}, "output": str(folder / "runs")}
    spec["evaluate"] = {"task": {"source": "task_heldout", "metrics": "rouge"}}
    spec.pop("$schema", None)
    spec.pop("gate", None)
    (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")

    def run(command: str) -> None:
        code = main.main([command, str(folder / "spec.json"), *(["--json"] if command == "check" else [])])
        assert code == 0, command

    return {"check": lambda: run("check"), "plan, from the cache": lambda: run("plan")}


def report_items(count: int, folder: Path) -> dict[str, Callable[[], object]]:
    """Return the steps over the items of a suite."""
    from support import compared_runs, example_run, run_folders

    from harness.cli import main
    from harness.report.html import write

    runs, page = [folder / name for name in ("first", "second")], folder / "page"

    def compare() -> None:
        code = main.main(["compare", *map(str, runs)])
        assert code == 0, "compare"

    return {
        "statistics": lambda: compared_runs.write_finished_run(runs[0], 0.5, 1, count=count),
        "report.json": lambda: run_folders.write_run(page, evaluations=example_run.made_evaluations(items=count)),
        "report.html": lambda: write.write_run_page(page),
        "second run": lambda: compared_runs.write_finished_run(runs[1], 0.6, 2, count=count),
        "compare": compare,
    }


def compare_arms(count: int, folder: Path) -> dict[str, Callable[[], object]]:
    """Return the steps over the arms of an experiment."""
    from support.run_folders import write_experiment

    from harness.report.html import write

    shares = (None, *(index / 1000 for index in range(1, count)))
    return {
        "comparison of arms": lambda: write_experiment(folder / "experiment", shares),
        "page": lambda: write.write_experiment_page(folder / "experiment"),
    }


def report_stages(count: int, folder: Path) -> dict[str, Callable[[], object]]:
    """Return the steps over the stages of a run."""
    from support.run_folders import write_run

    from harness.report.html import write

    return {
        "report.json": lambda: write_run(folder / "run", stages=count),
        "report.html": lambda: write.write_run_page(folder / "run"),
    }


STEPS = {"rows": check_rows, "items": report_items, "arms": compare_arms, "stages": report_stages}


def measure_size(unit: str, count: int) -> dict[str, Any]:
    """Run the steps of one size in this process; return their seconds, and the peak memory above the start in MB."""
    with tempfile.TemporaryDirectory() as scratch:
        steps = STEPS[unit](count, Path(scratch))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds = {}
        for name, run in steps.items():
            started = time.perf_counter()
            run()
            seconds[name] = time.perf_counter() - started
        size = sum(file.stat().st_size for file in Path(scratch).rglob("*") if file.is_file())
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000
    return {"unit": unit, "count": count, "seconds": seconds, "peak_mb": peak, "folder_mb": size / 1e6}


def format_rows(results: list[dict[str, Any]]) -> str:
    """Return a table for each unit."""
    lines: list[str] = []
    for unit in dict.fromkeys(result["unit"] for result in results):
        sizes = [result for result in results if result["unit"] == unit]
        steps = list(sizes[0]["seconds"])
        lines += [
            f"| {unit} | " + " | ".join(f"{step}, s" for step in steps) + " | ms per unit | peak MB | folder MB |",
            "|---" * (len(steps) + 4) + "|",
        ]
        for result in sizes:
            total = sum(result["seconds"].values())
            times = " | ".join(f"{result['seconds'][step]:.2f}" for step in steps)
            lines.append(
                f"| {result['count']:,} | {times} | {1000 * total / result['count']:.3g} | {result['peak_mb']:.0f} "
                f"| {result['folder_mb']:.1f} |"
            )
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Measure all sizes, print the tables, and write them into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--quick", action="store_true", help="leave the largest size of each curve out")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        stdout, sys.stdout = sys.stdout, sys.stderr
        result = measure_size(arguments.one[0], int(arguments.one[1]))
        print(json.dumps(result), file=stdout)
        return
    results = []
    for unit in arguments.only:
        for count in SIZES[unit][: -1 if arguments.quick else None]:
            process = subprocess.run(
                [sys.executable, __file__, "--one", unit, str(count)],
                capture_output=True, text=True, check=False,
                env={**os.environ, "HARNESS_NO_THIRD_PARTY": "1"},
            )  # fmt: skip
            if process.returncode:
                sys.exit(f"{unit} {count}: {process.stderr[-2000:]}")
            results.append(json.loads(process.stdout.splitlines()[-1]))
            print(results[-1], file=sys.stderr)
    table = format_rows(results)
    if arguments.only == list(SIZES):
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{table}{END}{rest.partition(END)[2]}", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
