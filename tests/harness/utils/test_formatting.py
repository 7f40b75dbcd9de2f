"""Names are joined with commas; the time of a resumed run is that of its last command."""

from __future__ import annotations

import pytest

from harness.utils.formatting import format_run_time, join_names, shorten_words


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


def test_the_time_of_a_resumed_run_is_that_of_its_last_command():
    assert format_run_time({}) == ""
    assert format_run_time({"seconds": 187.2, "resumed": False}) == "3 min 07 s"
    assert format_run_time({"seconds": 40, "resumed": True}) == "resumed, the last command took 40 s"


def test_a_long_word_is_cut_and_a_long_path_is_not():
    text = f"there is no source '{'x' * 3000}'; the spec's sources are: a, b"
    assert shorten_words(text) == f"there is no source '{'x' * 199}… (+2,803 characters) the spec's sources are: a, b"
    path = "/".join(["folder"] * 300)
    assert shorten_words(f"{path}: there is no such file") == f"{path}: there is no such file"
