"""The sample, the order and the sides are functions of seed, item and rater."""

from __future__ import annotations

from collections import Counter

import pytest

from harness.errors import HarnessError
from harness.rating.rated_answers import RatedItem, find_rated_models, load_rated_items
from harness.rating.sampling import left_model, sample_items, showings_of_rater
from harness.rating.task import TaskRequest, open_task


def items_of(sizes):
    return [
        RatedItem(f"{suite}/{index}", suite, "q", "r", ("a", "b"), (suite,))
        for suite, size in sizes.items()
        for index in range(size)
    ]


def test_strata_have_their_share_and_at_least_one_item():
    sample = sample_items(items_of({"large": 90, "small": 9, "tiny": 1}), 20, seed=0)
    counts = Counter(item.suite for item in sample)
    assert counts["tiny"] == 1
    assert counts["large"] in (17, 18)
    assert sum(counts.values()) == 20
    assert len({item.key for item in sample}) == 20


@pytest.mark.parametrize("count", [1, 2, 3, 99, 100, 500])
def test_the_sample_has_as_many_items_as_there_are(count):
    assert len(sample_items(items_of({"large": 90, "small": 9, "tiny": 1}), count, seed=0)) == min(count, 100)


def test_the_sample_depends_on_the_seed_and_not_on_the_order_of_the_items():
    items = items_of({"a": 50, "b": 50})
    assert sample_items(items, 10, seed=1) == sample_items(items[::-1], 10, seed=1)
    assert sample_items(items, 10, seed=1) != sample_items(items, 10, seed=2)


def test_about_5_percent_are_shown_again_half_of_the_items_later():
    items = items_of({"a": 100})
    showings = showings_of_rater(items, 2, seed=0, rater="alice")
    repeats = [index for index, showing in enumerate(showings) if showing.repeat]
    assert len(repeats) == 5
    for index in repeats:
        first = next(i for i, each in enumerate(showings) if each.item == showings[index].item and not each.repeat)
        assert index - first >= 50
    assert len({showing.item.key for showing in showings}) == 100


def test_fewer_than_ten_items_are_not_repeated():
    assert not any(showing.repeat for showing in showings_of_rater(items_of({"a": 9}), 1, seed=0, rater="alice"))


def test_sides_are_stable_balanced_and_differ_between_raters():
    keys = [f"suite/{index}" for index in range(400)]
    alice = [left_model(key, 2, 0, "alice") for key in keys]
    assert alice == [left_model(key, 2, 0, "alice") for key in keys]
    assert 150 < sum(alice) < 250
    for other in ([left_model(key, 2, 0, "bob") for key in keys], [left_model(key, 2, 1, "alice") for key in keys]):
        assert 150 < sum(one != two for one, two in zip(alice, other, strict=True)) < 250


def test_items_of_two_runs_are_matched_by_id(write_run):
    models = find_rated_models([write_run("first"), write_run("second")], with_base=False)
    items = load_rated_items(models)
    assert {item.suite for item in items} == {"helpdesk", "general"}
    assert all(item.answers[0].endswith("first") and item.answers[1].endswith("second") for item in items)


def test_different_prompts_of_one_item_are_refused_with_the_place_of_the_difference(write_run):
    second = write_run("second", text=lambda text: text.replace("question 7?", "question seven?"))
    models = find_rated_models([write_run("first", text=str), second], with_base=False)
    with pytest.raises(HarnessError, match=r"the prompts of item id7 differ between first and second: .*seven"):
        load_rated_items(models)


def test_the_base_model_is_compared_with_the_last_stage(write_run):
    models = find_rated_models([write_run("first", stages=2)], with_base=True)
    assert [(model.name, model.stage) for model in models] == [("first (base)", 0), ("first", 2)]
    assert "stage 0 says" in load_rated_items(models, ("helpdesk",))[0].answers[0]


def test_a_run_without_complete_predictions_is_refused(tmp_path):
    with pytest.raises(HarnessError, match="no complete predictions"):
        find_rated_models([tmp_path], with_base=False)


def test_a_suite_without_answers_is_refused_with_those_that_have_some(write_run):
    models = find_rated_models([write_run()], with_base=False)
    with pytest.raises(HarnessError, match="suites with answers: general, helpdesk"):
        load_rated_items(models, ("nowhere",))


def test_a_task_is_continued_with_its_own_items_and_other_options_are_refused(scores_task):
    again = open_task(scores_task.models, TaskRequest())
    assert again == scores_task
    for request, option in (
        (TaskRequest(items=5), "--items"),
        (TaskRequest(seed=4), "--seed"),
        (TaskRequest(rubric="zh"), "--rubric"),
        (TaskRequest(suites=("helpdesk",)), "--suite"),
    ):
        with pytest.raises(HarnessError, match=f"{option}: the task .* was started with another value"):
            open_task(scores_task.models, request)
    other = open_task(scores_task.models, TaskRequest(items=5, name="small"))
    assert len(other.items) == 5


def test_a_task_whose_answers_changed_is_refused(scores_task):
    folder = scores_task.models[0].folder / "predictions"
    for file in folder.glob("*-stage1.jsonl"):
        file.write_text(file.read_text().replace("by first", "by third"))
    with pytest.raises(HarnessError, match="have changed since the ratings began"):
        open_task(scores_task.models, TaskRequest())
