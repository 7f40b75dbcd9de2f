"""Publish the ratings of a task: its summary, the report of each run, and the store that tracks the runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness.errors import HarnessError
from harness.rating.store import RatingStore
from harness.rating.summary import RatingSummary, write_summary
from harness.rating.task import RatingTask
from harness.report.html import write
from harness.report.plugin_sections import collect_sections
from harness.tracking.rating_upload import send_ratings


def publish_ratings(
    task: RatingTask, store: RatingStore, summary: RatingSummary, uri: str | None, warn: Callable[[str], None]
) -> list[Path]:
    """Write the summary, write the reports again, and send the ratings to MLflow if the runs are tracked there.

    Args:
        task: The task.
        store: Its ratings.
        summary: Their summary.
        uri: The tracking URI; None: where each run was tracked.
        warn: Receives one line for each part that failed.

    Returns:
        The pages that were written.
    """
    from harness.registry import discover_plugins

    registry, pages = discover_plugins(), []
    for folder in write_summary(task, store, summary):
        if (folder / "report.json").is_file():
            sections, warnings = collect_sections(registry, folder)
            for text in warnings:
                warn(text)
            pages.append(write.write_run_page(folder, sections))
        try:
            send_ratings(folder, uri)
        except HarnessError as error:
            warn(str(error))
    return pages
