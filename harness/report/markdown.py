"""The summary of a run or an experiment as one Markdown text, for a pull request, a message or a document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from harness.interfaces.report_section import ReportSection
from harness.report.display_text import describe_flips, format_interval
from harness.report.flips import MovedItem
from harness.report.html.run_files import ExperimentFiles, RunFiles
from harness.report.rating_sections import rating_sections
from harness.report.verdict import build_verdict
from harness.utils.formatting import MISSING, decimal_places, format_cell, format_number, format_run_time
from harness.utils.markdown import escape_markdown, markdown_table

OUTCOME_SIGNS = {"better": "✅", "kept": "✅", "passed": "✅", "worse": "❌", "failed": "❌", "mixed": "⚠️", "few": "❔"}
VERDICT_SIGNS = {"better": "✅ better", "worse": "❌ worse"}
MAX_ITEMS = 3
"""Items that got worse, of each suite."""
MAX_CHARS = 300
"""Characters of a question or answer."""


def format_run_markdown(run: RunFiles, sections: Sequence[ReportSection] = ()) -> str:
    """Return the verdict, all scores, the gate, the items that got worse most, ratings and the sections of plugins.

    Args:
        run: The files of a finished run.
        sections: The sections of plugins.
    """
    sections = (*rating_sections(run.folder), *sections)
    lines = [part for section in sections for part in section_parts(section)]
    return "\n".join([*_parts(run), *lines]).rstrip() + "\n"


def format_experiment_markdown(experiment: ExperimentFiles) -> str:
    """Return the recommendation, and one table with gain and forgetting of every arm.

    Args:
        experiment: The files of a finished experiment.
    """
    against_controls = {entry.arm: entry for entry in experiment.best_control}
    has_seeds = any(len(point.seeds) > 1 for point in experiment.points)
    header = [
        "arm",
        *(["seeds"] if has_seeds else []),
        f"gain in {escape_markdown(experiment.gain)}",
        f"forgotten in {escape_markdown(experiment.forgetting)}",
        "recovered",
        *(["forgotten, against the best control"] if against_controls else []),
    ]
    rows = []
    for point in experiment.points:
        entry = against_controls.get(point.arm)
        control = "control" if point.arm in experiment.controls else MISSING
        rows.append(
            [
                escape_markdown(point.arm),
                *([str(max(1, len(point.seeds)))] if has_seeds else []),
                " ".join(format_interval(point.gain, sign=False)),
                " ".join(format_interval(point.forgotten, sign=False)),
                MISSING if point.recovered is None else f"{point.recovered:.0%}",
                *(
                    [control if entry is None else f"{' '.join(format_interval(entry.forgotten))} {entry.verdict}"]
                    if against_controls
                    else []
                ),
            ]
        )
    text = f"### {escape_markdown(experiment.recommendation.full_text)}\n\n"
    return text + markdown_table(header, rows, numbers_from=1) + _equal_gain_text(experiment)


def _equal_gain_text(experiment: ExperimentFiles) -> str:
    equal_gain = experiment.equal_gain
    if equal_gain is None:
        return ""
    text = f"\n{escape_markdown(equal_gain.text[:1].upper() + equal_gain.text[1:])}.\n"
    rows = [
        [
            escape_markdown(point.arm),
            " ".join(format_interval(point.forgotten, sign=False)),
            MISSING if point.against is None else f"{' '.join(format_interval(point.against))} {point.verdict}",
        ]
        for point in equal_gain.points
    ]
    if rows:
        header = ["arm", "forgotten at equal gain", f"against {escape_markdown(experiment.baseline)}"]
        text += "\n" + markdown_table(header, rows, numbers_from=1)
        text += "".join(f"- {escape_markdown(f'{arm}: {why}')}\n" for arm, why in equal_gain.missing.items())
    return text


def _parts(run: RunFiles) -> Iterator[str]:
    verdict = build_verdict(run.changes, run.gate, run.leaked_words)
    yield f"### {escape_markdown(verdict.headline)}\n"
    details = [run.name, str(run.run_info.get("id", "")), format_run_time(run.run_info)]
    yield " · ".join(escape_markdown(part) for part in details if part) + "\n"
    for statement in verdict.statements:
        yield f"- {OUTCOME_SIGNS.get(statement.outcome, '➖')} {escape_markdown(statement.text)}"
    yield ""
    if run.changes:
        yield scores_table(run)
    if run.gate:
        rows = [
            [escape_markdown(result.text), result.outcome, format_number(result.found), format_number(result.bound)]
            for result in run.gate
        ]
        yield markdown_table(["gate", "result", "value", "bound"], rows, numbers_from=2)
    if run.leaked_words:
        words = ", ".join(f"**{escape_markdown(word.word)}** ({word.count:,})" for word in run.leaked_words)
        yield f"Words of the domain in general answers, which the base model did not use there: {words}.\n"
    for flips in run.flips:
        for text in describe_flips(flips) if flips.lost is not None and (flips.worse or flips.better) else ():
            yield f"- {escape_markdown(flips.suite)}, {escape_markdown(flips.score)}: {escape_markdown(text)}"
    yield ""
    worse = [(flips.suite, item) for flips in run.flips for item in flips.worse[:MAX_ITEMS]]
    if worse:
        yield "<details><summary>Items that got worse most</summary>\n"
        for suite, item in worse:
            yield from _item_lines(suite, item)
        yield "</details>"


def section_parts(section: ReportSection) -> Iterator[str]:
    """Yield the lines of a section."""
    yield f"\n#### {escape_markdown(section.title)}\n"
    if section.text:
        yield escape_markdown(section.text) + "\n"
    for table in section.tables:
        if table.caption:
            yield escape_markdown(table.caption) + "\n"
        rows = [[escape_markdown(format_cell(cell)) for cell in row] for row in table.rows]
        yield markdown_table([escape_markdown(column) for column in table.columns], rows, numbers_from=1)
    for plot in section.plots:
        yield f"Plot in report.html: {escape_markdown(plot.title)}\n"


def scores_table(run: RunFiles) -> str:
    """Return the table of all scores before and after training, with intervals."""
    rows = []
    for suite, group in groupby(run.changes, key=lambda change: change.suite):
        changes = list(group)
        label = f"**{escape_markdown(suite)}** ({changes[0].role}, n = {changes[0].n:,})"
        rows.append([label, "", "", "", ""])
        for change in changes:
            places = decimal_places([change.before.value, change.after.value])
            arrow = " ↓" if change.higher_is_better is False else ""
            rows.append(
                [
                    escape_markdown(change.name) + arrow,
                    VERDICT_SIGNS.get(change.verdict, change.verdict),
                    format_number(change.before.value, places),
                    format_number(change.after.value, places),
                    " ".join(format_interval(change.difference)),
                ]
            )
    header = ["score", "verdict", "base model", "after training", "difference [95 % interval]"]
    return markdown_table(header, rows, numbers_from=2)


def _item_lines(suite: str, item: MovedItem) -> Iterator[str]:
    yield f"- **{escape_markdown(suite)}**: {escape_markdown(item.prompt, MAX_CHARS)}"
    yield f"  - reference: {escape_markdown(item.reference, MAX_CHARS)}"
    for label, answer in (("before", item.before), ("after", item.after)):
        cut = ", cut at max\\_new\\_tokens" if answer.finish == "length" else ""
        text = escape_markdown(answer.answer or "", MAX_CHARS) or "(no answer)"
        yield f"  - {label} ({format_number(answer.value)}{cut}): {text}"
