"""Metrics receive the columns of a row that its source keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.paths import ROOT

from harness.errors import HarnessError
from harness.evaluation.predictions import load_items, predictions_path


@pytest.fixture
def constraints(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "third_party" / "harness-example")
    from harness_example.constraints import Constraints

    return Constraints()


def test_a_metric_has_arguments_of_its_own_for_each_row(kit, constraints, tmp_path):
    rules = [
        [{"type": "max_words", "value": 1}, {"type": "contains", "value": "tea"}],
        [{"type": "contains", "value": "coffee"}],
        [],
    ]
    rows = [
        replace(kit.example(prompt, "r"), data={"constraints": rule})
        for prompt, rule in zip(("tea", "more coffee", "x"), rules, strict=True)
    ]
    result = kit.evaluate(kit.echo(), kit.suite(), rows, {"constraints": constraints}, folder=tmp_path)
    assert result.scores[0].value == 1.0
    assert result.scores[0].statistics == ((2.0, 2.0), (1.0, 1.0), (0.0, 0.0))
    stored = load_items(predictions_path(tmp_path, "desk", 0))
    assert [item.data for item in stored] == [{"constraints": rule} for rule in rules]
    wrong = [replace(rows[0], data={"constraints": [{"type": "max_words", "value": 0}]})]
    assert kit.evaluate(kit.echo(), kit.suite(), wrong, {"constraints": constraints}).scores[0].value == 0.0


def test_a_row_without_the_column_is_an_error_with_the_key_to_set(kit, constraints):
    with pytest.raises(
        HarnessError, match=r'item id-tea: has no column .*; add .* "keep": .*"constraints".* to the source'
    ):
        kit.evaluate(kit.echo(), kit.suite(), [kit.example("tea", "r")], {"constraints": constraints})
