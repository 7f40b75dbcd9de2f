"""Ratings and tasks as files: colleagues, CSV, Label Studio and Argilla."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from harness.errors import HarnessError
from harness.rating import exchange
from harness.rating.store import RatingStore
from harness.rating.summary import summarize_ratings


def label_studio_export(tasks, choose, person=7):
    """Return what Label Studio exports when one person has annotated every task."""
    return json.dumps(
        [
            {
                "id": index,
                **task,
                "annotations": [
                    {
                        "completed_by": person,
                        "was_cancelled": False,
                        "result": [
                            {"from_name": name, "to_name": "prompt", "type": "choices", "value": {"choices": [choice]}}
                            for name, choice in choose(task["data"]).items()
                        ],
                    }
                ],
            }
            for index, task in enumerate(tasks)
        ]
    )


def argilla_export(records, choose, user="2b5e"):
    """Return what Argilla's `records.to_json` writes when one user has submitted every record."""
    return json.dumps(
        [
            {
                **record,
                "status": "completed",
                "responses": {
                    name: [{"value": value, "user_id": user, "status": "submitted"}]
                    for name, value in choose(record["fields"]).items()
                },
            }
            for record in records
        ]
    )


def prefer_second(data):
    """Prefer the answer of the run `second`, wherever it is."""
    return {"preference": "1" if "by second" in data["left"] else "5"}


def test_ratings_of_a_colleague_are_merged_once(scores_task, rate_all, tmp_path):
    elsewhere = replace(scores_task, folder=tmp_path / "elsewhere")
    elsewhere.folder.mkdir()
    rate_all(elsewhere, "bob", lambda *_: 2)
    store = rate_all(scores_task, "alice", lambda *_: 4)
    file = elsewhere.folder / "ratings-bob.jsonl"
    count = len(file.read_text().splitlines())
    assert exchange.import_ratings(scores_task, store, file) == {"bob": count}
    assert exchange.import_ratings(scores_task, store, file) == {"bob": 0}
    summary = summarize_ratings(scores_task, store)
    assert [rater.name for rater in summary.raters] == ["alice", "bob"]
    assert summary.dimensions[0].mean.value == 3


def test_two_undos_within_a_second_are_both_imported(scores_task, rate_all, tmp_path):
    elsewhere = replace(scores_task, folder=tmp_path / "elsewhere")
    elsewhere.folder.mkdir()
    theirs = rate_all(elsewhere, "bob", lambda *_: 2)
    for _ in range(2):
        theirs.append("bob", "undo")
    store = RatingStore(scores_task)
    exchange.import_ratings(scores_task, store, elsewhere.folder / "ratings-bob.jsonl")
    assert store.load("bob") == theirs.load("bob")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json\n", "ratings.txt:1: is not a record of a rating"),
        ('{"format": 1, "task": "x", "rater": "bob", "action": "finish"}\n', "belongs to another rating task"),
        ('[{"a": 1}]', r"ratings.txt \[0\]: is not an entry of Label Studio or Argilla"),
        ("[1]", r"is not an entry"),
    ],
)
def test_other_files_are_refused(scores_task, tmp_path, content, message):
    file = tmp_path / "ratings.txt"
    file.write_text(content)
    with pytest.raises(HarnessError, match=message):
        exchange.import_ratings(scores_task, RatingStore(scores_task), file)
    assert not list(scores_task.folder.glob("ratings-*"))


def test_label_studio_gets_tasks_without_names_and_its_results_come_back(comparison_task, tmp_path):
    text, config = exchange.label_studio_tasks(comparison_task)
    tasks = json.loads(text)
    assert len(tasks) == 40
    sides = {task["data"]["left"].rpartition(" by ")[2] for task in tasks}
    assert sides == {"first", "second"}  # the runs' own answers name them here; nothing else does
    assert not {"model", "run", "models"} & tasks[0]["data"].keys()
    root = ElementTree.fromstring(config)
    assert {node.get("value") for node in root.iter("Text")} == {"$prompt", "$left", "$right", "$reference"}
    (choices,) = root.iter("Choices")
    assert [node.get("alias") for node in choices] == ["1", "2", "3", "4", "5", "both_bad"]
    file = tmp_path / "export.json"
    file.write_text(label_studio_export(tasks, prefer_second))
    store = RatingStore(comparison_task)
    assert exchange.import_ratings(comparison_task, store, file) == {"label-studio 7": 40}
    found = summarize_ratings(comparison_task, store).comparison
    assert (found.wins, found.losses, found.mean.value) == (40, 0, 2)


