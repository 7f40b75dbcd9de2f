"""`harness report`: write the page of a finished run or experiment again, or a summary in Markdown."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from harness.cli.options import Subparsers, add_command, print_warning, write_text

if TYPE_CHECKING:
    from harness.interfaces.report_section import ReportSection


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_command(
        subparsers,
        "report",
        main,
        "Write the page of a finished run or experiment again: report.html. Or summarize it in Markdown.",
        "harness report runs/mixed-sft-20260101-120000-ab12",
    )
    parser.add_argument("run", metavar="RUN", help="the folder or the name of a run or experiment")
    parser.add_argument(
        "--markdown",
        metavar="FILE",
        help="write a summary for a pull request or a document to this file instead; - prints it",
    )


def main(arguments: argparse.Namespace) -> int:
    """Write the page and print its path, or write the summary."""
    from harness.report import model_card
    from harness.report.html import write
    from harness.utils.find_run import find_run

    folder = find_run(arguments.run)
    is_experiment = (folder / "arms.json").is_file()
    sections: tuple[ReportSection, ...] = ()
    if not is_experiment:
        from harness.registry import discover_plugins
        from harness.report.plugin_sections import collect_sections

        sections, warnings = collect_sections(discover_plugins(), folder)
        for text in warnings:
            print_warning(text)
    if arguments.markdown is None:
        print(write.write_experiment_page(folder) if is_experiment else write.write_run_page(folder, sections))
        model_card.write_model_card(folder)
        return 0
    from harness.report import markdown
    from harness.report.html import run_files

    if is_experiment:
        text = markdown.format_experiment_markdown(run_files.load_experiment_files(folder))
    else:
        text = markdown.format_run_markdown(run_files.load_run_files(folder), sections)
    write_text(arguments.markdown, text)
    return 0
