"""Measure everything that docs/performance.md shows, write it as JSON and Markdown, and draw the plot.

    python benchmarks/run_all.py [--quick] [--parts prepare train evaluate first_seconds default_run]

Every part is a script of this folder, in a process of its own. Contenders of a part take turns, so noise affects all
of them alike. The table has medians, and ratios with their smallest and largest value over the rounds. Parts that are
not measured keep their last result, each with its own date, commit and machine. So does a part that fails, and the
page says so.
"""

from __future__ import annotations

import argparse
import datetime
import html
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
RESULTS, PLOT = PAGE.with_suffix(".json"), PAGE.parent / "images" / "performance.svg"
BEFORE = "5aaa73a"
"""The commit with which the default run and the first seconds are compared."""

LIBRARIES = ("harness-sft", "torch", "transformers", "trl", "peft", "tokenizers", "lm_eval")
TRAINING_CONTENDERS = (
    "harness, packing", "harness, lora", "harness, ewc", "harness, kl on 2 general rows",
    "TRL", "TRL, no checkpointing", "TRL, packing", "TRL, lora", "TRL, lora, no checkpointing",
)  # fmt: skip
"""The contenders of `train_step.py` that are measured besides harness as it comes."""

BEGIN, END = "<!-- begin: benchmarks/run_all.py -->", "<!-- end: benchmarks/run_all.py -->"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        part: What is measured.
        contender: Who.
        value: The median.
        unit: Its unit.
        ratio: How many times as fast harness is as this contender: median, smallest, largest. None for harness itself,
            whatever its settings.
        own_ratio: Speed of harness with these settings, relative to harness as it comes; None for others.
        memory: Peak memory in GB; None if it was not measured.
        matmul_share: Share of this machine's rate of matrix products; None if it was not measured.
    """

    part: str
    contender: str
    value: float
    unit: str
    ratio: tuple[float, float, float] | None = None
    own_ratio: tuple[float, float, float] | None = None
    memory: float | None = None
    matmul_share: float | None = None


PREPARE_NAMES = {
    "bare": "encode_batch alone",
    "harness": "harness, masks not verified",
    "with checks": "harness",
    "from the cache": "harness, from the cache",
}


def spread(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Return the median, the smallest and the largest ratio."""
    return statistics.median(ratios), min(ratios), max(ratios)


