"""What a plugin adds to the report of a run: sections with text, tables and plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

Cell = str | int | float | None
"""A cell of a table; None is shown as a dash."""


@dataclass(frozen=True)
class ReportTable:
    """A table.

    Attributes:
        columns: The headings.
        rows: The cells of each row, as many as there are headings.
        caption: What the table shows.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""

    def __post_init__(self) -> None:
        """Require as many cells as headings."""
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row has {len(row)} cells, but there are {len(self.columns)} columns")


@dataclass(frozen=True)
class ReportPlot:
    """A plot.

    Attributes:
        title: Title of the plot, also for screen readers.
        svg: The plot as the text of an SVG file. The page shows it as an image, in which scripts do not run.
    """

    title: str
    svg: str

    def __post_init__(self) -> None:
        """Require an SVG document."""
        if not ElementTree.fromstring(self.svg).tag.endswith("svg"):
            raise ValueError("the root of the SVG is not <svg>")


@dataclass(frozen=True)
class ReportSection:
    """A section of `report.html` and of the summary in Markdown. Every text of it is escaped.

    Attributes:
        title: Heading of the section.
        text: A paragraph below the heading.
        tables: Tables.
        plots: Plots; the summary in Markdown names them only.
    """

    title: str
    text: str = ""
    tables: Sequence[ReportTable] = ()
    plots: Sequence[ReportPlot] = ()
