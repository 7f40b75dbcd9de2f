"""Intransigence: a joint arm's end against each task right after its own stage, in the metric's better direction."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console
from support import example_run, html_reader

from harness.report import arm_comparison, finished_run, run_report
from harness.report.html import write
from harness.terminal.arms_table import format_arms

ITEMS = 40
SPEC = {"evaluate": {"helpdesk": {"role": "domain"}, "general": {"role": "general"}}}


def finished(folder, rouge, nll):
    """A run of as many stages as there are values: `helpdesk`, taught by the first stage, has them after each."""
    stages = [
        (
            example_run.made_evaluation(
                stage, "helpdesk", [value + 0.01 * (i % 3) for i in range(ITEMS)], [nats] * ITEMS
            ),
            example_run.made_evaluation(stage, "general", [0.5] * ITEMS, [20.0] * ITEMS),
        )
        for stage, (value, nats) in enumerate(zip(rouge, nll, strict=True))
    ]
    plan = example_run.made_plan(len(rouge) - 1)
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(json.dumps(SPEC))
    run_report.build_report(plan, stages, example_run.BY_SUITE, seed=0, run_info={}).write(folder)
    return finished_run.load_finished_run(folder)


@pytest.fixture
def experiment(tmp_path):
    runs = {
        "others": finished(tmp_path / "others", (0.1, 0.3, 0.2), (30.0, 25.0, 25.0)),
        "stages": finished(tmp_path / "stages", (0.1, 0.4, 0.2), (30.0, 20.0, 25.0)),
        "joint": finished(tmp_path / "joint", (0.1, 0.5), (30.0, 10.0)),
    }
    return arm_comparison.compare_arms("sweep", tmp_path, runs, example_run.BY_SUITE, seed=0, joint="joint")


def test_it_is_the_joint_end_less_the_own_stage_positive_where_the_stages_learned_less(experiment):
    found = {one.score: one for one in experiment.intransigence if one.arm == "stages"}
    assert {one.arm for one in experiment.intransigence} == {"others", "stages"}
    # Both suites are taught by the first stage; on `general` nothing moves.
    assert found["rougeL"].suites == ("helpdesk", "general")
    assert found["rougeL"].value.value == pytest.approx((0.5 - 0.4) / 2)
    ratio = example_run.METRICS["response_perplexity"]
    gap = ratio.aggregate("", (20.0, 10.0)) - ratio.aggregate("", (10.0, 10.0))
    assert found["response_perplexity"].value.value == pytest.approx(gap / 2), "a lower perplexity is more learned"
    assert found["rougeL"].value.n == 2 * ITEMS
    assert found["rougeL"].value.low <= found["rougeL"].value.value <= found["rougeL"].value.high


def test_it_is_shown_and_kept(experiment, tmp_path):
    stream = io.StringIO()
    Console(file=stream, width=120, color_system=None, highlight=False).print(format_arms(experiment))
    assert "intransigence" in stream.getvalue()
    assert "'joint', trained on all tasks together" in stream.getvalue().replace("\n", " ")
    experiment.write(tmp_path)
    document = json.loads((tmp_path / "arms.json").read_text())
    assert document["joint"] == "joint"
    assert document["intransigence"][0]["arm"] == "others"
    assert document["intransigence"][0]["value"]["value"] == pytest.approx(0.1)


def test_without_a_joint_arm_or_its_result_there_is_none(tmp_path):
    runs = {"stages": finished(tmp_path / "stages", (0.1, 0.4), (30.0, 20.0))}
    assert arm_comparison.compare_arms("one", tmp_path, runs, example_run.BY_SUITE, seed=0).intransigence == ()
    assert (
        arm_comparison.compare_arms("one", tmp_path, runs, example_run.BY_SUITE, seed=0, joint="joint").intransigence
        == ()
    )


def test_the_joint_arm_is_a_reference_and_is_not_recommended(experiment):
    assert "'joint' forgets" not in experiment.recommendation_text


def test_the_page_of_the_experiment_has_it_with_its_interval_and_says_who_the_reference_is(experiment, tmp_path):
    experiment.write(tmp_path)
    root = html_reader.parse_html(write.write_experiment_page(tmp_path).read_text(encoding="utf-8"))
    assert "#intransigence" in [one.attrs["href"] for one in root.find("nav").find_all("a")]
    assert experiment.intransigence
    for one in experiment.intransigence:
        row = root.find("tr", data_intransigence=f"{one.arm}:{one.score}")
        shown = [float(data.attrs["value"]) for data in row.find_all("data")]
        assert shown == pytest.approx([one.value.value, one.value.low, one.value.high])
        assert row.find("td", class_="description").text == "helpdesk, general"
    titles = [one.text for one in root.find("section", id="intransigence").find_all("span", class_="stay")]
    assert titles == ["rougeL", "response_perplexity"], "each score once, with the arms below it"
    assert "reference" in root.find("tr", data_arm="joint").text
    assert "reference" not in root.find("tr", data_arm="stages").text


def test_a_task_that_both_measured_by_other_options_is_left_out_and_costs_nothing_else(tmp_path):
    """It is found when all arms have run: it must not cost their comparison."""
    runs = {
        "stages": finished(tmp_path / "stages", (0.1, 0.4, 0.2), (30.0, 20.0, 25.0)),
        "joint": finished(tmp_path / "joint", (0.1, 0.5), (30.0, 10.0)),
    }

    def otherwise(one):
        scores = (replace(some, signature="of:another") if some.name == "rougeL" else some for some in one.scores)
        return replace(one, scores=tuple(scores)) if one.suite == "helpdesk" else one

    stages = tuple(tuple(map(otherwise, stage)) for stage in runs["joint"].evaluations)
    runs["joint"] = replace(runs["joint"], evaluations=stages)
    axes = {"gain_score": "general/rougeL", "forgetting_score": "general/rougeL"}
    made = arm_comparison.compare_arms("sweep", tmp_path, runs, example_run.BY_SUITE, seed=0, joint="joint", **axes)
    found = {one.score: one.suites for one in made.intransigence}
    assert found == {"rougeL": ("general",), "response_perplexity": ("helpdesk", "general")}
    assert any(one.startswith("helpdesk/rougeL is not compared for 'joint'") for one in made.notes)


def test_the_joint_arm_is_no_value_of_what_the_others_vary(tmp_path):
    """It differs in its mode too; the arms beside it still differ in one number."""

    def spec(share, **more):
        return {**SPEC, "mitigations": {"mixing": {"share": share}}, **more}

    runs = {}
    for name, given in (
        ("a", spec(0.0)), ("b", spec(0.1)), ("joint", spec(0.5, mode={"mixed": {}}, train={"steps": 9})),
    ):  # fmt: skip
        finished(tmp_path / "arms" / name, (0.1, 0.5), (30.0, 20.0))
        (tmp_path / "arms" / name / "spec.json").write_text(json.dumps(given))
        runs[name] = finished_run.load_finished_run(tmp_path / "arms" / name)
    made = arm_comparison.compare_arms("sweep", tmp_path, runs, example_run.BY_SUITE, seed=0, joint="joint")
    assert "mitigations.mixing.share of 0 %" in made.recommendation_text
    made.write(tmp_path)
    write.write_experiment_page(tmp_path)
    drawn = html_reader.parse_html((tmp_path / "plots" / "sweep.svg").read_text(encoding="utf-8").partition("?>")[2])
    assert [one.text for one in drawn.find_all("text")].count("joint") == 2, "a level line in both halves"
