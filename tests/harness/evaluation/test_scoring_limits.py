"""Counts of a score, and the limits of a suite."""

from __future__ import annotations

import pytest

from harness.errors import RunError
from harness.evaluation.scoring import find_limit_violations, raise_on_violations, score_items
from harness.types import Item

SAID = ["yes", "", "x" * 30, " ", "no"]


@pytest.fixture
def evaluate(kit, tokenizer):
    def run(stage=1, folder=None, **settings):
        suite = kit.suite(**settings)
        rows = [kit.example(said, "yes") for said in SAID]
        return kit.evaluate(kit.echo(), suite, rows, {"same": kit.same}, stage=stage, folder=folder)

    return run


def test_score_has_counts_of_its_items(evaluate):
    (score,) = evaluate().scores
    assert score.n == 5
    assert score.counts == {"empty": 2, "truncated": 1, "prompt_cut": 0, "unparsed": 0}


def test_no_limit_means_no_violation(evaluate):
    assert evaluate().violations == ()
    raise_on_violations([evaluate()])


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        ({"max_empty": 0.3}, "2 of 5 items are empty (40.0%, 30.0% are allowed)"),
        ({"max_truncated": 0.1}, "1 of 5 items are truncated (20.0%, 10.0% are allowed)"),
    ],
)
def test_violation_is_raised_after_saving(evaluate, tmp_path, limit, text):
    result = evaluate(folder=tmp_path, **limit)
    assert (tmp_path / "desk-stage1.jsonl").exists()
    (breach,) = result.violations
    assert str(breach) == text
    with pytest.raises(RunError, match=r"evaluate\.desk\.max_\w+: after stage 1 .* allowed") as raised:
        raise_on_violations([result])
    assert raised.value.exit_code == 1


def test_count_at_the_limit_passes(evaluate):
    assert evaluate(max_empty=0.4, max_truncated=0.2, max_cut=0.0, max_unparsed=0.0).violations == ()


def test_base_model_is_exempt_from_limits(evaluate):
    base = evaluate(stage=0, max_empty=0.0)
    assert len(base.violations) == 1
    raise_on_violations([base], first_stage=1)
    with pytest.raises(RunError):
        raise_on_violations([base])


def test_unparsed_answers_are_counted_per_metric(kit, metric):
    items = [Item(str(n), "q", "#### 3", answer, "eos") for n, answer in enumerate(["#### 3", "three", "#### 4"])]
    metrics = {"exact_match": metric("exact_match", extract=r"#### (\d+)"), "json_valid": metric("json_valid")}
    scores = score_items(items, metrics)
    assert [one.counts["unparsed"] for one in scores] == [1, 3]
    violations = find_limit_violations(kit.suite(max_unparsed=0.5), 2, items, scores)
    assert [str(one) for one in violations] == ["3 of 3 items are unparsed by json_valid (100.0%, 50.0% are allowed)"]


def test_suite_without_answers_has_no_empty_answers(kit):
    assert (
        find_limit_violations(
            kit.suite(max_empty=0.0, max_truncated=0.0), 0, [Item("1", "q", "r", nll=1.0, tokens=2)], ()
        )
        == ()
    )
