"""Intransigence: the joint arm's final score minus each task's score right after its stage, as utilities."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from support import example_run, html_reader

from harness.report import arm_comparison, finished_run, run_report
from harness.report.html import write

ITEMS = 40
SPEC = {"evaluate": {"helpdesk": {"role": "domain"}, "general": {"role": "general"}}}


def write_finished_run(folder, rouge, nll):
    """Write a run with one stage per value: the scores of `helpdesk`, which the first stage teaches."""
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
        "others": write_finished_run(tmp_path / "others", (0.1, 0.3, 0.2), (30.0, 25.0, 25.0)),
        "stages": write_finished_run(tmp_path / "stages", (0.1, 0.4, 0.2), (30.0, 20.0, 25.0)),
        "joint": write_finished_run(tmp_path / "joint", (0.1, 0.5), (30.0, 10.0)),
    }
    return arm_comparison.compare_arms(
        "sweep", tmp_path, runs, example_run.BY_SUITE, arm_comparison.ComparisonSettings(joint="joint"), seed=0
    )


def test_intransigence_is_joint_minus_own_stage(experiment):
    by_score = {one.score: one for one in experiment.intransigence if one.arm == "stages"}
    assert {one.arm for one in experiment.intransigence} == {"others", "stages"}
    # Both suites are taught by the first stage; on `general` nothing moves.
    assert by_score["rougeL"].suites == ("helpdesk", "general")
    assert by_score["rougeL"].value.value == pytest.approx((0.5 - 0.4) / 2)
    ratio = example_run.METRICS["response_perplexity"]
    gap = ratio.aggregate("", (20.0, 10.0)) - ratio.aggregate("", (10.0, 10.0))
    assert by_score["response_perplexity"].value.value == pytest.approx(gap / 2), "a lower perplexity is more learned"
    assert by_score["rougeL"].value.n == 2 * ITEMS
    assert by_score["rougeL"].value.low <= by_score["rougeL"].value.value <= by_score["rougeL"].value.high


@pytest.mark.slow
def test_intransigence_is_written(experiment, tmp_path):
    experiment.write(tmp_path)
    document = json.loads((tmp_path / "arms.json").read_text())
    assert document["joint"] == "joint"
    assert document["intransigence"][0]["arm"] == "others"
    assert document["intransigence"][0]["value"]["value"] == pytest.approx(0.1)


def test_no_joint_result_means_no_intransigence(tmp_path):
    runs = {"stages": write_finished_run(tmp_path / "stages", (0.1, 0.4), (30.0, 20.0))}
    assert arm_comparison.compare_arms("one", tmp_path, runs, example_run.BY_SUITE, seed=0).intransigence == ()
    assert (
        arm_comparison.compare_arms(
            "one", tmp_path, runs, example_run.BY_SUITE, arm_comparison.ComparisonSettings(joint="joint"), seed=0
        ).intransigence
        == ()
    )


def test_joint_arm_is_not_recommended(experiment):
    assert "'joint' forgets" not in experiment.recommendation_text


def test_experiment_page_has_intransigence_and_its_reference(experiment, tmp_path):
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


@pytest.mark.slow
def test_task_with_other_signature_is_ignored(tmp_path):
    """The mismatch is found after all arms have run, so it must not prevent their comparison."""
    runs = {
        "stages": write_finished_run(tmp_path / "stages", (0.1, 0.4, 0.2), (30.0, 20.0, 25.0)),
        "joint": write_finished_run(tmp_path / "joint", (0.1, 0.5), (30.0, 10.0)),
    }

    def with_other_signature(one):
        scores = (replace(some, signature="of:another") if some.name == "rougeL" else some for some in one.scores)
        return replace(one, scores=tuple(scores)) if one.suite == "helpdesk" else one

    stages = tuple(tuple(map(with_other_signature, stage)) for stage in runs["joint"].evaluations)
    runs["joint"] = replace(runs["joint"], evaluations=stages)
    axes = {"gain_score": "general/rougeL", "forgetting_score": "general/rougeL"}
    comparison = arm_comparison.compare_arms(
        "sweep", tmp_path, runs, example_run.BY_SUITE, arm_comparison.ComparisonSettings(joint="joint", **axes), seed=0
    )
    by_score = {one.score: one.suites for one in comparison.intransigence}
    assert by_score == {"rougeL": ("general",), "response_perplexity": ("helpdesk", "general")}
    assert any(one.startswith("helpdesk/rougeL is not compared for 'joint'") for one in comparison.notes)


@pytest.mark.slow
def test_joint_arm_is_not_part_of_the_sweep(tmp_path):
    """It also differs in its mode; the other arms still differ in one number."""

    def spec(share, **more):
        return {**SPEC, "mitigations": {"mixing": {"share": share}}, **more}

    runs = {}
    for name, given in (
        ("a", spec(0.0)), ("b", spec(0.1)), ("joint", spec(0.5, mode={"mixed": {}}, train={"steps": 9})),
    ):  # fmt: skip
        write_finished_run(tmp_path / "arms" / name, (0.1, 0.5), (30.0, 20.0))
        (tmp_path / "arms" / name / "spec.json").write_text(json.dumps(given))
        runs[name] = finished_run.load_finished_run(tmp_path / "arms" / name)
    comparison = arm_comparison.compare_arms(
        "sweep", tmp_path, runs, example_run.BY_SUITE, arm_comparison.ComparisonSettings(joint="joint"), seed=0
    )
    assert "mitigations.mixing.share of 0 %" in comparison.recommendation_text
    comparison.write(tmp_path)
    write.write_experiment_page(tmp_path)
    drawn = html_reader.parse_html((tmp_path / "plots" / "sweep.svg").read_text(encoding="utf-8").partition("?>")[2])
    assert [one.text for one in drawn.find_all("text")].count("joint") == 2, "a level line in both halves"
