"""The browser for all items of a run: their data as JSON for the page's script, which renders them lazily."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.evaluation.predictions import load_item_scores, load_items, predictions_path
from harness.report.flips import describe_answer
from harness.report.html.run_files import RunFiles
from harness.types import Item
from harness.utils.formatting import printable, shorten_text

MAX_ITEMS = 10_000
"""Items on the page; a page of 10,000 items has about 10 MB. `predictions/` has all of them."""
MAX_CHARS = 2000
"""Characters of a question, a reference or an answer."""

BEFORE_CUT, AFTER_CUT, BEFORE_EMPTY, AFTER_EMPTY = 1, 2, 4, 8
"""Flags of an item; `item_browser.js` reads them."""


@dataclass(frozen=True)
class ItemBrowser:
    """The items of all suites, before and after training.

    Attributes:
        suites: Their names.
        shown: Number of items on the page.
        total: Number of items that the run has.
        has_scores: Whether the items have scores, so that they can be filtered by what got better or worse.
        json: The data for the script: `suites` (name, score, direction) and `items`. An item is a list of the index of
            its suite, question, reference, answers before and after, scores before and after, and flags. The text has
            none of the characters `<`, `>` and `&`.
    """

    suites: tuple[str, ...]
    shown: int
    total: int
    has_scores: bool
    json: str


def build_item_browser(run: RunFiles) -> ItemBrowser | None:
    """Load the items of a run from its predictions; None if there are none."""
    folder = run.folder / "predictions"
    stored = {file.name for file in folder.glob("*.jsonl")}
    last_stage = len(run.own_stages)
    score_of_suite = {flips.suite: flips.score for flips in run.flips}
    direction = {(change.suite, change.name): change.higher_is_better for change in run.changes}
    suites: list[dict[str, Any]] = []
    items: list[list[Any]] = []
    total = 0
    for name in dict.fromkeys(change.suite for change in run.changes):
        files = [predictions_path(folder, name, stage) for stage in (0, last_stage)]
        if not all(file.name in stored and "/" not in name for file in files):
            continue
        score = score_of_suite.get(name)
        rows = list(_item_rows(files, score, suite_index=len(suites)))
        total += len(rows)
        items += rows[: MAX_ITEMS - len(items)]
        higher_is_better = direction.get((name, score)) if score is not None else None
        suites.append({"name": printable(name), "score": printable(score or ""), "higher": higher_is_better})
    if not items:
        return None
    return ItemBrowser(
        suites=tuple(suite["name"] for suite in suites),
        shown=len(items),
        total=total,
        has_scores=any(row[5] is not None and row[6] is not None for row in items),
        json=_json_for_html({"suites": suites, "items": items}),
    )


def _item_rows(files: Sequence[Path], score: str | None, *, suite_index: int) -> Iterator[list[Any]]:
    """Yield the items of a suite. files: of the base model and of the last stage."""
    before, after = ({item.id: item for item in load_items(file)} for file in files)
    scores_before, scores_after = map(load_item_scores, files)
    for item_id, item in before.items():
        if item_id not in after:
            continue
        tuned = after[item_id]
        flags = (
            BEFORE_CUT * (item.finish == "length")
            + AFTER_CUT * (tuned.finish == "length")
            + BEFORE_EMPTY * (item.finish == "empty")
            + AFTER_EMPTY * (tuned.finish == "empty")
        )
        yield [
            suite_index,
            _shown_text(item.prompt),
            _shown_text(item.reference),
            _answer_text(item),
            _answer_text(tuned),
            _shown_value(scores_before.get(item_id, {}), score),
            _shown_value(scores_after.get(item_id, {}), score),
            flags,
        ]


def _answer_text(item: Item) -> str | None:
    answer = describe_answer(math.nan, item).answer
    return None if answer is None else _shown_text(answer)


def _shown_text(text: str) -> str:
    return printable(shorten_text(text, MAX_CHARS))


def _shown_value(scores: Mapping[str, float | None], score: str | None) -> float | None:
    value = scores.get(score) if score is not None else None
    return float(f"{value:.6g}") if isinstance(value, int | float) and math.isfinite(value) else None


def _json_for_html(document: Mapping[str, Any]) -> str:
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
