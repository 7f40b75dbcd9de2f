"""Finished runs, experiments and comparisons as one HTML file each, to be read in a browser and sent to others.

A page is made of the files in a folder alone, so it can be made again at any time. It asks the network for nothing, and
whatever the model or the data wrote is shown as text.
"""

from __future__ import annotations

from pathlib import Path

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


def write_run_page(folder: str | Path) -> Path:
    """Make `report.html` and `plots/*.svg` in the folder of a run that came to its report; returns the page's path.

    Needs `report.json`. Of `spec.json`, `environment.json`, `data.json`, `variants.json`, `stages/*/steps.jsonl` and
    `predictions/` it shows what is there. Raises HarnessError for a folder that is none of such a run, or that cannot
    be written.
    """
    from harness.report.html import page, run_files, run_page

    text, plots = run_page.build_run_page(run_files.load_run_files(folder))
    return page.write_page_and_plots(text, plots, Path(folder) / PAGE_FILE)


def write_experiment_page(folder: str | Path) -> Path:
    """Make `report.html` and `plots/*.svg` in the folder of an experiment of arms; returns the page's path.

    Needs `arms.json`; of `arms/*/spec.json`, `arms/*/report.json` and `arms/*/variants.json` it shows what is
    there. Raises HarnessError as `write_run_page`.
    """
    from harness.report.html import experiment_page, page, run_files

    text, plots = experiment_page.build_experiment_page(run_files.load_experiment_files(folder))
    return page.write_page_and_plots(text, plots, Path(folder) / PAGE_FILE)


def write_comparison_page(comparison: ComparisonPage, file: str | Path) -> Path:
    """Write a comparison as one HTML file; returns its path. Raises HarnessError when it cannot be written."""
    from harness.report.html import comparison_page, page

    return page.write_page_and_plots(comparison_page.build_comparison_page(comparison), None, Path(file))
