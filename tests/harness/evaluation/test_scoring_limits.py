"""What is counted beside a score, and what fails an evaluation."""

from __future__ import annotations

import pytest

from harness.errors import RunError
from harness.evaluation.scoring import find_limit_violations, raise_on_violations, score_items
from harness.types import Item

SAID = ["yes", "", "x" * 30, " ", "no"]


@pytest.fixture
def go(kit, tokenizer):
    def run(stage=1, folder=None, **settings):
        suite = kit.suite(**settings)
        rows = [kit.example(said, "yes") for said in SAID]
        return kit.evaluate(kit.echo(), suite, rows, {"same": kit.same}, stage=stage, folder=folder)

    return run


def test_what_is_no_measure_of_the_model_is_counted_beside_its_score(go):
    (found,) = go().scores
    assert found.n == 5
    assert found.counts == {"empty": 2, "truncated": 1, "prompt_cut": 0, "unparsed": 0}


def test_nothing_fails_where_no_limit_is_declared(go):
    assert go().violations == ()
    raise_on_violations([go()])


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        ({"max_empty": 0.3}, "2 of 5 items are empty (40.0%, 30.0% are allowed)"),
        ({"max_truncated": 0.1}, "1 of 5 items are truncated (20.0%, 10.0% are allowed)"),
    ],
)
def test_over_its_limit_an_evaluation_is_saved_and_then_fails(go, tmp_path, limit, text):
    result = go(folder=tmp_path, **limit)
    assert (tmp_path / "desk-stage1.jsonl").exists()
    (breach,) = result.violations
    assert str(breach) == text
    with pytest.raises(RunError, match=r"evaluate\.desk\.max_\w+: after stage 1 .* allowed") as raised:
        raise_on_violations([result])
    assert raised.value.exit_code == 1


def test_at_its_limit_it_does_not_fail(go):
    assert go(max_empty=0.4, max_truncated=0.2, max_cut=0.0, max_unparsed=0.0).violations == ()


def test_the_base_model_need_not_keep_the_limits(go):
    base = go(stage=0, max_empty=0.0)
    assert len(base.violations) == 1
    raise_on_violations([base], first_stage=1)
    with pytest.raises(RunError):
        raise_on_violations([base])


def test_answers_that_a_metric_cannot_read_are_counted_for_that_metric(kit, metric):
    items = [Item(str(n), "q", "#### 3", answer, "eos") for n, answer in enumerate(["#### 3", "three", "#### 4"])]
    metrics = {"exact_match": metric("exact_match", extract=r"#### (\d+)"), "json_valid": metric("json_valid")}
    scores = score_items(items, metrics, seed=0)
    assert [one.counts["unparsed"] for one in scores] == [1, 3]
    found = find_limit_violations(kit.suite(max_unparsed=0.5), 2, items, scores)
    assert [str(one) for one in found] == ["3 of 3 items are unparsed by json_valid (100.0%, 50.0% are allowed)"]


def test_a_suite_without_answers_has_none_that_are_empty(kit):
    assert (
        find_limit_violations(
            kit.suite(max_empty=0.0, max_truncated=0.0), 0, [Item("1", "q", "r", nll=1.0, tokens=2)], ()
        )
        == ()
    )
