"""Scoring the stored items of a run with other metrics, without a model."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from harness import registry
from harness.errors import HarnessError
from harness.evaluation import rescore
from harness.evaluation.predictions import header_path, load_items, open_predictions
from harness.interfaces.component import CORE_DISTRIBUTION
from harness.types import Item

SUITE = {"source": "desk", "role": "domain", "limit": None, "max_new_tokens": 8, "batch_size": 4}
ANSWERS = {0: ["no", "maybe", ""], 1: ["yes", "no", "maybe so"]}
REFERENCES = ["yes", "no", "maybe"]


def build_items(stage):
    return [
        Item(f"id{n}", f"q{n}", reference, answer, "eos" if answer else "empty", nll=2.0 + n, tokens=2)
        for n, (reference, answer) in enumerate(zip(REFERENCES, ANSWERS[stage], strict=True))
    ]


def write_predictions(folder, suite, stage, items):
    with open_predictions(folder, suite, stage, items, {"model": "m"}) as file:
        for item in items:
            file.add_fields(item, "answer", "k", {"answer": item.answer, "finish": item.finish})
    file.finalize(items)


@pytest.fixture
def plugins():
    return registry.discover_plugins(
        [pair for pair in registry.installed_entry_points() if pair[0] == CORE_DISTRIBUTION]
    )


@pytest.fixture
def run(tmp_path):
    spec = {
        "seed": 3,
        "evaluate": {
            "desk": {**SUITE, "metrics": {"exact_match": {}}, "max_empty": 0.2, "lang": "fr"},
            "chat": {**SUITE, "metrics": {"response_perplexity": {}}},
        },
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    for stage in (0, 1):
        write_predictions(tmp_path / "predictions", "desk", stage, build_items(stage))
        write_predictions(tmp_path / "predictions", "chat", stage, [Item("c", "q", "r", nll=1.0, tokens=2)])
    return tmp_path


def test_metrics_of_the_spec_are_scored_again(run, plugins):
    evaluations = rescore.score_run(run, None, plugins)
    assert [(one.stage, one.suite) for one in evaluations] == [(0, "desk"), (0, "chat"), (1, "desk"), (1, "chat")]
    assert [one.scores[0].value for one in evaluations if one.suite == "desk"] == [0.0, 2 / 3]
    assert evaluations[1].scores[0].name == "response_perplexity"
    assert [str(one) for one in evaluations[0].violations] == ["1 of 3 items are empty (33.3%, 20.0% are allowed)"]
    assert evaluations[2].violations == ()


def test_other_metrics_score_the_suites_that_they_apply_to(run, plugins):
    evaluations = rescore.score_run(run, {"rouge": {}, "length_ratio": {}}, plugins, stages=[1])
    assert [(one.stage, one.suite) for one in evaluations] == [(1, "desk")]
    assert {score.metric for score in evaluations[0].scores} == {"rouge", "length_ratio"}
    both = rescore.score_run(run, {"response_perplexity": {}}, plugins, suites=["chat", "desk"])
    assert [one.suite for one in both] == ["desk", "chat", "desk", "chat"]


def test_intervals_equal_those_of_the_run(run, plugins):
    from harness.evaluation.scoring import score_items

    metric = rescore.create_metric(plugins, "chrf", {})
    (during_run,) = score_items(build_items(1), {"chrf": metric}, suite="desk", stage=1)
    (rescored,) = rescore.score_run(run, {"chrf": {}}, plugins, stages=[1])
    assert rescored.scores[0] == during_run


def test_lang_of_the_suite_is_the_default_of_its_metrics(run, plugins):
    evaluations = rescore.score_run(run, {"bleu": {}}, plugins, stages=[1])
    assert "|tok:13a|" in evaluations[0].scores[0].signature
    with_own_lang = rescore.score_run(run, {"bleu": {"lang": "zh"}}, plugins, stages=[1])
    assert "|tok:zh|" in with_own_lang[0].scores[0].signature


@pytest.mark.parametrize(
    ("metrics", "options", "message"),
    [
        ({"rogue": {}}, {}, "did you mean 'rouge'"),
        ({"rouge": {"stemm": True}}, {}, r"metric rouge: .*'stemm' was unexpected.*stem"),
        ({"chrf": {"word_order": 9}}, {}, r"metric chrf\.word_order: 9 is greater"),
        ({"regex": {}}, {}, "metric regex: 'pattern' is a required property"),
        ({"multiple_choice": {}}, {}, "multiple_choice: requires likelihoods of choices, which no suite"),
        (None, {"suites": ["dusk"]}, "suite dusk: does not exist in this run; its suites are: desk, chat"),
        (None, {"stages": [4]}, "has no items of such a suite and stage"),
    ],
)  # fmt: skip
def test_invalid_metrics_suites_and_stages_are_rejected(run, plugins, metrics, options, message):
    with pytest.raises(HarnessError, match=message):
        rescore.score_run(run, metrics, plugins, **options)


def test_folder_without_run_is_rejected(tmp_path, plugins):
    with pytest.raises(HarnessError, match=r"is not the folder of a run: it has no spec\.json"):
        rescore.score_run(tmp_path, None, plugins)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda spec: spec.pop("evaluate"), "KeyError: 'evaluate'"),
        (lambda spec: spec.update(evaluate=[]), "AttributeError"),
        (lambda spec: spec["evaluate"].update(desk=3), "AttributeError"),
        (lambda spec: spec["evaluate"]["desk"].update(named=1), "TypeError: .*'named'"),
        (lambda spec: spec["evaluate"]["desk"].pop("source"), "TypeError: .*'source'"),
        (lambda spec: spec["evaluate"]["desk"].update(metrics=True), "TypeError: metrics is bool"),
    ],
)
def test_damaged_spec_of_a_run_is_one_line(run, plugins, change, said):
    spec = json.loads((run / "spec.json").read_text())
    change(spec)
    (run / "spec.json").write_text(json.dumps(spec))
    match = rf"^{run}/spec\.json: is not the spec of a run for this version \({said}.*; restore the file"
    with pytest.raises(HarnessError, match=match):
        rescore.score_run(run, None, plugins)


def test_suite_with_a_template_of_its_own_is_scored(run, plugins):
    spec = json.loads((run / "spec.json").read_text())
    spec["evaluate"]["desk"]["template"] = {"plain": {}}
    (run / "spec.json").write_text(json.dumps(spec))
    assert len(rescore.score_run(run, None, plugins)) == 4


@pytest.mark.parametrize(("field", "value"), [("reference", None), ("prompt", 3), ("finish", 5), ("slices", [1])])
def test_damaged_item_is_one_line(run, field, value):
    file = run / "predictions" / "desk-stage0.jsonl"
    first, *others = file.read_text().splitlines(keepends=True)
    file.write_text(json.dumps({**json.loads(first), field: value}) + "\n" + "".join(others))
    with pytest.raises(HarnessError, match=r"desk-stage0\.jsonl: an item is damaged: .*; restore the file, or eval"):
        load_items(file)


def test_interrupted_evaluation_is_not_scored(run, plugins):
    file = run / "predictions" / "desk-stage1.jsonl"
    header = header_path(file)
    header.write_text(json.dumps({**json.loads(header.read_text()), "whole": False}))
    file.write_text(file.read_text().splitlines()[0] + "\n")
    with pytest.raises(
        HarnessError, match=r"desk-stage1\.jsonl: the evaluation was interrupted: it has some of 3 items"
    ):
        rescore.score_run(run, None, plugins)


@pytest.mark.slow
def test_text_metrics_do_not_import_torch(run):
    program = f"""
import sys
from harness import registry
from harness.evaluation import rescore
from harness.interfaces.component import CORE_DISTRIBUTION
core = [pair for pair in registry.installed_entry_points() if pair[0] == CORE_DISTRIBUTION]
plugins = registry.discover_plugins(core)
names = ("bleu", "rouge", "chrf", "ter", "token_f1", "exact_match", "json_valid", "distinct", "length_ratio")
evaluations = rescore.score_run({str(run)!r}, {{name: {{}} for name in names}}, plugins)
assert len(evaluations) == 2
heavy = {{"torch", "transformers", "datasets", "evaluate", "mlflow"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True)
