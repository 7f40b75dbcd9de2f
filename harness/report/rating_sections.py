"""The sections of a report and a comparison that show what people rated, from `ratings/*/summary.json` of runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.interfaces.report_section import ReportSection, ReportTable
from harness.report.display_text import format_interval
from harness.report.finished_run import load_run_json, parse_estimate
from harness.report.score_change import verdict_of_difference
from harness.statistics.intervals import Estimate, paired_test
from harness.utils.formatting import MISSING, format_number, format_p_value

VERDICTS = {
    "too few items": "too few items for a verdict (30 are needed)",
    "no evidence": "no evidence of a difference",
    "better": "preferred",
    "worse": "not preferred",
}
Summary = Mapping[str, Any]


def load_rating_summaries(folder: Path) -> list[Summary]:
    """Load the rating summaries of a run, by the names of their tasks.

    Raises:
        HarnessError: A file is damaged.
    """
    files = sorted((folder / "ratings").glob("*/summary.json"))
    return [load_run_json(file.parent, file.name) for file in files]


def rating_sections(folder: Path) -> tuple[ReportSection, ...]:
    """Return the sections of a run's report; () if nobody has rated its answers."""
    try:
        return tuple(format_summary(summary) for summary in load_rating_summaries(folder))
    except (HarnessError, KeyError, TypeError, ValueError) as error:
        return (ReportSection("Human ratings", f"The ratings cannot be read: {error}"),)


def comparison_sections(folders: Mapping[str, Path], baseline: str) -> tuple[ReportSection, ...]:
    """Return what people rated of the compared runs: each run's means, and the comparisons side by side.

    Args:
        folders: Name of a run -> its folder, for the runs whose folder is on this machine.
        baseline: Name of the baseline.
    """
    try:
        summaries = {name: load_rating_summaries(folder) for name, folder in folders.items()}
        means = _means_of_runs(summaries, baseline)
        pairs = {
            summary["task"]: format_summary(summary)
            for of_run in summaries.values()
            for summary in of_run
            if summary["comparison"] is not None and set(summary["models"]) <= folders.keys()
        }
    except (HarnessError, KeyError, TypeError, ValueError) as error:
        return (ReportSection("Human ratings", f"The ratings cannot be read: {error}"),)
    return (*means, *pairs.values())


def format_summary(summary: Summary) -> ReportSection:
    """Return the section of a rating summary."""
    if summary["comparison"] is None:
        return _format_scores(summary)
    return _format_comparison(summary, summary["comparison"])


def _format_scores(summary: Summary) -> ReportSection:
    dimensions = summary["dimensions"]
    has_judge = any(entry["judge"] is not None for entry in dimensions)
    columns = ["dimension", "mean", "95 % interval", "items", "does not apply", "equal ratings", "alpha"]
    rows = []
    for entry in dimensions:
        mean = None if entry["mean"] is None else parse_estimate(entry["mean"])
        row = [
            entry["name"],
            *((MISSING, MISSING, "0") if mean is None else (*_value_and_interval(mean, sign=False), str(mean.n))),
            str(entry["counts"].get("na", 0)),
            *_agreement_cells(entry["agreement"]),
        ]
        rows.append([*row, *([_judge_cell(entry["judge"])] if has_judge else [])])
    table = ReportTable([*columns, *(["judge: alpha"] if has_judge else [])], rows, _caption(summary))
    return ReportSection("Human ratings", summary["power"], (table,))


