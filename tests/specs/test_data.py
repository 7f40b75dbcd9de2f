"""The data sets that are shipped: enough rows, no row twice, nothing held out in training."""

from __future__ import annotations

import json
import re
import runpy
from collections import Counter
from pathlib import Path

import pytest

DATA = Path(__file__).parents[2] / "specs" / "data"
SETS = ["helpdesk", "general", "lists"]


def rows(name):
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def plain(text):
    """The text case-folded, its white space made even."""
    return " ".join(text.casefold().split())


def questions(name):
    return [plain(f"{row['instruction']} {row.get('input', '')}") for row in rows(name)]


def twice(values):
    return [value for value, count in Counter(values).items() if count > 1]


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("helpdesk_train", 240),
        ("helpdesk_heldout", 48),
        ("general_train", 300),
        ("general_heldout", 64),
        ("lists_train", 160),  # 20 updates of 8
        ("lists_heldout", 48),
    ],
)
def test_a_set_has_enough_rows(name, least):
    assert len(rows(name)) >= least


@pytest.mark.parametrize("name", [f"{name}_{part}" for name in SETS for part in ("train", "heldout")])
def test_every_row_has_a_question_and_an_answer_and_nothing_unknown(name):
    known = {"instruction", "input", "output"} | ({"fact"} if name.startswith("helpdesk") else set())
    for number, row in enumerate(rows(name), start=1):
        assert set(row) <= known, number
        assert row["instruction"].strip(), number
        assert row["output"].strip() == row["output"] != "", number


@pytest.mark.parametrize("name", SETS)
def test_no_question_stands_twice_nor_is_a_held_out_one_in_training(name):
    assert twice(questions(f"{name}_train") + questions(f"{name}_heldout")) == []


@pytest.mark.parametrize("name", SETS)
def test_no_answer_that_is_held_out_is_in_training(name):
    train = {plain(row["output"]) for row in rows(f"{name}_train")}
    assert [row["output"] for row in rows(f"{name}_heldout") if plain(row["output"]) in train] == []


def test_the_sets_share_no_question():
    assert (
        twice(question for name in SETS for question in {*questions(f"{name}_train"), *questions(f"{name}_heldout")})
        == []
    )


def test_the_lists_are_those_that_their_script_writes_and_their_answers_are_right(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["make_lists.py", str(tmp_path)])
    runpy.run_path(str(DATA.parents[1] / "benchmarks" / "make_lists.py"), run_name="__main__")
    for name in ("lists_train", "lists_heldout"):
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (DATA / f"{name}.jsonl").read_bytes()
        for row in rows(name):
            first, last = map(int, re.findall(r"\d+", row["instruction"]))
            assert row["output"].split(", ") == row["input"].split(", ")[first - 1 : last]


def test_the_help_desk_teaches_at_least_sixty_facts():
    assert len({row["fact"] for row in rows("helpdesk_train")}) >= 60


def test_every_fact_that_is_asked_for_is_taught_at_least_three_times():
    taught = Counter(row["fact"] for row in rows("helpdesk_train"))
    asked = {row["fact"] for row in rows("helpdesk_heldout")}
    assert {fact: taught[fact] for fact in asked if taught[fact] < 3} == {}


@pytest.mark.parametrize("name", SETS)
def test_a_held_out_question_asks_in_other_words(name):
    train = [set(question.split()) for question in questions(f"{name}_train")]
    for question in questions(f"{name}_heldout"):
        words = set(question.split())
        nearest = max(len(words & other) / len(words | other) for other in train)
        assert nearest < 0.8, question


def test_a_held_out_answer_shares_a_word_or_a_number_of_its_fact():
    taught = {}
    for row in rows("helpdesk_train"):
        taught.setdefault(row["fact"], set()).update(plain(row["output"]).replace(".", " ").replace(",", " ").split())
    for row in rows("helpdesk_heldout"):
        words = {word for word in plain(row["output"]).replace(".", " ").replace(",", " ").split() if len(word) > 3}
        assert words & taught[row["fact"]], row["output"]


def test_the_data_card_names_every_file_and_its_number_of_rows():
    card = (DATA / "README.md").read_text(encoding="utf-8")
    for file in DATA.glob("*.jsonl"):
        assert file.name in card
        assert str(len(rows(file.stem))) in card
    assert "Apache-2.0" in card
