"""The section of a report with the confusion matrices of suites that have the metric `classification`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from harness import ReportSection, ReportTable, load_run
from harness_metrics.classification import Classification

NO_LABEL = "(none)"
"""The column of answers that name no label."""


def build_sections(folder: Path) -> list[ReportSection]:
    """Return one section with a table for each classification suite, before and after; none without such a suite.

    Args:
        folder: The folder of a finished run.
    """
    spec: dict[str, Any] = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    suites = {
        name: suite["metrics"]["classification"]
        for name, suite in spec.get("evaluate", {}).items()
        if "classification" in suite.get("metrics", {})
    }
    if not suites:
        return []
    run = load_run(folder)
    tables = [
        _table(name, Classification(options["labels"], options["whole"]), when, run.items(name, stage))
        for name, options in suites.items()
        for when, stage in (("before", 0), ("after", -1))
    ]
    text = "Rows are the labels of the references, columns those that the answers name."
    return [ReportSection("Confusion matrices", text, tables)]


def _table(suite: str, metric: Classification, when: str, items: Any) -> ReportTable:
    """Return the table of one suite at one stage.

    Args:
        suite: Name of the suite.
        metric: Finds the labels.
        when: `before` or `after` training.
        items: Data frame with `reference` and `answer`.
    """
    pairs = Counter(
        (metric.label_of(reference), metric.label_of(answer))
        for reference, answer in zip(items["reference"], items["answer"], strict=True)
    )
    rows: list[list[str | int | float | None]] = [
        [label, *(pairs[row, column] for column in range(len(metric.labels))), pairs[row, None]]
        for row, label in enumerate(metric.labels)
    ]
    return ReportTable(["reference", *metric.labels, NO_LABEL], rows, f"{suite}, {when}: number of items")
