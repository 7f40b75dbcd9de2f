"""The list of runs as lines for a terminal of any width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from harness.report.run_list import ListedRun
from harness.utils.formatting import one_line

STATUS_STYLES = {"finished": "green", "running": "cyan", "interrupted": "bold yellow", "failed": "bold red"}


def format_runs(runs: Sequence[ListedRun], output: str) -> RenderableType:
    """Format each run as its name and date, its status, and its headline or the command that resumes it.

    Args:
        runs: The runs.
        output: Their folder.
    """
    if not runs:
        return Text(f"there is no run in {one_line(output)}")
    return Group(*(line for run in runs for line in _format_run(run)))


def _format_run(run: ListedRun) -> Iterator[RenderableType]:
    kind = "" if run.kind == "run" else f"{run.kind}, "
    progress = f", {run.progress}" if run.progress else ""
    yield Text.assemble((one_line(run.name), "bold"), overflow="fold")
    status = Text.assemble(
        (run.started, "dim"), "  ", kind, (run.status, STATUS_STYLES[run.status]), progress, overflow="fold"
    )
    yield Padding(status, (0, 0, 0, 2), expand=False)
    for text in (one_line(run.headline, 1000), one_line(run.resume, 1000)):
        if text:
            yield Padding(Text(text, overflow="fold"), (0, 0, 0, 2), expand=False)
