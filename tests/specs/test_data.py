"""The included datasets: enough rows, no duplicate rows, no held-out row in the training data."""

from __future__ import annotations

import json
import re
import runpy
from collections import Counter
from pathlib import Path

import pytest

DATA = Path(__file__).parents[2] / "specs" / "data"
DATASETS = ["helpdesk", "general", "lists"]


def load_rows(name):
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def normalize(text):
    """Return the case-folded text with each run of white space replaced by one space."""
    return " ".join(text.casefold().split())


def normalized_questions(name):
    return [normalize(f"{row['instruction']} {row.get('input', '')}") for row in load_rows(name)]


def duplicates(values):
    return [value for value, count in Counter(values).items() if count > 1]


def answer_words(row):
    return normalize(row["output"]).replace(".", " ").replace(",", " ").split()


@pytest.mark.parametrize(
    ("name", "minimum"),
    [
        ("helpdesk_train", 240),
        ("helpdesk_heldout", 48),
        ("general_train", 300),
        ("general_heldout", 64),
        ("lists_train", 160),  # 20 updates of 8
        ("lists_heldout", 48),
    ],
)
def test_a_dataset_has_enough_rows(name, minimum):
    assert len(load_rows(name)) >= minimum


@pytest.mark.parametrize("name", [f"{name}_{part}" for name in DATASETS for part in ("train", "heldout")])
def test_every_row_has_a_question_an_answer_and_no_unknown_key(name):
    known_keys = {"instruction", "input", "output"} | ({"fact"} if name.startswith("helpdesk") else set())
    for number, row in enumerate(load_rows(name), start=1):
        assert set(row) <= known_keys, number
        assert row["instruction"].strip(), number
        assert row["output"].strip() == row["output"] != "", number


@pytest.mark.parametrize("name", DATASETS)
def test_no_question_is_repeated_within_or_between_training_and_held_out_rows(name):
    assert duplicates(normalized_questions(f"{name}_train") + normalized_questions(f"{name}_heldout")) == []


@pytest.mark.parametrize("name", DATASETS)
def test_no_held_out_answer_is_in_the_training_data(name):
    training_answers = {normalize(row["output"]) for row in load_rows(f"{name}_train")}
    assert [row["output"] for row in load_rows(f"{name}_heldout") if normalize(row["output"]) in training_answers] == []


def test_the_datasets_share_no_question():
    assert (
        duplicates(
            question
            for name in DATASETS
            for question in {*normalized_questions(f"{name}_train"), *normalized_questions(f"{name}_heldout")}
        )
        == []
    )


def test_the_lists_are_the_output_of_their_script_and_have_correct_answers(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["make_lists.py", str(tmp_path)])
    runpy.run_path(str(DATA.parents[1] / "benchmarks" / "make_lists.py"), run_name="__main__")
    for name in ("lists_train", "lists_heldout"):
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (DATA / f"{name}.jsonl").read_bytes()
        for row in load_rows(name):
            first, last = map(int, re.findall(r"\d+", row["instruction"]))
            assert row["output"].split(", ") == row["input"].split(", ")[first - 1 : last]


def test_the_help_desk_training_rows_contain_at_least_sixty_facts():
    assert len({row["fact"] for row in load_rows("helpdesk_train")}) >= 60


def test_every_held_out_fact_has_at_least_three_training_rows():
    training_rows = Counter(row["fact"] for row in load_rows("helpdesk_train"))
    held_out_facts = {row["fact"] for row in load_rows("helpdesk_heldout")}
    assert {fact: training_rows[fact] for fact in held_out_facts if training_rows[fact] < 3} == {}


@pytest.mark.parametrize("name", DATASETS)
def test_a_held_out_question_is_worded_differently_from_training_questions(name):
    training_questions = [set(question.split()) for question in normalized_questions(f"{name}_train")]
    for question in normalized_questions(f"{name}_heldout"):
        words = set(question.split())
        similarity = max(len(words & other) / len(words | other) for other in training_questions)
        assert similarity < 0.8, question


def test_a_held_out_answer_shares_a_word_with_the_training_answers_of_its_fact():
    words_of_fact = {}
    for row in load_rows("helpdesk_train"):
        words_of_fact.setdefault(row["fact"], set()).update(answer_words(row))
    for row in load_rows("helpdesk_heldout"):
        words = {word for word in answer_words(row) if len(word) > 3}
        assert words & words_of_fact[row["fact"]], row["output"]


def test_the_data_card_names_every_file_and_its_number_of_rows():
    card = (DATA / "README.md").read_text(encoding="utf-8")
    for file in DATA.glob("*.jsonl"):
        assert file.name in card
        assert str(len(load_rows(file.stem))) in card
    assert "Apache-2.0" in card
