"""The results of a rating as tables for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.interfaces.report_section import ReportSection
from harness.report.rating_sections import format_summary
from harness.utils.formatting import format_cell, printable
from harness.utils.json_files import json_safe

if TYPE_CHECKING:
    from harness.rating.summary import RatingSummary


def format_ratings(summary: RatingSummary) -> RenderableType:
    """Return the results of a rating."""
    return format_section(format_summary(json_safe(summary.to_json())))


def format_section(section: ReportSection) -> RenderableType:
    """Return a section of a report: its title, its text and its tables."""
    parts: list[RenderableType] = [Text(printable(section.title), style="bold")]
    for content in section.tables:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for column in content.columns:
            table.add_column(printable(column), overflow="fold")
        for row in content.rows:
            table.add_row(*(Text(format_cell(cell)) for cell in row))
        parts += [table, Text(printable(content.caption), style="dim")]
    return Group(*parts, Text(printable(section.text)))
