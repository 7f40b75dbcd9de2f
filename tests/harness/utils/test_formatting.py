"""Names are joined with commas."""

from __future__ import annotations

import pytest

from harness.utils.formatting import join_names


@pytest.mark.parametrize(
    ("names", "options", "expected"),
    [
        ([], {}, ""),
        (["a"], {"quote": True}, "'a'"),
        (["a", "b", "c"], {}, "a, b, c"),
        (["a", "b", "c"], {"quote": True, "last": " and "}, "'a', 'b' and 'c'"),
        ({"a": 1, "b": 2}, {}, "a, b"),
    ],
)
def test_names_are_joined_in_order(names, options, expected):
    assert join_names(names, **options) == expected
