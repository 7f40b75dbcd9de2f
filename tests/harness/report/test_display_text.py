"""Texts that the terminal and the HTML report share."""

from __future__ import annotations

import math

from harness.report.display_text import format_incomplete_answers, format_interval
from harness.statistics.intervals import Estimate


def test_interval_has_one_number_of_decimals_and_signs():
    assert format_interval(Estimate(0.2, 0.02, 0.15, 0.25, 40)) == ("+0.200", "[+0.150, +0.250]")
    assert format_interval(Estimate(-12.0, 1.0, -14.5, -9.75, 40)) == ("−12.0", "[−14.5, −9.8]")
    assert format_interval(Estimate(0.2, 0.02, 0.15, 0.25, 40), digits=4, sign=False) == ("0.200", "[0.150, 0.250]")


def test_missing_bounds_are_dashes():
    assert format_interval(Estimate(0.2, math.nan, math.nan, math.nan, 1)) == ("+0.200", "[–, –]")


def test_only_incomplete_answers_are_counted():
    assert format_incomplete_answers({"eos": 9, "length": 1200, "empty": 1}) == "1,200 cut off, 1 empty"
    assert format_incomplete_answers({"eos": 9, "length": 0}) == ""