def _format_comparison(summary: Summary, found: Mapping[str, Any]) -> ReportSection:
    first, second = summary["models"]
    rows = [
        (f"items won by {second}", str(found["wins"])),
        (f"items won by {first}", str(found["losses"])),
        ("ties", str(found["ties"])),
        ("ratings “both are bad”", str(found["both_bad"])),
        ("wins − losses, of all items", _estimate_cell(found["net"])),
        ("mean preference, −2 to 2", _estimate_cell(found["mean"])),
        ("sign test: p", format_p_value(_number(found["p"]))),
        (f"verdict on {second}", VERDICTS.get(found["verdict"], found["verdict"])),
        ("left side preferred", _estimate_cell(found["left_rate"], sign=False)),
        ("no side preferred: p", format_p_value(_number(found["left_p"]))),
        *zip(("equal ratings", "alpha"), _agreement_cells(found["agreement"]), strict=True),
    ]
    table = ReportTable(["", "side by side"], rows, _caption(summary))
    return ReportSection(f"Human comparison: {second} against {first}", summary["power"], (table,))


def _means_of_runs(summaries: Mapping[str, Sequence[Summary]], baseline: str) -> Iterator[ReportSection]:
    """Yield the means of the runs that were graded one by one, with differences over the items that both have."""
    graded = {
        name: {entry["key"]: entry for entry in summary["dimensions"]}
        for name, of_run in summaries.items()
        for summary in of_run
        if summary["comparison"] is None
    }
    if not graded:
        return
    order = sorted(graded, key=lambda name: name != baseline)
    names = {key: entry["name"] for of_run in graded.values() for key, entry in of_run.items()}
    rows = []
    for key, title in names.items():
        for name in order:
            entry = graded[name].get(key)
            mean = None if entry is None or entry["mean"] is None else parse_estimate(entry["mean"])
            cells = (MISSING, "0") if mean is None else (" ".join(_value_and_interval(mean, sign=False)), str(mean.n))
            compared = name != baseline and baseline in graded
            rows.append(
                [
                    title,
                    name,
                    *cells,
                    *(_difference_cells(graded[baseline], graded[name], key) if compared else (MISSING, MISSING)),
                ]
            )
    table = ReportTable(["dimension", "run", "mean", "items", f"against {baseline}", "verdict"], rows)
    text = "Means of people's grades from 1 to 5. Differences are over the items that both runs were graded on."
    yield ReportSection("Human ratings", text, (table,))


def _difference_cells(first: Mapping[str, Any], second: Mapping[str, Any], key: str) -> tuple[str, str]:
    values = [of_run[key]["values"] if key in of_run else {} for of_run in (first, second)]
    items = sorted(values[0].keys() & values[1].keys())
    if not items:
        return MISSING, "no item in common"
    vectors = [[(float(of_run[item]), 1.0) for item in items] for of_run in values]
    difference = paired_test(vectors[0], vectors[1], lambda total: total[0] / total[1], ratio=True).difference
    return " ".join(_value_and_interval(difference)), verdict_of_difference(difference, True)


def _caption(summary: Summary) -> str:
    raters = ", ".join(f"{one['name']} ({one['rated']} rated, {one['skipped']} skipped)" for one in summary["raters"])
    repeats = ""
    if summary["repeats"]:
        repeats = f" Repeated decisions: {summary['repeats']}, {summary['repeats_equal']:.0%} equal."
    return f"{summary['items']} items. Raters: {raters or 'none'}. Rubric: {summary['rubric']}.{repeats}"


def _agreement_cells(agreement: Mapping[str, Any]) -> tuple[str, str]:
    """Return the share of equal ratings and alpha."""
    if not agreement["pairs"]:
        return MISSING, MISSING
    equal = f"{agreement['equal']:.0%} of {agreement['pairs']}"
    return equal, agreement["note"] or format_number(_number(agreement["alpha"]), 2)


def _judge_cell(agreement: Mapping[str, Any] | None) -> str:
    return MISSING if agreement is None else _agreement_cells(agreement)[1]


def _estimate_cell(values: Mapping[str, Any] | None, *, sign: bool = True) -> str:
    return MISSING if values is None else " ".join(_value_and_interval(parse_estimate(values), sign=sign))


def _value_and_interval(estimate: Estimate, *, sign: bool = True) -> tuple[str, str]:
    value, interval = format_interval(estimate, sign=sign)
    return value, MISSING if math.isnan(estimate.low) else interval


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
