"""The tables of docs/sample_size.md follow from the formula that the page states."""

from __future__ import annotations

import math
import re
from statistics import NormalDist

from support.paths import ROOT

from harness.types import MIN_ITEMS

PAGE = ROOT / "docs" / "sample_size.md"
QUANTILES = NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(0.8)


def read_tables() -> list[list[list[str]]]:
    """Return the cells of each table of the page, with its header and without the line below it."""
    blocks = re.findall(r"(?:^\|.*\n)+", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [[[cell.strip() for cell in row.strip("|\n").split("|")] for row in block.splitlines()] for block in blocks]


def test_every_cell_follows_from_the_formula():
    tables = read_tables()
    assert len(tables) == 3
    for header, _, *rows in tables:
        changes = [float(cell.split()[-1]) for cell in header[1:]]
        for first, *cells in rows:
            share = re.fullmatch(r"(\d+) %", first)
            deviation = math.sqrt(int(share[1]) / 100) if share else float(first)
            needed = [max(MIN_ITEMS, math.ceil((QUANTILES * deviation / change) ** 2)) for change in changes]
            assert [int(cell.replace(",", "")) for cell in cells] == needed, first
