"""Runs that are started from Python: `harness.run`, `run_experiment`, `evaluate`, `compare`, and the notebook."""

from __future__ import annotations

import json

import pytest
from support.paths import ROOT

import harness
from harness.spec import arms


@pytest.mark.slow
def test_a_run_of_a_dict_is_evaluated_compared_and_loaded(tiny_spec, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    run = harness.run(tiny_spec, {"train.steps": 1, "seed": 3}, quiet=True)
    assert capsys.readouterr().out == ""
    assert run.folder.parent == tmp_path / "runs"
    assert (run.spec["train"]["steps"], run.spec["seed"]) == (1, 3)
    assert run.passed
    loaded = harness.load_run(run.name)
    assert loaded.report == run.report
    assert loaded.steps["step"].tolist() == [1]

    evaluation = harness.evaluate(run, quiet=True)
    last = run.scores[run.scores["stage"] == 1].reset_index(drop=True)
    assert evaluation.scores["value"].tolist() == pytest.approx(last["value"].tolist(), rel=1e-5)
    assert evaluation.items("helpdesk")["answer"].tolist() == run.items("helpdesk")["answer"].tolist()

    tuned = harness.evaluate_tuned(tiny_spec, run.folder / "model", ["seed=3"], quiet=True)
    assert tuned.scores["value"].tolist() == pytest.approx(run.scores["value"].tolist(), rel=1e-5)

    comparison = harness.compare(run, loaded.folder, baseline=run)
    assert comparison.scores.empty, "a run that is named twice is one run"
    with pytest.raises(harness.HarnessError, match="the run is finished"):
        harness.resume(run.folder, quiet=True)


@pytest.mark.slow
def test_an_experiment_returns_its_arms(tiny_spec):
    named = {"slow": {"train.learning_rate": 0.001}, "fast": {"train.learning_rate": 0.1}}
    spec = {**tiny_spec, "arms": {"named": named}}
    with pytest.raises(harness.HarnessError, match=r"call harness\.run_experiment\(spec\) instead"):
        harness.run(spec)
    experiment = harness.run_experiment(spec, ["train.steps=1"], quiet=True)
    assert list(experiment.arms) == ["slow", "fast"]
    assert experiment.arms["fast"][0].spec["train"]["learning_rate"] == 0.1
    assert set(experiment.scores["arm"]) == {"slow", "fast"}
    assert {"gain", "gain_low", "forgotten_high"} <= set(experiment.points.columns)
    assert experiment.report["advice"] in repr(experiment)
    with pytest.raises(harness.HarnessError, match=r"call harness\.load_experiment"):
        harness.load_run(experiment.folder)
    with pytest.raises(harness.HarnessError, match=r"call harness\.load_run"):
        harness.load_experiment(experiment.arms["fast"][0].folder)


@pytest.mark.slow
def test_an_experiment_is_resumed_arm_by_arm(tiny_spec):
    named = {"slow": {"train.learning_rate": 0.001}, "fast": {"train.learning_rate": 0.1}, "off": {}}
    spec = {**tiny_spec, "arms": {"named": named}}
    experiment = harness.run_experiment(spec, ["train.steps=1"], arms=["slow"], quiet=True)
    assert list(experiment.arms) == ["slow"]
    resumed = harness.resume(experiment.folder, arms=["fast"], quiet=True)
    assert list(resumed.arms) == ["slow", "fast"]
    with pytest.raises(harness.HarnessError, match="there is no such arm"):
        harness.resume(experiment.folder, arms=["other"], quiet=True)
    with pytest.raises(harness.HarnessError, match="the run has no arms"):
        harness.resume(experiment.arms["slow"][0].folder, arms=["fast"], quiet=True)


def test_bad_input_names_its_place_and_a_remedy(tiny_spec, tmp_path, monkeypatch):
    with pytest.raises(harness.HarnessError, match=r"spec:\d+:\d+ train: unknown key 'stepps'"):
        harness.run({**tiny_spec, "train": {"stepps": 1}})
    with pytest.raises(harness.HarnessError, match=r"--set train\.epochs=\"many\""):
        harness.run(tiny_spec, {"train.epochs": "many"})
    with pytest.raises(harness.HarnessError, match="the object is not JSON"):
        harness.run({**tiny_spec, "seed": object()})
    with pytest.raises(harness.HarnessError, match="a value is not JSON"):
        harness.run(tiny_spec, {"seed": object()})
    with pytest.raises(harness.HarnessError, match="the spec has no arms; call harness"):
        harness.run_experiment(tiny_spec)
    with pytest.raises(harness.HarnessError, match="the file does not exist"):
        harness.run(tmp_path / "none.json")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(harness.HarnessError, match="runs in one process"):
        harness.run(tiny_spec)


def test_overrides_are_those_of_an_arm():
    assert arms.format_overrides({"train.epochs": 2, "model.path": "é"}) == ("train.epochs=2", 'model.path="é"')


@pytest.mark.slow
def test_the_notebook_runs(tiny_spec, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((ROOT / "examples" / "results.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    parameters = [cell for cell in cells if cell["metadata"].get("tags") == ["parameters"]]
    assert len(cells) >= 10
    assert cells[0] in parameters
    variables = {"SPEC": tiny_spec, "OVERRIDES": {"track.enabled": False}}
    for cell in cells[1:]:
        exec("".join(cell["source"]), variables)
    assert set(variables["changed"].index) == set(variables["run"].items("helpdesk")["id"])
    assert variables["comparison"].differences.index.tolist() == ["train.learning_rate"]
    assert {output for cell in cells for output in cell["outputs"]} == set()
