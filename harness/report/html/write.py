"""Write finished runs, experiments and comparisons as one self-contained HTML file each.

A page is built from the files in a folder alone, so it can be rebuilt at any time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.interfaces.report_section import ReportSection
from harness.report.html.comparison_page import ComparisonPage, ItemRow, RunColumn, ScoreRow

__all__ = [
    "ComparisonPage",
    "ItemRow",
    "RunColumn",
    "ScoreRow",
    "write_comparison_page",
    "write_experiment_page",
    "write_run_page",
]

PAGE_FILE = "report.html"


def write_run_page(folder: str | Path, sections: Sequence[ReportSection] = ()) -> Path:
    """Write `report.html` and `plots/*.svg` into the folder of a finished run and return the path of the page.

    Needs `report.json`. Sections from `spec.json`, `environment.json`, `data.json`, `variants.json`,
    `stages/*/steps.jsonl`, `stages/*/evaluations.jsonl` and `predictions/` are left out if the files are missing.

    Args:
        folder: The folder of the run.
        sections: The sections of plugins.

    Raises:
        HarnessError: If the folder is not that of a finished run, or cannot be written.
    """
    from harness.report.html import page, run_files, run_page

    text, plots = run_page.build_run_page(run_files.load_run_files(folder), sections)
    return page.write_page_and_plots(text, plots, Path(folder) / PAGE_FILE)


def write_experiment_page(folder: str | Path) -> Path:
    """Write `report.html` and `plots/*.svg` into the folder of an experiment of arms and return the page's path.

    Needs `arms.json`. What `arms/*/spec.json`, `arms/*/report.json` and `arms/*/variants.json` add is left out if the
    files are missing.

    Raises:
        HarnessError: If the folder is not that of a compared experiment, or cannot be written.
    """
    from harness.report.html import experiment_page, page, run_files

    text, plots = experiment_page.build_experiment_page(run_files.load_experiment_files(folder))
    return page.write_page_and_plots(text, plots, Path(folder) / PAGE_FILE)


def write_comparison_page(comparison: ComparisonPage, file: str | Path) -> Path:
    """Write a comparison as one HTML file and return its path.

    Raises:
        HarnessError: If the file cannot be written.
    """
    from harness.report.html import comparison_page, page

    return page.write_page_and_plots(comparison_page.build_comparison_page(comparison), None, Path(file))
