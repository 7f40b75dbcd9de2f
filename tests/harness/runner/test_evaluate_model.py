"""Evaluation without training, new scores of stored answers, and a rebuilt report page."""

from __future__ import annotations

import json
import shutil
import warnings

import pytest
from safetensors.torch import load_file, save_file

LORA = {"lora": {"rank": 2}}
PISSA = {"lora": {"rank": 2, "start": "pissa"}}


@pytest.fixture(scope="module")
def runs(desk):
    """kind -> the folder of a finished run with a metric that compares with the base, made once."""
    made = {}

    def run(kind):
        if kind not in made:
            document = desk.document(mitigations={"full": {}, "lora": LORA, "pissa": PISSA, "merged": LORA}[kind])
            if kind == "merged":
                document = desk.continual({"adapter": "merge"}, mitigations=LORA)
            document["evaluate"]["general"]["metrics"] = {"kl_to_base": {}, "response_perplexity": {}}
            made[kind] = desk.start(document)
        return made[kind]

    return run


def last_scores(place):
    stage = json.loads((place / "scores.json").read_text())["stages"][-1]
    return {(suite, one["name"]): one["value"] for suite, found in stage["suites"].items() for one in found["scores"]}


def measured(out):
    return {(one["suite"], one["name"]): one["value"] for one in json.loads(out)}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "asked"), [("full", 0), ("lora", 0), ("pissa", None), ("merged", None)])
def test_evaluate_repeats_scores_of_last_stage(desk, runs, tmp_path, capsys, generated, kind, asked):
    place = shutil.copytree(runs(kind), tmp_path / "copy")
    generated.clear()
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # of PEFT, when it loads the adapter
        assert desk.command("evaluate", place, "--json") == 0
    found = measured(capsys.readouterr().out)
    assert found == pytest.approx(last_scores(runs(kind)), rel=1e-5, abs=1e-7)
    assert found["general", "kl_to_base"] > 1e-7
    if asked is not None:
        assert sum(generated) == asked, "the same weights were asked before"
    assert json.loads((place / "measured" / "scores.json").read_text())["stage"] == (2 if kind == "merged" else 1)
    for file in (runs(kind) / "predictions").glob("*.jsonl"):
        assert (place / "predictions" / file.name).read_bytes() == file.read_bytes(), "the run's own answers stay"
    assert (place / "scores.json").read_bytes() == (runs(kind) / "scores.json").read_bytes()


def test_base_model_is_evaluated_in_new_folder(desk, runs, capsys):
    assert desk.command("evaluate", desk.write(desk.document())) == 0
    place = desk.newest()
    assert f"saved in {place / 'measured.json'}" in capsys.readouterr().out
    found = json.loads((place / "measured.json").read_text())
    base = json.loads((runs("full") / "scores.json").read_text())["stages"][0]["suites"]["domain"]["scores"]
    assert {one["name"]: one["value"] for one in found["suites"] if one["suite"] == "domain"} == {
        one["name"]: one["value"] for one in base
    }
    assert not (place / "model").exists()


def test_run_without_model_is_refused(desk, runs, listener, tmp_path, capsys):
    place = shutil.copytree(runs("full"), tmp_path / "copy")
    shutil.rmtree(place / "model")
    assert desk.command("evaluate", place) == 2
    assert "the folder has no model of a finished run" in capsys.readouterr().err
    (place / "arms").mkdir()
    assert desk.command("evaluate", place) == 2
    assert "name the folder of one of its arms" in capsys.readouterr().err


def test_adapter_of_other_base_is_one_error_line(desk, runs, tmp_path, capsys):
    place = shutil.copytree(runs("lora"), tmp_path / "copy")
    weights = place / "model/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    assert desk.command("evaluate", place) == 2
    (line,) = (one for one in capsys.readouterr().err.splitlines() if one.startswith("harness: "))
    assert "cannot load the adapter into the model" in line


def test_invalid_spec_creates_no_folder(desk):
    document = desk.document(model={"path": "./nothing"})
    assert desk.command("evaluate", desk.write(document)) == 2
    assert not (desk.folder / f"out{desk.count}").exists()