def compare_speeds(name: str, own: str, speeds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Return the ratio of a row of the table: to harness for a rival, and `own_ratio` for harness with other settings.

    Args:
        name: The contender.
        own: The contender that it is compared with.
        speeds: Contender -> its speed in each round.
    """
    if name == own or own not in speeds:
        return {}
    pairs = list(zip(speeds[own], speeds[name], strict=True))
    if name.startswith("harness"):
        return {"own_ratio": spread([variant / usual for usual, variant in pairs])}
    return {"ratio": spread([usual / rival for usual, rival in pairs])}


def prepare_rows(result: dict[str, dict[str, list[float]]]) -> Iterator[Row]:
    """Yield the rows of `prepare.py`: rows a second."""
    for count, seconds in result.items():
        speeds = {
            PREPARE_NAMES.get(name, name): [int(count) / time for time in times] for name, times in seconds.items()
        }
        for name, rates in speeds.items():
            yield Row("prepare", name, statistics.median(rates), "rows/s", **compare_speeds(name, "harness", speeds))


def train_rows(result: dict[str, Any]) -> Iterator[Row]:
    """Yield the rows of `train_step.py`: real tokens a second. LoRA is compared with LoRA."""
    speeds = {name: [measured["tokens_per_second"] for measured in rounds] for name, rounds in result["rounds"].items()}
    for name, measured in result["summary"].items():
        own = "harness, lora" if name.startswith("TRL, lora") else "harness"
        yield Row(
            "train", name, measured["tokens_per_second"], "tokens/s", memory=measured["peak_gb"],
            matmul_share=measured["matmul_share"], **compare_speeds(name, own, speeds),
        )  # fmt: skip


def evaluate_rows(result: dict[str, Any]) -> Iterator[Row]:
    """Yield the rows of `evaluate.py`: seconds."""
    for task, figures in result["tasks"].items():
        for name, contender in figures["contenders"].items():
            ratio = None if name == "harness" else (contender["ratio"], *contender["ratio_range"])
            yield Row(f"evaluate: {task}", name, contender["seconds"], "s", ratio)


def first_seconds_rows(result: dict[str, dict[str, list[list[float]]]]) -> Iterator[Row]:
    """Yield the rows of `first_seconds.py`: seconds and memory of commands without a model."""
    for command, sides in result.items():
        for name, values in sides.items():
            seconds, megabytes = (statistics.median(column) for column in zip(*values, strict=True))
            ratios = [old[0] / new[0] for old, new in zip(sides["before"], sides["now"], strict=True)]
            ratio = spread(ratios) if name == "before" else None
            yield Row(f"harness {command}", _side(name), seconds, "s", ratio, memory=megabytes / 1000)


def default_run_rows(result: dict[str, list[dict[str, Any]]]) -> Iterator[Row]:
    """Yield the rows of `default_run.py`: wall seconds, the seconds by phase, and the time without computation."""
    for name, runs in result.items():
        ratio = None
        if name == "before":
            ratio = spread([old["seconds"] / new["seconds"] for old, new in zip(runs, result["now"], strict=True)])
        yield Row("default run", _side(name), statistics.median(run["seconds"] for run in runs), "s", ratio)
    for phase in result["now"][0]["phases"]:
        seconds = statistics.median(run["phases"][phase] for run in result["now"])
        yield Row("default run", f"harness: {phase}", seconds, "s")
    for key, unit, factor in (("before_first_computation", "s", 1), ("overhead", "%", 100)):
        value = factor * statistics.median(run[key] for run in result["now"])
        yield Row("default run", f"harness: {key.replace('_', ' ')}", value, unit)


def _side(name: str) -> str:
    return "harness" if name == "now" else f"harness {BEFORE}"


def build_commands(quick: bool, model: str) -> dict[str, list[str]]:
    """Return part -> script with its arguments."""
    return {
        "first_seconds": ["first_seconds.py", "--before", BEFORE, "--repeats", "2" if quick else "5"],
        "prepare": ["prepare.py", "--rows", "4000" if quick else "20000", "--rounds", "1" if quick else "3"],
        "train": [
            "train_step.py", model, "--rounds", "1" if quick else "2", "--rows", "24",
            "--only", *training_contenders(),
        ],
        "evaluate": [
            "evaluate.py", model, "--rounds", "1", "--questions", "8" if quick else "24",
            "--answers", "8" if quick else "24",
        ],
        "default_run": ["default_run.py", "--before", BEFORE],
    }  # fmt: skip


def training_contenders() -> list[str]:
    """Return the contenders of `train_step.py` that are measured: bfloat16 only on a CPU with units for it."""
    import torch  # noqa: F401  # the ratio is measured only where torch is loaded

    from harness.model.bfloat16_speed import MIN_RATIO, bfloat16_ratio

    bfloat16 = ["harness, bfloat16"] if (bfloat16_ratio() or 0.0) >= MIN_RATIO else []
    return ["harness", *bfloat16, *TRAINING_CONTENDERS]


CONVERTERS = {
    "first_seconds": first_seconds_rows,
    "prepare": prepare_rows,
    "train": train_rows,
    "evaluate": evaluate_rows,
    "default_run": default_run_rows,
}


def measure(parts: Sequence[str], quick: bool) -> dict[str, dict[str, Any]]:
    """Run the parts one after the other; return for each of them its rows and raw results, or why it has failed."""
    about: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "quick": quick,
        "machine": describe_machine(),
        "versions": {name: _version(name) for name in LIBRARIES},
        "commit": _output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"),
    }
    commands = build_commands(quick, default_model())
    results: dict[str, dict[str, Any]] = {}
    for part in parts:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "result.json"
            script, *arguments = commands[part]
            process = subprocess.run(
                [sys.executable, str(ROOT / "benchmarks" / script), *arguments, "--json", str(file)], check=False
            )
            results[part] = {"about": about, "seconds": round(time.perf_counter() - started)}
            if process.returncode or not file.exists():
                results[part]["failure"] = f"{script} exits with {process.returncode}"
                continue
            raw = json.loads(file.read_text(encoding="utf-8"))
        results[part] |= {"rows": [asdict(row) for row in CONVERTERS[part](raw)], "raw": raw}
    return results


def merge_results(earlier: Mapping[str, dict[str, Any]], new: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the results of all parts, in the order of the page: the new ones, and the earlier ones of other parts.

    A part that has failed keeps its earlier rows, next to the failure.
    """
    merged = {}
    for part in CONVERTERS:
        if part in new and "failure" in new[part] and "rows" in earlier.get(part, {}):
            merged[part] = {**earlier[part], "failure": new[part]["failure"]}
        elif part in new or part in earlier:
            merged[part] = new.get(part) or earlier[part]
    return merged


def default_model() -> str:
    """Return the folder of the model of the demo spec."""
    from harness.model.locate import resolve_model

    spec = json.loads((ROOT / "specs" / "mixed_sft.json").read_text(encoding="utf-8"))
    return resolve_model({"revision": None, **spec["model"]}).path


def describe_machine() -> dict[str, Any]:
    """Return processor, cores, memory and load of this machine."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    has_affinity = hasattr(os, "sched_getaffinity")
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "load": round(os.getloadavg()[0], 1),
    }


def format_markdown(results: Mapping[str, dict[str, Any]]) -> str:
    """Return the table of all parts, and the machine, versions and date of each of them."""
    lines = [
        "| part | contender | median | harness is faster by | relative to harness as it comes | peak memory "
        "| share of matrix products |",
        "|---|---|---|---|---|---|---|",
    ]
    parts_by_origin: dict[str, list[str]] = {}
    for part, result in results.items():
        for row in result.get("rows", ()):
            lines.append("| " + " | ".join(_format_cells(row)) + " |")
        if "rows" in result:
            parts_by_origin.setdefault(_format_origin(result["about"]), []).append(part)
    lines += [""]
    lines += [f"{', '.join(parts)}: {origin}\n" for origin, parts in parts_by_origin.items()]
    failures = {part: result["failure"] for part, result in results.items() if "failure" in result}
    lines += [f"Not measured in the last attempt: {part} ({reason})." for part, reason in failures.items()]
    return "\n".join(lines).rstrip() + "\n"


def _format_origin(about: Mapping[str, Any]) -> str:
    machine, versions = about["machine"], about["versions"]
    return (
        f"{about['date'][:10]}, commit {about['commit']}: {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_gb']} GB, load {machine['load']} before the start; "
        + ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        + (" (`--quick`: few rounds)" if about["quick"] else "")
        + "."
    )


def _format_cells(row: dict[str, Any]) -> list[str]:
    digits = 0 if row["value"] >= 100 else 1 if row["value"] >= 10 else 2
    return [
        row["part"],
        row["contender"],
        f"{row['value']:,.{digits}f} {row['unit']}",
        _format_ratio(row["ratio"]),
        _format_ratio(row["own_ratio"]),
        "" if row["memory"] is None else f"{row['memory']:.2f} GB",
        "" if row["matmul_share"] is None else f"{row['matmul_share']:.2f}",
    ]


def _format_ratio(ratio: Sequence[float] | None) -> str:
    if not ratio:
        return ""
    median, low, high = ratio
    return f"{median:.2f} × ({low:.2f} to {high:.2f})"


def draw_plot(results: Mapping[str, dict[str, Any]]) -> str:
    """Return an SVG with a bar for each rival of the table, on a logarithmic axis around 1."""
    rows = [row for result in results.values() for row in result.get("rows", ()) if row["ratio"]]
    bar, left, width = 22, 330, 420
    limit = max([2.0, *(max(row["ratio"][0], 1 / row["ratio"][0]) for row in rows)])
    height = bar * len(rows) + 50

    def position(value: float) -> float:
        return left + width / 2 * (1 + math.log(min(max(value, 1 / limit), limit)) / math.log(limit))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 70} {height}" font-family="sans-serif" '
        'font-size="12" role="img" aria-label="How many times as fast harness is">',
        f'<rect width="{left + width + 70}" height="{height}" fill="#fff"/>',
    ]
    for index, row in enumerate(rows):
        y, median = 30 + bar * index, row["ratio"][0]
        begin, end = sorted((position(1), position(median)))
        label = html.escape(f"{row['part']}: {row['contender']}"[:52])
        parts.append(f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{label}</text>')
        color = "#2166ac" if median >= 1 else "#b35806"
        parts.append(f'<rect x="{begin:.1f}" y="{y}" width="{max(end - begin, 1):.1f}" height="15" fill="{color}"/>')
        low, high = (position(value) for value in row["ratio"][1:])
        parts.append(f'<path d="M{low:.1f} {y + 7.5}H{high:.1f}" stroke="#000"/>')
        parts.append(f'<text x="{max(end, position(1)) + 5:.1f}" y="{y + 12}">{median:.2f} ×</text>')
    parts.append(f'<path d="M{position(1):.1f} 22V{height - 12}" stroke="#000" stroke-dasharray="3 3"/>')
    parts.append(f'<text x="{position(1):.1f}" y="16" text-anchor="middle">as fast</text></svg>')
    return "\n".join(parts) + "\n"


def read_results() -> dict[str, dict[str, Any]]:
    """Return the stored result of each part."""
    if not RESULTS.exists():
        return {}
    results: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))["parts"]
    return results


def write_outputs(results: Mapping[str, dict[str, Any]]) -> None:
    """Write the JSON and the plot, and replace the table of the page."""
    RESULTS.write_text(json.dumps({"parts": results}, indent=2) + "\n", encoding="utf-8")
    PLOT.write_text(draw_plot(results), encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{format_markdown(results)}{END}{after}", encoding="utf-8")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """Measure, and write all outputs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds, without the default run")
    parser.add_argument("--parts", nargs="+", choices=list(CONVERTERS), help="default: all")
    parser.add_argument("--from-json", action="store_true", help="write page and plot again from the last result")
    arguments = parser.parse_args()
    results = read_results()
    if not arguments.from_json:
        parts = arguments.parts or [part for part in CONVERTERS if not (arguments.quick and part == "default_run")]
        results = merge_results(results, measure(parts, arguments.quick))
    write_outputs(results)
    print(format_markdown(results))


if __name__ == "__main__":
    main()
