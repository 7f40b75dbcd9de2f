"""A run's items scored again, with other metrics, without a model."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from harness import registry
from harness.errors import HarnessError
from harness.evaluation import rescore
from harness.evaluation.predictions import open_predictions
from harness.types import Item

SUITE = {"source": "desk", "role": "domain", "limit": None, "max_new_tokens": 8, "batch_size": 4}
ANSWERS = {0: ["no", "maybe", ""], 1: ["yes", "no", "maybe so"]}
REFERENCES = ["yes", "no", "maybe"]


def items(stage):
    return [
        Item(f"id{n}", f"q{n}", reference, answer, "eos" if answer else "empty", nll=2.0 + n, tokens=2)
        for n, (reference, answer) in enumerate(zip(REFERENCES, ANSWERS[stage], strict=True))
    ]


def keep(folder, suite, stage, found):
    with open_predictions(folder, suite, stage, found, {"model": "m"}) as file:
        for item in found:
            file.add_fields(item, "answer", "k", {"answer": item.answer, "finish": item.finish})


@pytest.fixture
def found():
    return registry.discover_plugins(
        [pair for pair in registry.installed_entry_points() if pair[0] == registry.CORE_DISTRIBUTION]
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
        keep(tmp_path / "predictions", "desk", stage, items(stage))
        keep(tmp_path / "predictions", "chat", stage, [Item("c", "q", "r", nll=1.0, tokens=2)])
    return tmp_path


def test_a_runs_own_metrics_are_drawn_again(run, found):
    made = rescore.score_run(run, None, found)
    assert [(one.stage, one.suite) for one in made] == [(0, "desk"), (0, "chat"), (1, "desk"), (1, "chat")]
    assert [one.scores[0].value for one in made if one.suite == "desk"] == [0.0, 2 / 3]
    assert made[1].scores[0].name == "response_perplexity"
    assert [str(breach) for breach in made[0].violations] == ["1 of 3 items are empty (33.3%, 20.0% are allowed)"]
    assert made[2].violations == ()


def test_other_metrics_score_the_suites_that_have_what_they_read(run, found):
    made = rescore.score_run(run, {"rouge": {}, "length_ratio": {}}, found, stages=[1])
    assert [(one.stage, one.suite) for one in made] == [(1, "desk")]
    assert {score.metric for score in made[0].scores} == {"rouge", "length_ratio"}
    both = rescore.score_run(run, {"response_perplexity": {}}, found, suites=["chat", "desk"])
    assert [one.suite for one in both] == ["desk", "chat", "desk", "chat"]


def test_intervals_are_those_of_the_run_itself(run, found):
    from harness.evaluation.scoring import score_items

    metric = rescore.create_metric(found, "chrf", {})
    (own,) = score_items(items(1), {"chrf": metric}, seed=3, suite="desk", stage=1)
    (again,) = rescore.score_run(run, {"chrf": {}}, found, stages=[1])
    assert again.scores[0] == own


def test_a_suites_language_reaches_its_metrics_and_an_own_one_stays(run, found):
    made = rescore.score_run(run, {"bleu": {}}, found, stages=[1])
    assert "|tok:13a|" in made[0].scores[0].signature
    own = rescore.score_run(run, {"bleu": {"lang": "zh"}}, found, stages=[1])
    assert "|tok:zh|" in own[0].scores[0].signature


@pytest.mark.parametrize(
    ("metrics", "options", "text"),
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
def test_what_cannot_be_scored_is_named(run, found, metrics, options, text):
    with pytest.raises(HarnessError, match=text):
        rescore.score_run(run, metrics, found, **options)


def test_what_is_no_run_is_named(tmp_path, found):
    with pytest.raises(HarnessError, match=r"is not the folder of a run: it has no spec\.json"):
        rescore.score_run(tmp_path, None, found)


def test_items_of_an_evaluation_that_was_cut_off_are_not_scored(run, found):
    file = run / "predictions" / "desk-stage1.jsonl"
    header, *lines = file.read_text().splitlines()
    facts = json.loads(header)
    facts["header"]["whole"] = False
    file.write_text("\n".join([json.dumps(facts), *lines[:1]]) + "\n")
    with pytest.raises(
        HarnessError, match=r"desk-stage1\.jsonl: the evaluation was interrupted: it has some of 3 items"
    ):
        rescore.score_run(run, None, found)


def test_scoring_text_imports_no_torch(run):
    program = f"""
import sys
from harness import registry
from harness.evaluation import rescore
core = [pair for pair in registry.installed_entry_points() if pair[0] == registry.CORE_DISTRIBUTION]
found = registry.discover_plugins(core)
names = ("bleu", "rouge", "chrf", "ter", "token_f1", "exact_match", "json_valid", "distinct", "length_ratio")
made = rescore.score_run({str(run)!r}, {{name: {{}} for name in names}}, found)
assert len(made) == 2
heavy = {{"torch", "transformers", "datasets", "evaluate", "mlflow"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True)
