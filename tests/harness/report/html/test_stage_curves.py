"""Curves of the evaluations within stages, early stopping, and damaged records."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
from support import html_reader, run_folders

from harness.report.html import run_files, stage_curves, write
from harness.report.html.plots import curves

NUM_STEPS = 20


def evaluation_record(step, rouge, combined=None, **flags):
    """Return a line of `evaluations.jsonl`."""
    scores = {"helpdesk/rougeL": rouge, "general/rougeL": 0.5, "helpdesk/response_perplexity": 10.0}
    return {"step": step, "scores": scores, "combined": combined, **flags}


def write_measured_run(folder, *stages, num_steps=NUM_STEPS):
    """Write a run. stages: The records of the evaluations within each stage."""
    run_folder = run_folders.write_run(folder, stages=len(stages), num_steps=num_steps)
    for number, records in enumerate(stages, start=1):
        if records:
            file = run_folder / "stages" / f"stage-{number}" / "evaluations.jsonl"
            file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return run_folder


def build_page(folder):
    return html_reader.parse_html(write.write_run_page(folder).read_text(encoding="utf-8"))


@pytest.fixture
def drawn_plots(monkeypatch):
    """Name of each plot -> the arguments of `plot_curves`."""
    calls = {}
    draw = curves.plot_curves

    def record_call(plotted_curves, stages, name, title, **more):
        calls[name] = SimpleNamespace(
            curves={curve.name: curve for curve in plotted_curves}, stages=stages, title=title, **more
        )
        return draw(plotted_curves, stages, name, title, **more)

    monkeypatch.setattr(stage_curves, "plot_curves", record_call)
    return calls


STOPPED = (
    evaluation_record(5, 0.3, 0.1, best=True, kept=True, over=False),
    evaluation_record(10, 0.5, 0.3, best=True, kept=True, over=False),
    evaluation_record(15, 0.4, 0.2, best=False, kept=False, over=True),
)


@pytest.mark.slow
def test_curve_contains_the_evaluations_before_within_and_after_each_stage(tmp_path, drawn_plots):
    run_folder = write_measured_run(
        tmp_path / "run", [evaluation_record(5, 0.3), evaluation_record(10, 0.35)], [evaluation_record(20, 0.6)]
    )
    root = build_page(run_folder)
    (change,) = [
        score_change
        for score_change in run_files.load_run_files(run_folder).changes
        if (score_change.suite, score_change.name) == ("helpdesk", "rougeL")
    ]
    base, first, _ = (estimate.value for estimate in change.after_stages)
    plot = drawn_plots["during-rougel"]
    assert plot.stages == ["stage-1", "stage-2"]
    assert plot.curves["helpdesk"].stages == (
        ([0.0, 5.0, 10.0, 20], [base, 0.3, 0.35, first]),
        ([0.0, 20.0], [first, 0.6]),  # the last step has a mid-stage evaluation: it is not drawn twice
    )
    assert (plot.unit, plot.stage_steps, plot.marks) == ("higher is better", [20, 20], [])
    assert drawn_plots["during-response-perplexity"].unit == "lower is better"
    assert list(drawn_plots["during-response-perplexity"].curves) == ["helpdesk"]
    assert drawn_plots["during-response-perplexity"].title == "helpdesk/response_perplexity during training"
    assert "during-combined" not in drawn_plots, "there is no early stopping"
    section = root.find("section", id="during")
    assert len(list(section.find_all("svg"))) == 2
    assert "#during" in [element.attrs["href"] for element in root.find("nav").find_all("a")]
    assert (run_folder / "plots" / "during-rougel.svg").is_file()


@pytest.mark.slow
def test_early_stopping_is_marked_and_described_and_discarded_steps_are_shaded(tmp_path, drawn_plots):
    run_folder = write_measured_run(
        tmp_path / "run", STOPPED, [evaluation_record(10, 0.6), evaluation_record(20, 0.7)], num_steps=15
    )
    root = build_page(run_folder)
    for plot in drawn_plots.values():
        (mark,) = plot.marks
        assert (mark.stage_index, mark.step, mark.text, mark.shaded_until) == (0, 10.0, "best: 10", 15.0)
    assert drawn_plots["during-combined"].curves["combined"].stages[0] == ([0.0, 5.0, 10.0, 15.0], [0.0, 0.1, 0.3, 0.2])
    assert drawn_plots["during-rougel"].curves["helpdesk"].stages[0][0] == [0.0, 5.0, 10.0, 15.0], "its end is at 10"
    text = root.find("section", id="during").text
    assert (
        "stage-1: best at step 10; stopped early after step 15, one evaluation without improvement; the best weights "
        "were restored, and the discarded steps are shaded."
    ) in text
    assert "stage-2: best" not in text
    drawn = html_reader.parse_html(
        (run_folder / "plots" / "during-rougel.svg").read_text(encoding="utf-8").partition("?>")[2]
    )
    assert "best: 10" in [element.text for element in drawn.find_all("text")]
    assert "stage-1: best: 10." in drawn.find("desc").text


def test_stage_that_keeps_its_last_weights_has_no_shading(tmp_path, drawn_plots):
    lines = [{**record, "kept": False} for record in STOPPED]
    root = build_page(write_measured_run(tmp_path / "run", lines, num_steps=15))
    assert [mark.shaded_until for mark in drawn_plots["during-rougel"].marks] == [None]
    assert "restored" not in root.find("section", id="during").text


def test_stage_without_mid_stage_evaluations_keeps_its_length(tmp_path, drawn_plots):
    build_page(write_measured_run(tmp_path / "run", [], [evaluation_record(10, 0.6)]))
    plot = drawn_plots["during-rougel"]
    assert plot.stage_steps == [20, 20]
    assert plot.curves["helpdesk"].stages[0][0] == [0.0, 20], "the values before and after it are known"
    assert plot.curves["helpdesk"].stages[1][0] == [0.0, 10.0, 20]


@pytest.mark.slow
def test_records_of_an_earlier_version_have_no_mark(tmp_path, drawn_plots):
    build_page(write_measured_run(tmp_path / "run", [evaluation_record(5, 0.3, 0.1), evaluation_record(10, 0.5, 0.2)]))
    assert drawn_plots["during-combined"].marks == []


@pytest.mark.slow
def test_unreadable_records_are_counted_and_invalid_values_are_nan_or_left_out(tmp_path, drawn_plots):
    lines = [evaluation_record(5, None), evaluation_record(10, "x"), evaluation_record(15, 0.5), {"step": 16}]
    run_folder = write_measured_run(tmp_path / "run", lines)
    with (run_folder / "stages/stage-1/evaluations.jsonl").open("a") as file:
        file.write('{"step": 20, "sc')
    root = build_page(run_folder)
    assert "stage-1/evaluations.jsonl has 2 line(s) that cannot be read" in root.text
    steps, values = drawn_plots["during-rougel"].curves["helpdesk"].stages[0]
    assert steps == [0.0, 5.0, 15.0, 20]
    assert math.isnan(values[1])


def test_run_without_mid_stage_evaluations_has_no_such_section(tmp_path):
    root = build_page(run_folders.write_run(tmp_path / "run", num_steps=3))
    assert "during" not in [element.attrs.get("id") for element in root.find_all("section")]


def test_hostile_score_names_are_shown_as_text(tmp_path):
    line = {"step": 3, "scores": {f"{run_folders.HOSTILE_TEXT}/{run_folders.HOSTILE_TEXT}": 1.0}, "combined": None}
    root = build_page(write_measured_run(tmp_path / "run", [line]))
    assert len(list(root.find_all("script"))) == 1
    assert list(root.find("section", id="during").find_all("svg"))


def test_numbers_of_mitigations_are_plotted_where_they_were_logged(tmp_path, drawn_plots):
    pull = {"repair/pulls": 1, "repair/triggered.general": 1.0}
    first = evaluation_record(5, 0.3, mitigations={"repair/pulls": 0})
    damaged = evaluation_record(15, 0.4, mitigations="x")
    build_page(write_measured_run(tmp_path / "run", [first, evaluation_record(10, 0.5, mitigations=pull), damaged]))
    plot = drawn_plots["during-repair-pulls"]
    assert plot.title == "repair/pulls during training"
    assert plot.curves["repair/pulls"].stages == (([5.0, 10.0], [0.0, 1.0]),)
    assert drawn_plots["during-repair-triggered-general"].curves["repair/triggered.general"].stages == (
        ([10.0], [1.0]),
    )
