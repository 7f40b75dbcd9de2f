"""A score that its metric calls unusable is shown, and decides nothing: no verdict, gate, summary or comparison."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console
from support import example_run, run_folders

from harness.gate import evaluate_gate
from harness.report import finished_run, not_comparable, run_report
from harness.report.html import write
from harness.terminal.report_table import format_report

REASON = "40% of the judge's comparisons are the same in both orders"


def with_unusable_rouge(evaluations):
    """Mark ROUGE-L of every suite as unusable, with a diagnostic."""
    return [
        tuple(
            replace(
                evaluation,
                scores=tuple(
                    replace(score, unusable=REASON, diagnostics={"consistency": 0.4})
                    if score.name == "rougeL"
                    else score
                    for score in evaluation.scores
                ),
            )
            for evaluation in stage
        )
        for stage in evaluations
    ]


@pytest.fixture
def report():
    stages = with_unusable_rouge(example_run.made_evaluations(2))
    return run_report.build_report(example_run.made_plan(2), stages, example_run.BY_SUITE, seed=0, run_info={})


def test_it_has_no_verdict_and_no_margin_and_the_others_keep_theirs(report):
    rouge, perplexity = (
        next(change for change in report.changes if (change.suite, change.name) == ("helpdesk", name))
        for name in ("rougeL", "response_perplexity")
    )
    assert (rouge.verdict, rouge.margin, rouge.needed, rouge.unusable) == ("unusable", None, None, REASON)
    assert rouge.difference.value == pytest.approx(0.4)
    assert perplexity.verdict == "better"


@pytest.mark.parametrize("stored", [True, False])
def test_neither_it_nor_its_summaries_pass_a_gate(report, tmp_path, stored):
    report.write(tmp_path)
    scores = (
        run_report.gate_scores_of_run(tmp_path)
        if stored
        else run_report.gate_scores_from_report(json.loads(json.dumps(report.to_json())))
    )
    summary = {**run_folders.gate_condition("rougeL", at_least=-9.0), "summary": "general_ability_delta"}
    conditions = [run_folders.gate_condition("helpdesk/rougeL", rises_at_least=0.01), summary]
    conditions.append(run_folders.gate_condition("helpdesk/response_perplexity", falls_at_least=0.01))
    outcomes = [result.outcome for result in evaluate_gate(conditions, scores)]
    assert outcomes == ["not enough evidence", "not enough evidence", "passed"]


def test_terminal_and_page_say_why(report, tmp_path):
    stream = io.StringIO()
    Console(file=stream, width=200, color_system=None).print(format_report(report))
    folder = run_folders.write_run(tmp_path / "run", evaluations=with_unusable_rouge(example_run.made_evaluations()))
    page = write.write_run_page(folder).read_text(encoding="utf-8")
    for text in (stream.getvalue(), page.replace("&#39;", "'")):
        assert f"helpdesk/rougeL is UNUSABLE and decides nothing: {REASON}" in text
    assert "consistency 0.4" in page


def test_arms_are_not_compared_by_it(tmp_path):
    runs = {
        name: finished_run.load_finished_run(run_folders.write_run(tmp_path / name, evaluations=evaluations))
        for name, evaluations in (
            ("naive", example_run.made_evaluations()),
            ("ewc", with_unusable_rouge(example_run.made_evaluations())),
        )
    }
    notes = not_comparable.not_compared_notes(runs, "naive")
    assert [note for note in notes if "helpdesk/rougeL" in note and REASON in note]


def test_a_run_of_an_earlier_version_has_neither_reason_nor_diagnostics(tmp_path):
    folder = run_folders.write_run(tmp_path / "run")
    document = json.loads((folder / "scores.json").read_text())
    for stage in document["stages"]:
        for suite in stage["suites"].values():
            for score in suite["scores"]:
                del score["unusable"], score["diagnostics"]
    (folder / "scores.json").write_text(json.dumps(document))
    (score, *_) = finished_run.load_finished_run(folder).evaluations[0][0].scores
    assert (score.unusable, dict(score.diagnostics)) == ("", {})
