import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.utils.json_depth import MAX_JSON_DEPTH, JsonDepthError, load_json, raw_decode_json

LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.text(alphabet='[]{}"\\/ é\n😀', max_size=12))
KEYS = st.text(alphabet='[{"\\a', max_size=3)
VALUES = st.recursive(
    LEAVES, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3))
)
WRAPPERS = st.lists(st.sampled_from(["list", "object", "first of two", "last of two"]), min_size=90, max_size=110)
NESTED = {
    "arrays": ("[", "]"),
    "objects": ('{"a":', "}"),
    "both, with neighbors": ('[7, {"]": "{", "b": ', ', "[[": "}}\\""}, 7]'),
}


def depth_of(value):
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


def wrap(value, kinds):
    for kind in kinds:
        value = {
            "list": [value],
            "object": {'k"[': value},
            "first of two": [value, {"a": "]"}],
            "last of two": {"a": [1], "b": value},
        }[kind]
    return value


def nested(kind, depth):
    opening, closing = NESTED[kind]
    levels = depth // 2 if kind.startswith("both") else depth
    odd = depth - levels * (2 if kind.startswith("both") else 1)
    return opening * levels + ("[1]" if odd else "1") + closing * levels


def result_of(load, text):
    try:
        return load(text)
    except ValueError as error:
        return type(error), str(error)


@pytest.mark.slow
@given(VALUES, WRAPPERS, st.booleans(), st.sampled_from([None, 2]))
@settings(max_examples=200, deadline=None)
def test_a_value_is_read_if_and_only_if_it_is_not_too_deep(value, kinds, ascii_only, indent):
    value = wrap(value, kinds)
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    if depth_of(value) <= MAX_JSON_DEPTH:
        assert load_json(text) == load_json(text.encode()) == value
        assert raw_decode_json(f"[ {text}, {text}", 2) == (value, 2 + len(text))
        return
    with pytest.raises(JsonDepthError) as caught:
        load_json(text)
    prefix = text[: caught.value.pos]
    assert text[caught.value.pos] in "[{"
    with pytest.raises(json.JSONDecodeError):
        load_json(prefix)  # it ends inside of a value that is not too deep, and is not taken for one that is
    with pytest.raises(JsonDepthError) as inside:
        raw_decode_json(f"[ {text}, {text}", 2)
    assert inside.value.pos == caught.value.pos + 2


@given(st.text(alphabet='[]{}",:\\1 a', max_size=60))
@settings(max_examples=300, deadline=None)
def test_a_shallow_text_gives_what_the_json_module_gives(text):
    assert result_of(load_json, text) == result_of(json.loads, text)


@pytest.mark.parametrize("kind", NESTED)
@pytest.mark.parametrize("depth", [0, 1, 99, 100])
def test_up_to_the_limit_a_text_is_read(kind, depth):
    assert load_json(nested(kind, depth)) == json.loads(nested(kind, depth))


@pytest.mark.parametrize("kind", NESTED)
@pytest.mark.parametrize("depth", [101, 102, 400, 5000, 100_000])
@pytest.mark.parametrize("end", ["", " x", "]"])
def test_beyond_the_limit_no_text_is_read(kind, depth, end):
    with pytest.raises(JsonDepthError, match="brackets are nested more than 100 deep"):
        load_json(nested(kind, depth) + end)


@pytest.mark.parametrize("depth", [101, 990, 3000, 9000, 20_000, 100_000])
@pytest.mark.parametrize("end", ["", '"', '"\\', "1" * 5000, "x", "}"])
def test_a_text_that_is_too_deep_and_cut_off_is_too_deep(depth, end):
    with pytest.raises(JsonDepthError) as caught:
        load_json(" " + "[" * depth + end)
    assert caught.value.pos == 1 + MAX_JSON_DEPTH


@pytest.mark.parametrize("text", ["x" + "[" * 1000, '{"a" 1, ' + "[" * 1000, '"' + "[" * 1000, "[" * 100 + '"[['])
def test_a_syntax_error_before_the_limit_is_reported_as_one(text):
    with pytest.raises(json.JSONDecodeError) as caught:
        load_json(text)
    assert not isinstance(caught.value, JsonDepthError)


def test_many_brackets_side_by_side_are_not_deep():
    value = [{"a": [["[" * 500, '\\"' * 9 + "{"]]}] * 5000
    assert load_json(json.dumps(value)) == value


def test_the_limit_does_not_depend_on_the_recursion_limit():
    before = sys.getrecursionlimit()
    try:
        for limit in (before, before + 5000):
            sys.setrecursionlimit(limit)
            with pytest.raises(JsonDepthError):
                load_json("[" * 2000 + "]" * 2000)
    finally:
        sys.setrecursionlimit(before)
