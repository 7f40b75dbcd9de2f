"""Export a comparison as CSV (every score), and as Markdown or LaTeX (one row per run, one score of each suite)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from harness.comparison.compare import Comparison
from harness.comparison.paired_scores import PairedScore
from harness.report.display_text import format_interval
from harness.utils.formatting import MISSING, decimal_places, format_number
from harness.utils.markdown import escape_markdown, markdown_table

ESTIMATES = ("first", "second", "difference")
CSV_COLUMNS = (
    *("run", "baseline", "suite", "role", "score", "higher_is_better", "n"),
    *(f"{name}{end}" for name in ESTIMATES for end in ("", "_low", "_high")),
    *("test", "p", "p_holm", "verdict"),
)
VERDICT_SIGNS = {"better": "▲", "worse": "▼", "different": "◆"}
LATEX_SIGNS = {"better": r"$^{\uparrow}$", "worse": r"$^{\downarrow}$", "different": r"$^{\ast}$"}


@dataclass(frozen=True)
class RunTable:
    """One row per run, one score of each suite.

    Attributes:
        scores: The columns: `suite/score`, and whether higher is better.
        rows: The name of each run, the baseline first, and its cells: value, difference with its interval (both
            empty if there are none) and verdict.
    """

    scores: tuple[tuple[str, bool | None], ...]
    rows: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...]


def pair_records(comparison: Comparison) -> list[dict[str, Any]]:
    """Return every score that a run shares with the baseline, with the keys `CSV_COLUMNS`."""
    names = [run.name for run in comparison.runs]
    records = []
    for pair in comparison.pairs:
        record = {**asdict(pair), "run": names[pair.run], "baseline": names[comparison.baseline]}
        for name in ESTIMATES:
            estimate = getattr(pair, name)
            record |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        records.append({column: record[column] for column in CSV_COLUMNS})
    return records


def format_csv(comparison: Comparison) -> str:
    """Return a table of every score that a run shares with the baseline; missing numbers are empty or `nan`."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(pair_records(comparison))
    return stream.getvalue()


def format_markdown(comparison: Comparison) -> str:
    """Return a Markdown table of one row per run."""
    table = build_run_table(comparison)
    header = ["run", *(escape_markdown(_with_arrow(*score)) for score in table.scores)]
    rows = [
        [
            escape_markdown(name),
            *(
                f"{value} ({change}) {VERDICT_SIGNS.get(verdict, '')}".rstrip() if change else value
                for value, change, verdict in cells
            ),
        ]
        for name, cells in table.rows
    ]
    return f"{markdown_table(header, rows, numbers_from=1)}\n{_note(comparison, VERDICT_SIGNS)}\n"


def format_latex(comparison: Comparison) -> str:
    """Return a LaTeX table of one row per run. It needs the package booktabs."""
    table = build_run_table(comparison)
    count = len(table.scores)
    header = " & ".join(
        ["", *(rf"\multicolumn{{2}}{{c}}{{{_escape_latex(_with_arrow(*score))}}}" for score in table.scores)]
    )
    rules = " ".join(rf"\cmidrule(lr){{{2 * index + 2}-{2 * index + 3}}}" for index in range(count))
    lines = [
        f"% {_note(comparison, {})}",
        rf"\begin{{tabular}}{{l{'rl' * count}}}",
        r"\toprule",
        rf"{header} \\",
        rules,
        r"run" + r" & value & difference [95\%]" * count + r" \\",
        r"\midrule",
    ]
    for name, cells in table.rows:
        parts = [_escape_latex(name)]
        for value, change, verdict in cells:
            parts += [_escape_latex(value), _escape_latex(change) + LATEX_SIGNS.get(verdict, "")]
        lines.append(rf"{' & '.join(parts)} \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def build_run_table(comparison: Comparison) -> RunTable:
    """Choose one score of each suite, and format it for every run.

    The score is the one that was requested (`--score`), else the suite's `primary` score in the baseline's spec, else
    its first score with a better direction.
    """
    by_score: dict[tuple[str, str], dict[int, PairedScore]] = {}
    for pair in comparison.pairs_by_score():
        by_score.setdefault((pair.suite, pair.score), {})[pair.run] = pair
    chosen = [
        _select_score(comparison, suite, [key for key in by_score if key[0] == suite], by_score)
        for suite in dict.fromkeys(suite for suite, _ in by_score)
    ]
    order = [comparison.baseline, *(n for n in range(len(comparison.runs)) if n != comparison.baseline)]
    rows = []
    for run in order:
        cells = tuple(_cell(by_score[key], run, is_baseline=run == comparison.baseline) for key in chosen)
        rows.append((comparison.runs[run].name, cells))
    directions = [next(iter(by_score[key].values())).higher_is_better for key in chosen]
    scores = tuple(("/".join(key), direction) for key, direction in zip(chosen, directions, strict=True))
    return RunTable(scores, tuple(rows))


def _select_score(
    comparison: Comparison,
    suite: str,
    keys: Sequence[tuple[str, str]],
    by_score: Mapping[tuple[str, str], Mapping[int, PairedScore]],
) -> tuple[str, str]:
    if comparison.score_requested:
        for key in keys:
            if "/".join(key) == comparison.score:
                return key
    primary = comparison.runs[comparison.baseline].parameters.get(f"evaluate.{suite}.primary")
    named = [key for key in keys if key[1] == primary]
    directed = [key for key in keys if next(iter(by_score[key].values())).higher_is_better is not None]
    return (named or directed or list(keys))[0]


def _cell(pairs: Mapping[int, PairedScore], run: int, *, is_baseline: bool) -> tuple[str, str, str]:
    values = [next(iter(pairs.values())).first.value, *(pair.second.value for pair in pairs.values())]
    places = decimal_places(values)
    if is_baseline:
        return format_number(values[0], places), "", ""
    pair = pairs.get(run)
    if pair is None:
        return MISSING, "", ""
    return format_number(pair.second.value, places), " ".join(format_interval(pair.difference)), pair.verdict


def _with_arrow(score: str, higher_is_better: bool | None) -> str:
    return f"{score} ↓" if higher_is_better is False else score


def _note(comparison: Comparison, signs: Mapping[str, str]) -> str:
    count = len(comparison.pairs)
    legend = "".join(f"{sign} {verdict}, " for verdict, sign in signs.items() if verdict != "different")
    return (
        f"Differences to the first row over the same items, with 95 % intervals; {legend}after Holm's correction for "
        f"{count:,} comparisons."
    )


_LATEX_ESCAPES = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "−": "$-$",
    "↓": r"$\downarrow$",
    "–": "--",
    "∞": r"$\infty$",
}


def _escape_latex(text: str) -> str:
    pattern = "|".join(map(re.escape, _LATEX_ESCAPES))
    return re.sub(pattern, lambda match: _LATEX_ESCAPES[match[0]], " ".join(text.split()))
