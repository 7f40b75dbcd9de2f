"""Means, wins, sides, agreement and power against closed forms and published values."""

from __future__ import annotations

import json
import math

import pytest

from harness.rating.agreement import measure_agreement
from harness.rating.power import power_of_comparison, smallest_significant_majority
from harness.rating.rated_answers import find_rated_models
from harness.rating.store import RatingStore
from harness.rating.summary import summarize_ratings, write_summary
from harness.rating.task import TaskRequest, open_task


def canonical(showing, preferred, strength=2):
    """Return the key with which a rater prefers a model, whatever its side."""
    return 3 - strength if showing.left == preferred else 3 + strength


def test_means_are_over_items_and_their_raters(scores_task, rate_all):
    key = scores_task.items[0].key
    rate_all(scores_task, "alice", lambda showing, dimension: 5 if showing.item.key == key else 3)
    store = rate_all(scores_task, "bob", lambda showing, dimension: 1 if showing.item.key == key else 3)
    summary = summarize_ratings(scores_task, store)
    relevance = summary.dimensions[0]
    assert relevance.values[key] == 3
    assert (relevance.mean.value, relevance.mean.n) == (3, 12)
    assert math.isnan(relevance.mean.low)  # all item means are equal: their spread is not known
    assert relevance.agreement.pairs == 12
    assert relevance.agreement.equal == pytest.approx(11 / 12)


def test_the_interval_of_a_mean_is_that_of_the_bootstrap_within_the_scale(scores_task, rate_all):
    order = {item.key: index for index, item in enumerate(scores_task.items)}
    store = rate_all(scores_task, "alice", lambda showing, dimension: 4 + order[showing.item.key] % 2)
    mean = summarize_ratings(scores_task, store).dimensions[0].mean
    stderr = math.sqrt(0.25 / 12)  # of the mean of 6 fours and 6 fives, resampled with replacement
    assert mean.value == 4.5
    assert mean.stderr == pytest.approx(stderr, rel=0.1)
    assert 4 < mean.low < 4.5 < mean.high <= 5


def test_not_applicable_and_skipped_items_are_no_ratings(scores_task, rate_all):
    store = rate_all(scores_task, "alice", lambda showing, dimension: "na" if dimension == "safety" else 4)
    skipped = scores_task.items[0].key
    store.append("alice", "skip", item=skipped, repeat=False)
    summary = summarize_ratings(scores_task, store)
    by_key = {entry.key: entry for entry in summary.dimensions}
    assert by_key["safety"].mean is None
    assert by_key["safety"].counts == {"na": 11}
    assert by_key["fluency"].mean.n == 11
    assert (summary.raters[0].rated, summary.raters[0].skipped) == (11, 1)


def test_wins_do_not_depend_on_sides_and_the_sign_test_is_exact(comparison_task, rate_all):
    order = {item.key: index for index, item in enumerate(comparison_task.items)}

    def prefer(showing, dimension):
        index = order[showing.item.key]
        return 3 if index < 4 else "both_bad" if index < 6 else canonical(showing, int(index < 32))

    store = rate_all(comparison_task, "alice", prefer)
    found = summarize_ratings(comparison_task, store).comparison
    assert (found.wins, found.losses, found.ties, found.both_bad) == (26, 8, 6, 2)
    expected = 2 * sum(math.comb(34, k) for k in range(9)) / 2**34
    assert found.p == pytest.approx(expected)
    assert found.verdict == "better"
    assert found.net.value == pytest.approx(18 / 40)
    assert found.mean.value == pytest.approx(2 * 18 / 40)


def test_a_rater_who_always_prefers_the_left_side_is_found(comparison_task, rate_all):
    found = summarize_ratings(comparison_task, rate_all(comparison_task, "alice", lambda *_: 1)).comparison
    assert found.left_rate.value == 1
    assert found.left_p < 1e-10
    assert found.verdict == "no evidence"


def test_fewer_than_thirty_items_have_no_verdict(write_run, rate_all):
    models = find_rated_models([write_run("first"), write_run("second")], with_base=False)
    task = open_task(models, TaskRequest(items=29))
    found = summarize_ratings(task, rate_all(task, "alice", lambda showing, _: canonical(showing, 1))).comparison
    assert found.p < 1e-6
    assert found.verdict == "too few items"


def test_repeats_measure_the_agreement_with_oneself(scores_task, rate_all):
    store = rate_all(scores_task, "alice", lambda showing, dimension: 5 if showing.repeat else 4)
    summary = summarize_ratings(scores_task, store)
    assert (summary.repeats, summary.repeats_equal) == (5, 0)
    assert summary.dimensions[0].mean.value == 4  # repeats do not count twice


def test_alpha_equals_the_value_of_krippendorffs_own_example():
    pytest.importorskip("krippendorff")
    rows = ("*    *    *    *    *    3    4    1    2    1    1    3    3    *    3",
            "1    *    2    1    3    3    4    3    *    *    *    *    *    *    *",
            "*    *    2    1    3    4    4    *    2    1    1    3    3    *    4")  # fmt: skip
    ratings = {
        str(rater): {str(item): float(value) for item, value in enumerate(row.split()) if value != "*"}
        for rater, row in enumerate(rows)
    }
    assert measure_agreement(ratings).alpha == pytest.approx(0.8067214199413153)
    assert measure_agreement(ratings, "interval").alpha == pytest.approx(0.8108448928121059)


def test_alpha_is_undefined_where_nothing_varies_and_raw_agreement_is_not():
    equal = {"a": {"1": 5.0, "2": 5.0}, "b": {"1": 5.0, "2": 5.0}}
    found = measure_agreement(equal)
    assert (found.equal, found.note) == (1.0, "undefined: nothing varies")
    assert math.isnan(found.alpha)
    assert measure_agreement({"a": {"1": 5.0}}).pairs == 0


def test_the_power_is_that_of_the_exact_test():
    assert smallest_significant_majority(100) == 61
    assert smallest_significant_majority(6) == 6
    assert smallest_significant_majority(5) is None
    assert "61 (61%)" in power_of_comparison(70, 30)
    assert "at least 6 are needed" in power_of_comparison(5, 0)


def test_the_judge_is_compared_with_people(scores_task, rate_all):
    pytest.importorskip("krippendorff")
    for suite in ("helpdesk", "general"):
        file = scores_task.models[0].folder / "predictions" / f"{suite}-stage1.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for line in lines:
            line["scores"]["judge_relevance"] = 1.0 + int(line["id"][2:]) % 5
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    store = rate_all(scores_task, "alice", lambda showing, _: 1 + int(showing.item.key.rpartition("/id")[2]) % 5)
    relevance, accuracy, *_ = summarize_ratings(scores_task, store).dimensions
    assert relevance.judge.alpha == pytest.approx(1)
    assert accuracy.judge is None


def test_the_summary_is_written_for_both_runs(comparison_task, rate_all):
    store = rate_all(comparison_task, "alice", lambda showing, _: canonical(showing, 1))
    folders = write_summary(comparison_task, store, summarize_ratings(comparison_task, store))
    assert [folder.name for folder in folders] == ["first", "second"]
    first, second = (
        json.loads((folder / "ratings" / name / "summary.json").read_text())
        for folder, name in zip(folders, ("pair-second", "pair-first"), strict=True)
    )
    assert first == second
    feedback = (comparison_task.folder / "feedback.jsonl").read_text().splitlines()
    assert len(feedback) == 40
    assert json.loads(feedback[0])["ratings"] == [{"name": "preference", "value": 2.0, "rater": "alice", "comment": ""}]
    assert RatingStore(comparison_task).raters() == ["alice"]