def test_argilla_gets_records_and_its_results_come_back(comparison_task, tmp_path):
    records, settings = map(json.loads, exchange.argilla_records(comparison_task))
    assert records[0].keys() >= {"id", "fields", "metadata", "suggestions", "responses", "vectors"}
    assert [question["name"] for question in settings["questions"]] == ["preference"]
    assert [field["name"] for field in settings["fields"]] == ["prompt", "left", "right", "reference"]
    file = tmp_path / "records.json"
    file.write_text(argilla_export(records, prefer_second))
    store = RatingStore(comparison_task)
    assert exchange.import_ratings(comparison_task, store, file) == {"argilla 2b5e": 40}
    assert summarize_ratings(comparison_task, store).comparison.wins == 40


def test_values_that_the_rubric_does_not_have_are_refused(scores_task, tmp_path):
    tasks = json.loads(exchange.label_studio_tasks(scores_task)[0])
    file = tmp_path / "export.json"
    file.write_text(label_studio_export(tasks, lambda data: {"fluency": "na"}))
    with pytest.raises(HarnessError, match="'na' is not a value of 'fluency'"):
        exchange.import_ratings(scores_task, RatingStore(scores_task), file)


def test_csv_has_every_rating_and_no_formula(comparison_task, rate_all):
    store = rate_all(comparison_task, "=cmd()", lambda showing, _: 1 if showing.left else 5, repeats=False)
    rows = list(csv.DictReader(io.StringIO(exchange.format_csv(comparison_task, store))))
    assert len(rows) == 40
    assert {row["rater"] for row in rows} == {"'=cmd()"}
    assert {row["preference_for_second"] for row in rows} == {"2"}
    assert {row["left"] for row in rows} == {"first", "second"}


def test_a_comment_with_other_line_breaks_is_imported(scores_task, rate_all, tmp_path):
    elsewhere = replace(scores_task, folder=tmp_path / "elsewhere")
    elsewhere.folder.mkdir()
    theirs = rate_all(elsewhere, "bob", lambda *_: 2)
    comment = "one\u2028two\u0085three\x0cfour"
    theirs.append("bob", "comment", item=scores_task.items[0].key, repeat=False, comment=comment)
    store = RatingStore(scores_task)
    exchange.import_ratings(scores_task, store, elsewhere.folder / "ratings-bob.jsonl")
    assert store.load("bob").comments == {(scores_task.items[0].key, False): comment}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"item": "nowhere/1"}, "ratings.jsonl:2: the task has no item 'nowhere/1'"),
        ({"action": "skip", "item": "nowhere/1"}, "the task has no item"),
        ({"action": "comment", "item": "nowhere/1", "comment": "x"}, "the task has no item"),
        ({"value": 6}, "6 is not a value of 'relevance'"),
        ({"value": True}, "True is not a value of 'relevance'"),
        ({"value": [4]}, "is not a value of 'relevance'"),
        ({"dimension": "beauty"}, "4 is not a value of 'beauty'"),
        ({"left": 1}, "the task has no model number 1"),
    ],
)
def test_records_that_the_task_does_not_have_are_refused_and_nothing_is_imported(
    scores_task, tmp_path, changes, message
):
    record = {
        "format": 1, "task": scores_task.digest, "rater": "bob", "id": "a", "action": "rate",
        "item": scores_task.items[0].key, "repeat": False, "dimension": "relevance", "value": 4, "left": 0,
    }  # fmt: skip
    file = tmp_path / "ratings.jsonl"
    file.write_text(json.dumps(record) + "\n" + json.dumps({**record, "id": "b", **changes}) + "\n")
    with pytest.raises(HarnessError) as raised:
        exchange.import_ratings(scores_task, RatingStore(scores_task), file)
    assert message in str(raised.value)
    assert not list(scores_task.folder.glob("ratings-*"))
