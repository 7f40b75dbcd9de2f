"""The event classes: frozen, keyword-only, and documented field by field."""

from __future__ import annotations

import dataclasses
import re

import pytest

from harness import events

EVENT_CLASSES = [
    value
    for value in vars(events).values()
    if isinstance(value, type) and issubclass(value, events.Event) and value is not events.Event
]


@pytest.mark.parametrize("event_class", EVENT_CLASSES, ids=lambda event_class: event_class.__name__)
def test_every_field_of_an_event_is_documented(event_class):
    own_fields = [field.name for field in dataclasses.fields(event_class) if field.name != "stage_index"]
    assert re.findall(r"^        (\w+): ", event_class.__doc__, re.MULTILINE) == own_fields


@pytest.mark.parametrize("event_class", EVENT_CLASSES, ids=lambda event_class: event_class.__name__)
def test_every_event_is_frozen_and_keyword_only(event_class):
    assert event_class.__dataclass_params__.frozen
    assert all(field.kw_only for field in dataclasses.fields(event_class))


def test_module_docstring_names_every_event():
    assert [name for name in (event.__name__ for event in EVENT_CLASSES) if name not in events.__doc__] == []
