"""The contract of row formats."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from harness.data.reading.conversation import build_example
from harness.errors import InvalidRow
from harness.testing.component_under_test import CheckSkipped, ComponentUnderTest, require

WRONG_VALUES: tuple[Any, ...] = (None, 3, 1.5, True, "", [], [1], {}, {"a": [None]})
"""Values that a column may have in real data."""


def check_keys(subject: ComponentUnderTest) -> None:
    """It names the columns that it reads, none of them twice."""
    row_format = subject.create()
    keys = (*row_format.required_keys, *row_format.optional_keys)
    require(row_format.required_keys, "`required_keys` is empty: every row would fit")
    require(all(isinstance(key, str) and key for key in keys), f"the columns are {keys}, not only names")
    require(len(set(keys)) == len(keys), f"a column is named twice: {keys}")


def check_conversation(subject: ComponentUnderTest) -> None:
    """The row of the example is a valid conversation, and stays as it is."""
    row = _row(subject)
    row_format = subject.create()
    missing = [key for key in row_format.required_keys if key not in row]
    require(not missing, f"the row of the example has no {missing}, which `required_keys` names")
    before = copy.deepcopy(row)
    messages = row_format.parse_row(row)
    require(row == before, "it changes the row")
    try:
        build_example(messages, "row", assistant_may_begin=True)
    except InvalidRow as error:
        require(False, f"its messages are not a conversation: it {error.what}")


def check_wrong_values(subject: ComponentUnderTest) -> None:
    """A column with a value of another type makes the row invalid, or becomes text."""
    row, row_format = _row(subject), subject.create()
    for key in row_format.required_keys:
        for value in WRONG_VALUES:
            try:
                messages = row_format.parse_row({**row, key: value})
                is_text = all(isinstance(message.content, str) for message in messages)
                require(is_text, f"{key} = {value!r} becomes the content of a message; raise InvalidRow")
            except InvalidRow as error:
                require(error.what.strip(), f"the InvalidRow for {key} = {value!r} does not say what is wrong")


def _row(subject: ComponentUnderTest) -> dict[str, Any]:
    row: Mapping[str, Any] | None = subject.example.row
    if row is None:
        raise CheckSkipped("its example has no `row`: declare Component(example=ComponentExample(row=…))")
    return dict(row)


CHECKS = (check_keys, check_conversation, check_wrong_values)
