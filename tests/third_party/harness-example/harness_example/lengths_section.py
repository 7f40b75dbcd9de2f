"""The lengths of answers, as a section of the report."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean

from harness import ReportPlot, ReportSection, ReportTable

BAR = '<rect x="0" y="{y}" width="{width:.0f}" height="16" fill="#0072b2"/>'


def answer_lengths(folder: Path) -> dict[str, float]:
    """Return suite and stage, e.g. `desk-stage1` -> mean number of words of its answers."""
    lengths = {}
    for file in sorted((folder / "predictions").glob("*.jsonl")):
        answers = [json.loads(line).get("answer") for line in file.read_text(encoding="utf-8").splitlines()]
        lengths[file.stem] = mean([len((answer or "").split()) for answer in answers] or [0])
    return lengths


def build_section(folder: Path) -> ReportSection:
    """Return the section: a table and a bar chart."""
    lengths = answer_lengths(folder)
    longest = max(lengths.values(), default=0) or 1
    bars = [BAR.format(y=20 * row, width=300 * length / longest) for row, length in enumerate(lengths.values())]
    size = f'width="300" height="{20 * len(bars)}"'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(bars)}</svg>'
    table = ReportTable(("suite and stage", "words"), list(lengths.items()), "Mean number of words of an answer")
    return ReportSection("Answer lengths", tables=[table], plots=[ReportPlot("Words by suite and stage", svg)])
