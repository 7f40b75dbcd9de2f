"""Evaluations within the stages on the page of a run: their curves, where a stage ended early, and what is missing."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
from support import html_reader, run_folders

from harness.report.html import run_files, stage_curves, write
from harness.report.html.plots import curves

UPDATES = 20


def look(step, rouge, combined=None, **flags):
    """A line of `evaluations.jsonl`."""
    scores = {"helpdesk/rougeL": rouge, "general/rougeL": 0.5, "helpdesk/response_perplexity": 10.0}
    return {"step": step, "scores": scores, "combined": combined, **flags}


def measured(folder, *stages, updates=UPDATES):
    """The folder of a run in each of whose stages was measured what is given."""
    made = run_folders.finished(folder, stages=len(stages), updates=updates)
    for number, lines in enumerate(stages, start=1):
        if lines:
            file = made / "stages" / f"stage-{number}" / "evaluations.jsonl"
            file.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return made


def page(folder):
    return html_reader.parse(write.write_run_page(folder).read_text(encoding="utf-8"))


@pytest.fixture
def asked(monkeypatch):
    """Name of each plot -> what was to be drawn."""
    found = {}
    draw = curves.plot_curves

    def noted(given, stages, name, title, **more):
        found[name] = SimpleNamespace(curves={one.name: one for one in given}, stages=stages, title=title, **more)
        return draw(given, stages, name, title, **more)

    monkeypatch.setattr(stage_curves, "plot_curves", noted)
    return found


STOPPED = (look(5, 0.3, 0.1, best=True, kept=True, over=False), look(10, 0.5, 0.3, best=True, kept=True, over=False),
           look(15, 0.4, 0.2, best=False, kept=False, over=True))  # fmt: skip


def test_a_curve_goes_through_what_was_measured_before_within_and_after_each_stage(tmp_path, asked):
    made = measured(tmp_path / "run", [look(5, 0.3), look(10, 0.35)], [look(20, 0.6)])
    root = page(made)
    (change,) = [
        one for one in run_files.load_run_files(made).changes if (one.suite, one.name) == ("helpdesk", "rougeL")
    ]
    base, first, _ = (one.value for one in change.after_stages)
    plot = asked["during-rougel"]
    assert plot.stages == ["stage-1", "stage-2"]
    assert plot.curves["helpdesk"].stages == (
        ([0.0, 5.0, 10.0, 20], [base, 0.3, 0.35, first]),
        ([0.0, 20.0], [first, 0.6]),  # the last update was measured within: it is not drawn twice
    )
    assert (plot.unit, plot.stage_steps, plot.marks) == ("higher is better", [20, 20], [])
    assert asked["during-response-perplexity"].unit == "lower is better"
    assert list(asked["during-response-perplexity"].curves) == ["helpdesk"]
    assert asked["during-response-perplexity"].title == "helpdesk/response_perplexity on the way"
    assert "during-combined" not in asked, "nothing could end a stage"
    section = root.one("section", id="during")
    assert len(list(section.all("svg"))) == 2
    assert "#during" in [one.attrs["href"] for one in root.one("nav").all("a")]
    assert (made / "plots" / "during-rougel.svg").is_file()


def test_where_a_stage_ended_early_is_marked_and_said_and_what_was_put_aside_is_shaded(tmp_path, asked):
    made = measured(tmp_path / "run", STOPPED, [look(10, 0.6), look(20, 0.7)], updates=15)
    root = page(made)
    for plot in asked.values():
        (mark,) = plot.marks
        assert (mark.stage_index, mark.step, mark.text, mark.shaded_until) == (0, 10.0, "best: 10", 15.0)
    assert asked["during-combined"].curves["combined"].stages[0] == ([0.0, 5.0, 10.0, 15.0], [0.0, 0.1, 0.3, 0.2])
    assert asked["during-rougel"].curves["helpdesk"].stages[0][0] == [0.0, 5.0, 10.0, 15.0], "its end is at 10"
    text = root.one("section", id="during").text
    assert (
        "stage-1: best at update 10; ended early after update 15, one evaluation without improvement; the weights of "
        "the best were put back, and what came after it is shaded."
    ) in text
    assert "stage-2: best" not in text
    drawn = html_reader.parse((made / "plots" / "during-rougel.svg").read_text(encoding="utf-8").partition("?>")[2])
    assert "best: 10" in [one.text for one in drawn.all("text")]
    assert "stage-1: best: 10." in drawn.one("desc").text


def test_a_stage_that_keeps_its_last_weights_has_its_best_marked_and_nothing_shaded(tmp_path, asked):
    lines = [{**one, "kept": False} for one in STOPPED]
    root = page(measured(tmp_path / "run", lines, updates=15))
    assert [one.shaded_until for one in asked["during-rougel"].marks] == [None]
    assert "put back" not in root.one("section", id="during").text


def test_a_stage_that_was_not_measured_within_keeps_its_length(tmp_path, asked):
    page(measured(tmp_path / "run", [], [look(10, 0.6)]))
    plot = asked["during-rougel"]
    assert plot.stage_steps == [20, 20]
    assert plot.curves["helpdesk"].stages[0][0] == [0.0, 20], "where it begins and ends is known"
    assert plot.curves["helpdesk"].stages[1][0] == [0.0, 10.0, 20]


def test_lines_of_an_earlier_version_are_drawn_without_a_mark(tmp_path, asked):
    page(measured(tmp_path / "run", [look(5, 0.3, 0.1), look(10, 0.5, 0.2)]))
    assert asked["during-combined"].marks == []


def test_what_cannot_be_read_is_said_and_a_value_that_is_no_number_is_left_out(tmp_path, asked):
    lines = [look(5, None), look(10, "x"), look(15, 0.5), {"step": 16}]
    made = measured(tmp_path / "run", lines)
    with (made / "stages/stage-1/evaluations.jsonl").open("a") as file:
        file.write('{"step": 20, "sc')
    root = page(made)
    assert "stage-1/evaluations.jsonl has 2 line(s) that cannot be read" in root.text
    updates, values = asked["during-rougel"].curves["helpdesk"].stages[0]
    assert updates == [0.0, 5.0, 15.0, 20]
    assert math.isnan(values[1])


def test_a_run_that_measured_nothing_within_has_no_such_section(tmp_path):
    root = page(run_folders.finished(tmp_path / "run", updates=3))
    assert "during" not in [one.attrs.get("id") for one in root.all("section")]


def test_hostile_scores_are_text(tmp_path):
    line = {"step": 3, "scores": {f"{run_folders.NASTY}/{run_folders.NASTY}": 1.0}, "combined": None}
    root = page(measured(tmp_path / "run", [line]))
    assert len(list(root.all("script"))) == 1
    assert list(root.one("section", id="during").all("svg"))