def test_stored_answers_are_scored_with_other_metrics(desk, runs, capsys):
    place = runs("lora")
    capsys.readouterr()
    assert desk.command("score", place, "--json") == 0
    again = {
        (one["suite"], one["name"]): one["value"] for one in json.loads(capsys.readouterr().out) if one["stage"] == 1
    }
    assert again == last_scores(place)
    assert (
        desk.command("score", place, "--metric", "bleu", "--metric", 'exact_match={"normalise": ["case"]}', "--json")
        == 0
    )
    other = json.loads(capsys.readouterr().out)
    assert {one["metric"] for one in other} == {"bleu", "exact_match"}
    assert {(one["suite"], one["stage"]) for one in other} == {("domain", 0), ("domain", 1)}
    assert desk.command("score", place, "--metric", "bleu={") == 2
    assert "not JSON" in capsys.readouterr().err


def test_report_page_is_rebuilt(desk, runs, tmp_path, capsys):
    place = shutil.copytree(runs("full"), tmp_path / "copy")
    (place / "report.html").unlink()
    assert desk.command("report", place) == 0
    assert str(place / "report.html") in capsys.readouterr().out
    assert (place / "report.html").stat().st_size > 1000


@pytest.mark.parametrize("metric", ["chrf", "response_perplexity"])
def test_model_without_numbers_is_an_error_of_the_evaluation(desk, tmp_path, capsys, metric):
    place = shutil.copytree((desk.folder / "tiny").resolve(), tmp_path / "nan")
    weights = load_file(place / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, place / "model.safetensors", {"format": "pt"})
    document = desk.document(model={"path": str(place)})
    document["evaluate"] = {"domain": {"source": "domain", "metrics": {metric: {}}, "max_new_tokens": 3}}
    assert desk.command("evaluate", desk.write(document)) == 1
    (line,) = (one for one in capsys.readouterr().err.splitlines() if one.startswith("harness: "))
    assert "evaluate.domain: the outputs of the model are not numbers (NaN); its weights are damaged" in line


# -- a model tuned elsewhere ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_tuned_model_gets_the_report_of_the_run_that_trained_it(desk, runs, tmp_path, kind):
    trained = runs(kind)
    document = json.loads((trained / "spec.json").read_text())
    document["gate"] = [{"score": "general/response_nll", "rises_at_most": 1e9}]
    model = shutil.copytree(trained / "model", tmp_path / "elsewhere")
    assert desk.command("evaluate", desk.write(document), "--tuned", model) in (0, 3)
    folder = desk.newest()
    assert folder != trained
    ours, theirs = (json.loads((place / "report.json").read_text()) for place in (folder, trained))
    assert ours["stages"] == ["base", "tuned"]
    assert [change["name"] for change in ours["changes"]] == [change["name"] for change in theirs["changes"]]
    for mine, expected in zip(ours["changes"], theirs["changes"], strict=True):
        assert mine["after"]["value"] == pytest.approx(expected["after"]["value"], rel=1e-5, abs=1e-7)
        assert mine["before"]["value"] == pytest.approx(expected["before"]["value"], rel=1e-5, abs=1e-7)
    assert ours["verdict"]["headline"]
    assert len(ours["gate"]) == 1
    assert (folder / "report.html").is_file()
    assert not (folder / "model").exists()
    assert json.loads((folder / "data.json").read_text())["shares"] == []


def test_evaluation_of_a_tuned_model_cannot_be_resumed_into_training(desk, runs, tmp_path, capsys):
    place = shutil.copytree(runs("full"), tmp_path / "copy")
    (place / "report.json").unlink()
    (place / "tuned.json").write_text("{}")
    assert desk.command("run", "--resume", place) == 2
    assert "--tuned PATH" in capsys.readouterr().err


def test_missing_tuned_model_is_a_clear_error(desk, capsys):
    assert desk.command("evaluate", desk.write(desk.document()), "--tuned", "/no/such/model") == 2
    err = capsys.readouterr().err
    assert "\nharness: --tuned /no/such/model: there is no folder '/no/such/model'" in err
    assert not list((desk.folder / f"out{desk.count}").glob("*/spec.json")), "no folder is created"


def test_a_fully_tuned_model_is_measured_with_the_weights_that_it_was_saved_with(desk, tmp_path, capsys):
    document = desk.document()
    document["train"]["precision"] = "bfloat16"  # stored in float32, as they were trained
    place = desk.start(document)
    for file in (place / "predictions").glob("*.jsonl"):
        file.unlink()  # so that nothing is reused
    capsys.readouterr()
    assert desk.command("evaluate", place, "--json") == 0
    assert measured(capsys.readouterr().out) == pytest.approx(last_scores(place), rel=1e-6)
