"""`parse_json` reads standard JSON and records the line and column of every path."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import HarnessError
from harness.spec.json_locations import parse_json

CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(CHARACTERS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(CHARACTERS, max_size=6), inner, max_size=4),
    max_leaves=12,
)
TEXT = """{
  "name": "one",
  "mode": {"mixed": {"domain": ["a",
                                "b"]}}
}"""


@given(VALUES, st.sampled_from([None, 0, 1, 4]), st.booleans())
def test_any_json_has_the_same_value_as_with_the_standard_library(value, indent, ascii_only):
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert parse_json(text, "x").value == value


def iter_paths(value, path=()):
    yield path, value
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from iter_paths(child, (*path, key))


def parse_leading_value(text):
    return json.JSONDecoder().raw_decode(text)[0]


@given(VALUES, st.sampled_from([None, 2]))
def test_offset_of_every_path_is_the_start_of_its_key_or_list_element(value, indent):
    text = json.dumps(value, indent=indent)
    located = parse_json(text, "x")
    paths = dict(iter_paths(value))
    assert located.offsets.keys() == paths.keys()
    for path, inner in paths.items():
        rest = text[located.offsets[path] :]
        if path and isinstance(path[-1], str):
            assert rest.startswith(f"{json.dumps(path[-1])}: ")
        else:
            assert parse_leading_value(rest) == inner


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ((), "x.json:1:1"),
        (("name",), "x.json:2:3"),
        (("mode", "mixed"), "x.json:3:12"),
        (("mode", "mixed", "domain", 0), "x.json:3:33"),
        (("mode", "mixed", "domain", 1), "x.json:4:33"),
    ],
)
def test_path_has_a_line_and_a_column(path, location):
    assert parse_json(TEXT, "x.json").where(path) == location


def test_missing_path_has_the_location_of_its_nearest_parent():
    located = parse_json(TEXT, "x.json")
    assert located.where(("mode", "mixed", "general")) == "x.json:3:12"
    assert located.where(("mode", "mixed", "general", 0)) == "x.json:3:12"
    assert located.where(("train", "epochs")) == "x.json:1:1"


def test_windows_line_ends_do_not_shift_columns():
    located = parse_json(TEXT.replace("\n", "\r\n"), "x.json")
    assert located.where(("mode", "mixed", "domain", 1)) == "x.json:4:33"


@pytest.mark.parametrize(
    ("text", "line_and_column", "what"),
    [
        ("", "1:1", "ends too early"),
        ("  \n ", "2:2", "ends too early"),
        ('{"a": 1,\n}', "2:1", "a key in double quotes"),
        ('{"a": 1', "1:8", "comma or '}'"),
        ('{"a": 1 "b": 2}', "1:9", "comma or '}' is expected after the value of 'a'"),
        ('{"a" 1}', "1:6", "a colon is expected after the key 'a'"),
        ("{a: 1}", "1:2", "a key in double quotes"),
        ("{'a': 1}", "1:2", "a key in double quotes"),
        ('{"a":\n 1, // note\n "b": 2}', "2:5", "a key in double quotes"),
        ("[1, 2", "1:6", "comma or ']'"),
        ("[1, ]", "1:5", "not JSON"),
        ("[1 2]", "1:4", "comma or ']'"),
        ('{"a": "open}', "1:7", "not well formed"),
        ('{"a": "line\nbreak"}', "1:12", "not well formed"),
        ('{"a": "\\x"}', "1:8", "not well formed"),
        ('{"a": 1}\n{}', "2:1", "after the end"),
        ("[01]", "1:3", "comma or ']'"),
        ("[.5]", "1:2", "not JSON"),
        ("[1\u0663]", "1:3", "comma or ']'"),
        ("[True]", "1:2", "not JSON"),
        ("[NaN]", "1:2", "not JSON"),
        ("[-Infinity]", "1:2", "not JSON"),
        ("[1e999]", "1:2", "too large"),
        ("[" + "9" * 5000 + "]", "1:2", "too large"),
        ('["\\ud800"]', "1:2", "surrogate"),
        ('["a\\u0000b"]', "1:2", "NUL"),
        ('{"a": 1,\n "b": 2,\n "a": 3}', "3:2", "duplicate key 'a'"),
        ("[" * 5000, "1:101", "nested"),
    ],
)
def test_invalid_json_is_reported_with_line_and_column(text, line_and_column, what):
    with pytest.raises(HarnessError) as caught:
        parse_json(text, "x.json")
    assert caught.value.where == f"x.json:{line_and_column}"
    assert what in caught.value.what
    assert caught.value.hint
    assert len(caught.value.lines()) == 1


def test_two_objects_may_have_the_same_key():
    assert parse_json('[{"a": 1}, {"a": 2}]', "x").value == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_the_nesting_has_the_same_limit_as_all_other_json(opening):
    closing = "]" if opening == "[" else "}"
    text = opening * 99 + "[]" + closing * 99
    assert parse_json(text, "spec.json").value == json.loads(text)
    text = opening * 100 + "[]" + closing * 100
    column = len(opening) * 100 + 1
    with pytest.raises(HarnessError) as caught:
        parse_json(text, "spec.json")
    what = "brackets are nested more than 100 deep; reduce the nesting to 100 levels"
    assert str(caught.value) == f"spec.json:1:{column}: {what}"
