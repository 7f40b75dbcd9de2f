"""The toy study: its languages, its rule of choice, its smallest size, and the numbers of its page."""

from __future__ import annotations

import itertools
import json
import math
import random
import re

import pytest
from support.benchmarks import load_benchmark
from support.paths import ROOT

method_study = load_benchmark("method_study")
toy_study = load_benchmark("toy_study", "method_study")

RESULT = ROOT / "docs" / "study.json"
PAGE = ROOT / "docs" / "study.md"
NUMBER = re.compile(r"[−-]?\d+\.\d\d(?!\d)")


@pytest.mark.parametrize("name", ["a", "b"])
def test_the_mean_nll_of_rows_is_the_entropy_of_the_grammar(name):
    language, generator = toy_study.build_language(name), random.Random(0)
    entropy = -sum(p * math.log(p) for p in toy_study.ODDS)
    expected = toy_study.SUBJECTS * (2 * entropy + 2 * (math.log(2) + entropy / 2))
    nll = [language.draw_row(("fox", "owl", "ant"), generator)[1] for _ in range(4000)]
    assert sum(nll) / len(nll) == pytest.approx(expected, abs=0.2)  # the standard error is 0.03


def test_the_languages_differ_in_word_order_and_share_their_words():
    rows = {name: toy_study.build_language(name).draw_row(("fox",), random.Random(1))[0] for name in "ab"}
    first = {name: row["completion"].split()[0] for name, row in rows.items()}
    assert first["b"] in toy_study.VERBS.split()
    assert first["a"] not in toy_study.VERBS.split()


def test_no_prompt_is_in_two_sources(tmp_path):
    toy_study.write_rows(tmp_path, toy_study.Size())
    prompts = {
        source: {json.loads(line)["prompt"] for line in (tmp_path / f"{source}.jsonl").read_text().splitlines()}
        for source, _ in toy_study.Size().rows
    }
    assert {source: len(prompts[source]) for source in prompts} == dict(toy_study.Size().rows)
    assert not any(first & second for first, second in itertools.combinations(prompts.values(), 2))


@pytest.mark.parametrize(
    ("gains", "forgotten", "chosen"),
    [((0.96, 0.97), (0.3, 0.2), 0.1), ((0.96, 0.94), (0.3, 0.2), 0.3), ((0.8, 0.9), (0.1, 0.2), 0.1)],
    ids=["least forgetting", "too little gain", "most gain"],
)
def test_the_chosen_value_forgets_least_of_those_that_gain_enough(gains, forgotten, chosen):
    points = [("naive", 1.0, 1.0), ("lower-lr-0.3", gains[0], forgotten[0]), ("lower-lr-0.1", gains[1], forgotten[1])]
    report = {"points": [{"arm": arm, "gain": {"value": g}, "forgotten": {"value": f}} for arm, g, f in points]}
    assert method_study.choose_values(report, toy_study.methods(toy_study.TINY))["lower-lr"]["value"] == chosen


def test_the_tables_of_the_page_are_those_of_the_result():
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    page = PAGE.read_text(encoding="utf-8")
    for table in method_study.format_tables(result).strip().split("\n\n"):
        assert table in page


def test_every_number_of_the_text_is_in_the_result():
    def numbers(value):
        if isinstance(value, dict | list):
            for inner in value.values() if isinstance(value, dict) else value:
                yield from numbers(inner)
        elif isinstance(value, float):
            yield f"{abs(value):.2f}"

    known = set(numbers(json.loads(RESULT.read_text(encoding="utf-8"))))
    text = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if not line.startswith("|")]
    found = {number.lstrip("−-") for number in NUMBER.findall("\n".join(text))}
    assert found
    assert found <= known


@pytest.mark.slow
def test_the_smallest_study_has_the_form_of_the_result_and_is_not_run_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_NO_THIRD_PARTY", "1")
    result, experiment = toy_study.run_study(tmp_path, toy_study.TINY)
    published = json.loads(RESULT.read_text(encoding="utf-8"))
    assert result.keys() == published.keys()
    assert [arm["arm"] for arm in result["arms"]] == ["naive", "lower-lr"]
    assert all(arm.keys() == published["arms"][0].keys() for arm in result["arms"])
    assert result["choices"].keys() == {"lower-lr"}
    assert result["equal_gain"] > 0
    assert (experiment / "plots" / "gain-forgetting.svg").is_file()
    for function in ("run", "run_experiment", "resume"):
        monkeypatch.setattr(toy_study.harness, function, None)
    assert toy_study.run_study(tmp_path, toy_study.TINY) == (result, experiment)
