"""Export a comparison as CSV (every score), and as Markdown or LaTeX (one row per run or method, a score per suite)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from harness.comparison.compare import Comparison
from harness.comparison.methods import MethodComparison
from harness.comparison.paired_scores import PairedScore
from harness.report.arm_score import ArmScore
from harness.report.display_text import format_interval
from harness.report.markdown import section_parts
from harness.utils.formatting import MISSING, decimal_places, format_number
from harness.utils.markdown import escape_markdown, markdown_table

ESTIMATES = ("first", "second", "difference")
CSV_COLUMNS = (
    *("run", "baseline", "suite", "role", "score", "higher_is_better", "n"),
    *(f"{name}{end}" for name in ESTIMATES for end in ("", "_low", "_high")),
    *("test", "p", "p_holm", "verdict"),
)
METHOD_COLUMNS = (
    *("method", "baseline", "suite", "role", "score", "higher_is_better", "n", "seeds"),
    *(f"after{end}" for end in ("", "_low", "_high", "_sd")),
    *(f"{name}{end}" for name in ("change", "difference") for end in ("", "_low", "_high")),
    *("test", "p", "p_holm", "verdict"),
)
"""Columns of a comparison over seeds: `change` is to the base model, `difference` to the baseline."""
VERDICT_SIGNS = {"better": "▲", "worse": "▼", "different": "◆"}
LATEX_SIGNS = {"better": r"$^{\uparrow}$", "worse": r"$^{\downarrow}$", "different": r"$^{\ast}$"}


@dataclass(frozen=True)
class RunTable:
    """One row per run or method, one score of each suite.

    Attributes:
        scores: The columns: `suite/score`, and whether higher is better.
        rows: The name of each run, the baseline first, and its cells: value, difference with its interval (both
            empty if there are none) and verdict.
    """

    scores: tuple[tuple[str, bool | None], ...]
    rows: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...]
    row_title: str = "run"


def csv_columns(comparison: Comparison) -> tuple[str, ...]:
    """Return the columns of `pair_records`."""
    return CSV_COLUMNS if comparison.methods is None else METHOD_COLUMNS


def pair_records(comparison: Comparison) -> list[dict[str, Any]]:
    """Return every score that a run shares with the baseline, with the keys `csv_columns`."""
    if comparison.methods is not None:
        return list(_method_records(comparison.methods))
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
    writer = csv.DictWriter(stream, csv_columns(comparison), lineterminator="\n")
    writer.writeheader()
    writer.writerows(pair_records(comparison))
    return stream.getvalue()


def format_markdown(comparison: Comparison) -> str:
    """Return a Markdown table of one row per run."""
    table = build_run_table(comparison)
    header = [table.row_title, *(escape_markdown(_with_arrow(*score)) for score in table.scores)]
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
    ratings = "".join(f"{line}\n" for section in comparison.ratings for line in section_parts(section))
    return f"{markdown_table(header, rows, numbers_from=1)}\n{_note(comparison, VERDICT_SIGNS)}\n{ratings}"


def format_latex(comparison: Comparison) -> str:
    """Return a LaTeX table of one row per run. It needs the package booktabs."""
    table = build_run_table(comparison)
    count = len(table.scores)
    header = " & ".join(
        ["", *(rf"\multicolumn{{2}}{{c}}{{{_escape_latex(_with_arrow(*score))}}}" for score in table.scores)]
    )
    rules = " ".join(rf"\cmidrule(lr){{{2 * index + 2}-{2 * index + 3}}}" for index in range(count))
    lines = [
        f"% {_note(comparison, {})}".replace("±", "+/-"),
        rf"\begin{{tabular}}{{l{'rl' * count}}}",
        r"\toprule",
        rf"{header} \\",
        rules,
        table.row_title + r" & value & difference [95\%]" * count + r" \\",
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

    The score is the one that was requested (`--score`), else the suite's primary score in the baseline, by which the
    verdict of a run judges the suite.
    """
    if comparison.methods is not None:
        return _build_method_table(comparison.methods, comparison.score)
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
    requested = comparison.score if comparison.score_requested else None
    return _choose_key(keys, requested, comparison.primary.get(suite), by_score)


def _choose_key(
    keys: Sequence[tuple[str, str]],
    requested: str | None,
    primary: str | None,
    by_score: Mapping[tuple[str, str], Mapping[Any, Any]],
) -> tuple[str, str]:
    """Return the requested score, else the primary one, else the first with a better direction, else the first."""
    for wanted in (requested, primary):
        for key in keys:
            if "/".join(key) == wanted:
                return key
    directed = [key for key in keys if next(iter(by_score[key].values())).higher_is_better is not None]
    return (directed or list(keys))[0]


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


def _method_records(methods: MethodComparison) -> Iterator[dict[str, Any]]:
    for score in methods.scores:
        record = {
            **{key: getattr(score, key) for key in METHOD_COLUMNS if hasattr(score, key)},
            "method": score.arm,
            "baseline": methods.baseline,
            "after_sd": None if score.after_spread is None else score.after_spread.sd,
        }
        for name, estimate in (("after", score.after), ("change", score.change), ("difference", score.against)):
            bounds = (None, None, None) if estimate is None else (estimate.value, estimate.low, estimate.high)
            record |= dict(zip((name, f"{name}_low", f"{name}_high"), bounds, strict=True))
        yield {column: record[column] for column in METHOD_COLUMNS}


def _build_method_table(methods: MethodComparison, requested: str | None) -> RunTable:
    by_score: dict[tuple[str, str], dict[str, ArmScore]] = {}
    for score in methods.scores:
        by_score.setdefault((score.suite, score.score), {})[score.arm] = score
    chosen = []
    for suite in dict.fromkeys(suite for suite, _ in by_score):
        keys = [key for key in by_score if key[0] == suite]
        chosen.append(_choose_key(keys, requested, methods.primary.get(suite), by_score))
    rows = tuple(
        (
            f"{method} ({len(seeds)} seed{'s' if len(seeds) > 1 else ''})",
            tuple(_method_cell(by_score[key], method) for key in chosen),
        )
        for method, seeds in methods.methods.items()
    )
    directions = [next(iter(by_score[key].values())).higher_is_better for key in chosen]
    scores = tuple(("/".join(key), direction) for key, direction in zip(chosen, directions, strict=True))
    return RunTable(scores, rows, row_title="method")


def _method_cell(scores: Mapping[str, ArmScore], method: str) -> tuple[str, str, str]:
    score = scores.get(method)
    if score is None:
        return MISSING, "", ""
    places = decimal_places([each.after.value for each in scores.values()])
    value = format_number(score.after.value, places)
    if score.after_spread is not None:
        value += f" ± {format_number(score.after_spread.sd, places)}"
    if score.against is None:
        return value, "", ""
    return value, " ".join(format_interval(score.against)), str(score.verdict)


def _note(comparison: Comparison, signs: Mapping[str, str]) -> str:
    legend = "".join(f"{sign} {verdict}, " for verdict, sign in signs.items() if verdict != "different")
    if comparison.methods is not None:
        return (
            "Mean ± standard deviation over seeds. Differences to the first row over the same seeds and items, with "
            f"95 % intervals over both; {legend}after Holm's correction for "
            f"{comparison.methods.num_comparisons:,} comparisons."
        )
    count = len(comparison.pairs)
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
    "±": r"$\pm$",
}


def _escape_latex(text: str) -> str:
    pattern = "|".join(map(re.escape, _LATEX_ESCAPES))
    return re.sub(pattern, lambda match: _LATEX_ESCAPES[match[0]], " ".join(text.split()))
