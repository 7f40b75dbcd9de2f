"""Shares of a stage are validated and split between sources; no row is read."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import Share, Stage, StageSource
from harness.spec import shares

SHARE = Share(("g", "h"), 0.2)


@pytest.mark.parametrize(
    ("sources", "asked", "what"),
    [
        ("dg", [Share(("d",), 0.5), Share(("g",), 0.4)], "every source has a share, and the shares sum to 0.9"),
        ("dg", [Share(("g",), 1.0)], "the shares sum to 1, which leaves nothing"),
        ("dgh", [Share(("g",), 0.6), Share(("h",), 0.5)], "the shares sum to 1.1, which leaves nothing"),
        ("dg", [Share(("g",), -0.1)], "a share is outside [0, 1]"),
        ("dg", [Share(("g",), math.nan)], "a share is outside [0, 1]"),
        ("dg", [Share(("d",), 0.5, "rows"), Share(("g",), 0.5, "tokens")], "in different units"),
        ("dd", [], "the source 'd' occurs twice"),
        ("dg", [Share(("x",), 0.1)], "a share names 'x', which is not a source of the stage"),
        ("dg", [Share(("g",), 0.1), Share(("g",), 0.2)], "the source 'g' has two shares"),
        ("dg", [Share((), 0.1)], "a share names no source"),
        ("dgh", [Share(("g", "h"), 0.1, weights=(1.0,))], "the weights of 'g' and 'h' are 1"),
        ("dgh", [Share(("g", "h"), 0.1, weights=(1.0, 0.0))], "the weights of 'g' and 'h' are 1, 0"),
        ("dgh", [Share(("g", "h"), 0.1, weights=(1.0, 1.0), temperature=2)], "split by weights and by temperature"),
        ("dgh", [Share(("g", "h"), 0.1, temperature=0.0)], "has the temperature 0"),
    ],
)
def test_inconsistent_shares_are_reported(sources, asked, what):
    stage = Stage("only", tuple(StageSource(source, "domain") for source in sources), {}, tuple(asked))
    error_lines = [str(error) for error in shares.validate_shares(stage)]
    assert any(what in line for line in error_lines), error_lines
    assert all(line.startswith("stage only: ") for line in error_lines)


def test_consistent_shares_have_no_errors():
    sources = tuple(StageSource(source, "domain") for source in "dgh")
    assert list(shares.validate_shares(Stage("only", sources))) == []
    assert list(shares.validate_shares(Stage("only", sources, {}, (SHARE,)))) == []
    assert list(shares.validate_shares(Stage("only", sources, {}, (SHARE, Share(("d",), 0.8))))) == []


def test_limit_of_zero_rows_is_reported():
    (error,) = shares.validate_shares(Stage("only", (StageSource("d", "domain", 0),)))
    assert str(error).startswith("stage only: the source 'd' is limited to 0 rows")


def test_share_is_split_evenly_by_weights_or_by_temperature():
    assert shares.split_share(SHARE, [5, 50]) == (0.5, 0.5)
    assert shares.split_share(Share(("g", "h"), 0.2, weights=(1, 3)), [5, 50]) == (0.25, 0.75)
    assert shares.split_share(Share(("g", "h"), 0.2, temperature=1), [10, 30]) == pytest.approx((0.25, 0.75))
    assert shares.split_share(Share(("g", "h"), 0.2, temperature=2), [10, 90]) == pytest.approx((0.25, 0.75))
    assert shares.split_share(Share(("g", "h"), 0.2, temperature=math.inf), [10, 90]) == (0.5, 0.5)
    assert shares.split_share(Share(("g", "h"), 0.2, temperature=0.001), [10**6, 10**7]) == (0.0, 1.0)


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=6), st.floats(0.1, 1e6))
def test_fractions_sum_to_one(sizes, temperature):
    share = Share(tuple(map(str, range(len(sizes)))), 0.5, temperature=temperature)
    assert math.fsum(shares.split_share(share, sizes)) == pytest.approx(1)


def test_realized_share_is_the_sum_over_its_sources_in_its_unit():
    realized = {"g": {"rows": 0.5, "loss_tokens": 0.1}, "h": {"rows": 0.2, "loss_tokens": 0.05}}
    assert shares.realized_share(SHARE, realized) == pytest.approx(0.15)
    assert shares.realized_share(Share(("g", "x"), 0.2, "rows"), realized) == 0.5


def test_unit_of_a_source_is_the_unit_of_its_share():
    stage = Stage("only", (StageSource("d", "domain"), StageSource("g", "general")), {}, (Share(("g",), 0.1, "rows"),))
    assert [shares.unit_of_source(stage, source) for source in "dg"] == ["loss_tokens", "rows"]
    assert [shares.share_of_source(stage, source) for source in "dg"] == [None, stage.shares[0]]
