"""The summary of a run as one Markdown text, for a pull request or a message."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from harness.report.display_text import describe_flips, format_interval
from harness.report.flips import MovedItem
from harness.report.html.run_files import RunFiles
from harness.report.verdict import build_verdict
from harness.utils.formatting import decimal_places, format_duration, format_number
from harness.utils.markdown import escape_markdown, markdown_table

OUTCOME_SIGNS = {"better": "✅", "kept": "✅", "passed": "✅", "worse": "❌", "failed": "❌", "mixed": "⚠️", "few": "❔"}
VERDICT_SIGNS = {"better": "✅ better", "worse": "❌ worse"}
MAX_ITEMS = 3
"""Items that got worse, of each suite."""
MAX_CHARS = 300
"""Characters of a question or answer."""


def format_run_markdown(run: RunFiles) -> str:
    """Return the verdict, all scores, the gate and the items that got worse most.

    Args:
        run: The files of a finished run.
    """
    return "\n".join(_parts(run)).rstrip() + "\n"


def _parts(run: RunFiles) -> Iterator[str]:
    verdict = build_verdict(run.changes, run.gate)
    yield f"### {escape_markdown(verdict.headline)}\n"
    seconds = run.run_info.get("seconds")
    took = [format_duration(seconds)] if isinstance(seconds, int | float) else []
    details = [run.name, str(run.run_info.get("id", "")), *took]
    yield " · ".join(escape_markdown(part) for part in details if part) + "\n"
    for statement in verdict.statements:
        yield f"- {OUTCOME_SIGNS.get(statement.outcome, '➖')} {escape_markdown(statement.text)}"
    yield ""
    if run.changes:
        yield _scores_table(run)
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


def _scores_table(run: RunFiles) -> str:
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
