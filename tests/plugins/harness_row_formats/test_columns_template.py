"""The row format `columns_template`."""

from __future__ import annotations

import pytest
from harness_row_formats.columns_template import ColumnsTemplate

from harness.errors import HarnessError, InvalidRow
from harness.types import Message


def test_columns_are_filled_into_the_texts():
    row_format = ColumnsTemplate("Translate {source} ({from})", "{{{target}}}", "Be {tone}.")
    assert row_format.required_keys == ("tone", "source", "from", "target")
    row = {"source": "a {b}", "from": 7, "target": "c", "tone": "kind"}
    assert row_format.parse_row(row) == [
        Message("system", "Be kind."), Message("user", "Translate a {b} (7)"), Message("assistant", "{c}")
    ]  # fmt: skip
    assert [message.role for message in ColumnsTemplate("{a}", "b", None).parse_row({"a": "x"})] == [
        "user", "assistant"
    ]  # fmt: skip


@pytest.mark.parametrize("value", [None, ["x"], {"x": 1}])
def test_a_value_that_is_not_text_makes_the_row_invalid(value):
    with pytest.raises(InvalidRow) as caught:
        ColumnsTemplate("{a}", "b", None).parse_row({"a": value})
    assert caught.value.what == "has no text in 'a'"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{a", "is not valid: "),
        ("{}", "has empty braces"),
        ("{a!x}", "is not valid: "),
        ("{a:{b}}", "a format cannot have columns itself"),
    ],
)
def test_an_invalid_text_is_an_error_when_the_format_is_created(text, what):
    with pytest.raises(HarnessError, match=what):
        ColumnsTemplate(text, "b", None)


def test_formats_and_conversions_are_applied():
    row_format = ColumnsTemplate("{price:.2f} {name!r:>6} {count:03d}", "{a}", None)
    assert row_format.required_keys == ("price", "name", "count", "a")
    user, _ = row_format.parse_row({"price": 2, "name": "tea", "count": 7, "a": True})
    assert user.content == "2.00  'tea' 007"


def test_a_value_that_a_format_does_not_fit_makes_the_row_invalid():
    with pytest.raises(InvalidRow) as caught:
        ColumnsTemplate("{price:.2f}", "b", None).parse_row({"price": "two"})
    assert caught.value.what.startswith("has 'two' in 'price', which the format '.2f' does not fit: ")
