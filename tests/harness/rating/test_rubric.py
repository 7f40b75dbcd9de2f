"""Rubrics: both languages have the same dimensions, and a file of one's own is validated."""

from __future__ import annotations

import json

import pytest

from harness.errors import HarnessError
from harness.rating.rubric import RUBRICS_FOLDER, load_rubric


def test_the_rubrics_have_the_same_dimensions_in_both_languages():
    english, chinese = load_rubric("en"), load_rubric("zh")
    assert [dimension.key for dimension in english.dimensions] == [
        *("relevance", "accuracy", "fluency", "completeness", "safety")
    ]
    for one, other in zip(english.dimensions, chinese.dimensions, strict=True):
        assert (one.key, list(one.levels)) == (other.key, list(other.levels))
        assert (one.not_applicable is None) == (other.not_applicable is None)
        assert (one.not_applicable is not None) == (one.key in ("accuracy", "safety"))
    assert english.digest != chinese.digest


def changed(**changes):
    return {**json.loads((RUBRICS_FOLDER / "en.json").read_text(encoding="utf-8")), **changes}


def test_a_rubric_of_ones_own_replaces_them(tmp_path):
    file = tmp_path / "rubric.json"
    levels = {str(level): f"level {level}" for level in range(1, 6)}
    file.write_text(
        json.dumps(changed(dimensions=[{"key": "tone", "name": "Tone", "question": "?", "levels": levels}]))
    )
    (dimension,) = load_rubric(str(file)).dimensions
    assert (dimension.key, dimension.levels[5], dimension.not_applicable) == ("tone", "level 5", None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"rubric.json:1:2: is not JSON"),
        (json.dumps(changed(dimensions=[])), "dimensions"),
        (json.dumps(changed(extra=1)), "extra"),
        (json.dumps(changed(dimensions=changed()["dimensions"][:1] * 2)), "two dimensions have the same key"),
        ("[]", "is not of type 'object'"),
    ],
)
def test_a_wrong_rubric_is_one_line(tmp_path, content, message):
    file = tmp_path / "rubric.json"
    file.write_text(content)
    with pytest.raises(HarnessError, match=message) as error:
        load_rubric(str(file))
    assert len(error.value.lines()) == 1


def test_a_missing_rubric_names_what_there_is():
    with pytest.raises(HarnessError, match="give en, zh or the path"):
        load_rubric("klingon")
