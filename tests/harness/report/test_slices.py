"""A suite is reported by slice: each value of a column is scored as if it were a suite of its own."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from support import example_run, html_reader

from harness.report import finished_run, run_report
from harness.report.html import write
from harness.report.slices import slice_changes
from harness.terminal.report_table import format_report

LANGUAGES = ["de"] * 40 + ["zh"] * 32


def with_languages(evaluation, count):
    items = tuple(
        replace(item, slices=(("language", LANGUAGES[index]),)) for index, item in enumerate(evaluation.items[:count])
    )
    return replace(evaluation, items=items)


def stages():
    """German got better by 0.5 on every item, Chinese worse by 0.1 on average."""
    before, after = (
        tuple(
            with_languages(
                example_run.made_evaluation(
                    stage,
                    suite,
                    [0.2 + 0.001 * i + (0.0 if not stage else 0.5 if language == "de" else -0.1 - 0.002 * i)
                     for i, language in enumerate(LANGUAGES)],
                    [20.0] * len(LANGUAGES),
                ),
                len(LANGUAGES),
            )
            for suite in ("helpdesk", "general")
        )
        for stage in (0, 1)
    )  # fmt: skip
    return before, after


@pytest.fixture
def report():
    return run_report.build_report(example_run.made_plan(), stages(), example_run.BY_SUITE, seed=0, run_info={})


def test_every_slice_has_the_scores_of_its_items_alone(report):
    german, chinese = [each for each in report.slices if each.suite == "helpdesk"]
    assert (german.column, german.value, german.n) == ("language", "de", 40), "the largest slice first"
    assert (chinese.value, chinese.n) == ("zh", 32)
    assert german.before.value == pytest.approx(0.2 + 0.001 * sum(range(40)) / 40)
    assert german.difference.value == pytest.approx(0.5)
    assert chinese.difference.value == pytest.approx(-0.1 - 0.002 * sum(range(40, 72)) / 32)
    assert (german.verdict, chinese.verdict) == ("better", "worse")
    assert german.difference.low <= 0.5 <= german.difference.high


def test_slices_survive_scores_json(report, tmp_path):
    report.write(tmp_path)
    scores = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    stage = scores["stages"][1]["suites"]["helpdesk"]
    evaluation = finished_run._parse_evaluation(1, "helpdesk", stage)
    assert [dict(item.slices)["language"] for item in evaluation.items] == LANGUAGES


def test_terminal_and_page_show_every_slice(report, tmp_path):
    import io

    from rich.console import Console

    output = io.StringIO()
    Console(width=80, file=output).print(format_report(report))
    text = output.getvalue()
    assert "helpdesk by language" in text
    assert " de, n = 40" in text
    report.write(tmp_path)
    write.write_run_page(tmp_path)
    page = html_reader.parse_html((tmp_path / "report.html").read_text(encoding="utf-8"))
    row = page.find("tr", data_slice="helpdesk/language/zh")
    assert "worse" in row.text


def test_items_without_slices_give_none():
    first, last = (stage[0] for stage in stages())
    plain = [replace(each, items=tuple(replace(item, slices=()) for item in each.items)) for each in (first, last)]
    scores = [each.scores[0] for each in plain]
    assert list(slice_changes((plain[0], scores[0]), (plain[1], scores[1]), example_run.METRICS["rouge"])) == []
