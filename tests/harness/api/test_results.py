"""Results that are read from the folder of a run, without a model."""

from __future__ import annotations

import json

import pytest
from support import example_run, run_folders

import harness
from harness.terminal.console import Console


@pytest.fixture
def folder(tmp_path):
    return run_folders.write_run(tmp_path / "mixed-sft-1", stages=2)


def test_scores_have_a_row_for_each_stage_and_score(folder):
    run = harness.load_run(folder)
    assert run.stages == ("base", "stage-1", "stage-2")
    assert len(run.scores) == 3 * 2 * 2
    row = run.scores.query("stage_name == 'stage-2' and suite == 'helpdesk' and score == 'rougeL'").iloc[0]
    (evaluation, _) = example_run.made_evaluations(2)[2]
    assert (row["stage"], row["role"], row["n"], row["value"]) == (2, "domain", 40, evaluation.scores[0].value)
    assert set(run.scores["role"]) == {"domain", "general"}


def test_matrix_has_a_row_for_each_stage(folder):
    matrix = harness.load_run(folder).matrix
    assert matrix.index.tolist() == ["base", "stage-1", "stage-2"]
    assert matrix["helpdesk", "rougeL"].tolist() == pytest.approx([0.22, 0.42, 0.62])
    assert matrix.columns.names == ["suite", "score"]


def test_changes_and_summaries_are_those_of_the_report(folder):
    run = harness.load_run(folder)
    report = json.loads((folder / "report.json").read_text())
    assert run.report == report
    assert run.headline == report["verdict"]["headline"]
    assert run.changes["difference"].tolist() == [change["difference"]["value"] for change in report["changes"]]
    assert run.changes["difference_low"].tolist() == [change["difference"]["low"] for change in report["changes"]]
    assert set(run.forgetting["summary"]) == {name for matrix in report["forgetting"] for name in matrix["summaries"]}


def test_items_have_their_own_scores(folder):
    run = harness.load_run(folder)
    items = run.items("helpdesk", "stage-1")
    assert items["id"].tolist() == [f"id{i}" for i in range(40)]
    assert items["answer"][3] == "stage 1 says 3"
    assert items["rougeL"].tolist() == pytest.approx([0.4 + 0.01 * (i % 5) for i in range(40)])
    assert run.items("helpdesk", 0)["answer"][3] == "stage 0 says 3"
    assert run.items("helpdesk").equals(run.items("helpdesk", 2))


def test_steps_of_all_stages_are_in_order(folder):
    steps = harness.load_run(folder).steps
    assert steps["stage"].unique().tolist() == ["stage-1", "stage-2"]
    assert steps["step"].tolist() == [*range(1, 121), *range(1, 121)]
    assert steps["step"].dtype == int
    assert {"loss", "learning_rate", "penalty/ewc"} <= set(steps.columns)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "there is no suite 'nowhere'; there are: helpdesk, general"),
        (("general", "stage-9"), "there is no stage 'stage-9'; there are: base, stage-1, stage-2"),
        (("general", 3), "there is no stage 3"),
    ],
)
def test_unknown_suites_and_stages_are_named(folder, arguments, message):
    with pytest.raises(harness.HarnessError, match=message):
        harness.load_run(folder).items(*arguments)


def test_missing_files_are_named_with_a_remedy(folder):
    run = harness.load_run(folder)
    (folder / "predictions" / "general-stage2.jsonl").unlink()
    with pytest.raises(harness.HarnessError, match=r"general-stage2\.jsonl: the items were not stored"):
        run.items("general")
    (folder / "report.json").unlink()
    unfinished = harness.load_run(folder)
    assert not unfinished.is_finished
    assert len(unfinished.scores) == 12
    assert "not finished" in repr(unfinished)
    with pytest.raises(harness.HarnessError, match="finish the run first: harness run --resume"):
        _ = unfinished.report


def test_items_of_the_former_format_have_no_scores(folder):
    file = folder / "predictions" / "general-stage1.jsonl"
    (folder / "predictions" / "general-stage1.header.json").unlink()
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for record in records:
        del record["scores"]
    lines = [{"header": {"suite": "general", "whole": True}}, *records]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    items = harness.load_run(folder).items("general", 1)
    assert len(items) == 40
    assert "rougeL" not in items.columns


def test_an_experiment_has_the_runs_of_every_seed(tmp_path):
    folder = run_folders.write_experiment(tmp_path / "sweep", shares=(None, 0.1))
    (folder / "spec.json").write_text("{}")
    again = run_folders.write_run(folder / "arms" / "naive,seed=1", spec=run_folders.run_spec(seed=1))
    arms_json = json.loads((folder / "arms.json").read_text())
    arms_json["arms"]["naive"] = {"0": "/elsewhere/arms/naive", "1": "/elsewhere/arms/naive,seed=1"}
    spread = {"values": [0.2, 0.4], "sd": 0.1, "over_seeds": {"value": 0.3, "low": 0.1, "high": 0.5}}
    arms_json["points"][0]["gain_spread"] = spread
    (folder / "arms.json").write_text(json.dumps(arms_json))
    experiment = harness.load_experiment(folder)
    assert {name: list(runs) for name, runs in experiment.arms.items()} == {"naive": [0, 1], "share=0.1": [0]}
    assert experiment.arms["naive"][1].folder == again
    assert experiment.points["arm"].tolist() == ["naive", "share=0.1"]
    first = experiment.points.iloc[0]
    assert (first["gain_sd"], first["gain_over_seeds_low"], first["gain_over_seeds_high"]) == (0.1, 0.1, 0.5)
    (folder / "arms.json").write_text(json.dumps({**arms_json, "arms": {"naive": "runs/arms/naive"}}))
    assert list(harness.load_experiment(folder).arms["naive"]) == [0]


@pytest.mark.slow
def test_two_runs_are_compared_as_frames(tmp_path):
    from support import compared_runs

    first = compared_runs.write_finished_run(tmp_path / "first", 0.2, 1)
    second = compared_runs.write_finished_run(tmp_path / "second", 0.9, 2)
    comparison = harness.compare(first, harness.load_run(second), score="desk/exact_match", items=2)
    assert comparison.runs["name"].tolist() == ["first", "second"]
    row = comparison.scores.set_index("score").loc["exact_match"]
    assert (row["run"], row["baseline"], row["verdict"]) == ("second", "first", "better")
    assert row["difference_low"] > 0
    assert len(comparison.items) == 2


def test_a_notebook_gets_bars_if_widgets_are_installed(monkeypatch):
    monkeypatch.setattr("harness.terminal.console.RichConsole.is_jupyter", True, raising=False)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    for installed, mode in ((True, "terminal"), (False, "plain")):
        monkeypatch.setattr("harness.terminal.console.find_spec", lambda name, found=installed: found or None)
        assert Console.from_options().mode == mode
