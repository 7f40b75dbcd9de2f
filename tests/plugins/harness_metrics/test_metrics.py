"""Properties of every built-in metric."""

from __future__ import annotations

import inspect
import subprocess
import sys

import harness_metrics
import pytest
from harness_metrics.base import TextMetric

from harness import HarnessError, Item, Metric

COMPONENTS = harness_metrics.harness_metrics()
TEXT = ["bleu", "rouge", "chrf", "ter", "exact_match", "token_f1"]
"""Metrics that compare an answer with its reference."""
ENCODED = ["bertscore"]
"""Metrics that compare an answer with its reference by a model."""
FORM = ["distinct", "length_ratio", "regex", "json_valid", "refusal", "toxicity"]
"""Metrics of the answer only, or of its length."""
RULES = ["classification", "instructions", "numeric_match", "tool_calls"]
"""Metrics that check an answer by rules."""
READ = ["response_perplexity", "multiple_choice", "bits_per_byte", "kl_to_base", "agreement_with_base"]
REQUIRED = {"regex": {"pattern": "the"}, "bertscore": {"model": "encoder"}}
ANSWERS = ["The dog bit the man.", "", "今天天气很好。", "It was Ａ surprise"]
REFERENCES = ["The dog had bit the man.", "No one was.", "今天天气非常好。", "It was a surprise!"]


def test_all_built_in_metrics_are_declared():
    assert set(COMPONENTS) == {*TEXT, *ENCODED, *FORM, *READ, *RULES, "lm_eval", "judge", "pass_at_k", "self_bleu"}


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_option_has_a_default_and_is_used(name):
    import importlib

    module, factory = COMPONENTS[name].factory.split(":")
    read = inspect.signature(getattr(importlib.import_module(module), factory)).parameters
    assert list(COMPONENTS[name].options) == list(read)
    options = COMPONENTS[name].options
    assert [key for key in options if "default" not in options[key]] == list(COMPONENTS[name].required)
    assert all(schema["description"] for schema in options.values())
    assert all(parameter.default is inspect.Parameter.empty for parameter in read.values())


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize(
    "text", ["今天天气很好，我们去公园玩。", "今日は公園へ行きました。", "오늘은 공원에 갔다", "用Python写代码 now 好"]
)
def test_identical_text_without_spaces_has_the_best_score(score, name, text):
    full = {"bleu": 100.0, "chrf": 100.0, "ter": 0.0}.get(name, 1.0)  # of TER, the errors
    scores = score(name, [text], [text])
    assert scores == pytest.approx(dict.fromkeys(scores, full))


@pytest.mark.parametrize("name", [name for name in TEXT if name != "ter"])
def test_an_empty_answer_scores_0_and_is_counted(score, name):
    assert set(score(name, [""], ["text of four words"]).values()) == {0.0}
    full = score(name, ["text of four words"], ["text of four words"])
    half = score(name, ["text of four words", ""], ["text of four words"] * 2)
    assert all(half[key] < 0.7 * full[key] for key in full)


@pytest.mark.parametrize("name", TEXT + ENCODED + FORM)
def test_a_missing_answer_is_an_error(metric, name):
    with pytest.raises(HarnessError, match="no answer to score"):
        metric(name, **REQUIRED.get(name, {})).statistics(Item("x", "", "reference"))


@pytest.mark.parametrize("name", READ)
def test_a_missing_measurement_is_an_error(metric, name):
    with pytest.raises(HarnessError, match="item x"):
        metric(name).statistics(Item("x", "", "reference", "answer"))


@pytest.mark.parametrize("name", TEXT + FORM)
def test_statistics_have_equal_lengths_and_the_declared_names(metric, name):
    instance = metric(name, **REQUIRED.get(name, {}))
    assert isinstance(instance, TextMetric)
    assert isinstance(instance, Metric)
    shapes = set()
    for answer, reference in zip(ANSWERS, REFERENCES, strict=True):
        statistics = instance.statistics(Item("x", "", reference, answer))
        assert tuple(statistics) == instance.score_names
        shapes |= {(key, len(vector)) for key, vector in statistics.items()}
    assert len(shapes) == len(instance.score_names)


def test_scoring_stored_answers_does_not_import_torch():
    code = """
import sys
from harness_metrics.bleu import Bleu
from harness_metrics.chrf import Chrf
from harness_metrics.rouge import Rouge
from harness_metrics.response_perplexity import ResponsePerplexity
from harness_metrics.exact_match import ExactMatch
from harness_metrics.json_valid import JsonValid
from harness_metrics.ter import Ter
Bleu("auto", "auto", False, False).aggregate("bleu", [4, 4, 4, 3, 2, 1, 4, 3, 2, 1])
Chrf(0, False).aggregate("chrf", [1.0] * 18)
Rouge(False).aggregate("rouge1", [1.0, 2.0])
ResponsePerplexity().aggregate("response_nll", [1.0, 2.0])
Ter("auto", False, False, False).answer_statistics("a b", ["a c"])
ExactMatch(["case"], "[0-9]+", "auto").answer_statistics("a 1", ["1"])
JsonValid({"type": "array"}, False).answer_statistics("[]", [""])
from harness.evaluation.predictions import load_predictions
from harness.evaluation.scoring import raise_on_violations, score_items
heavy = {"torch", "transformers", "evaluate", "datasets", "pandas", "nltk"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_declaring_imports_nothing_heavy():
    code = """
import sys
import harness_metrics
harness_metrics.harness_metrics()
heavy = {"torch", "numpy", "sacrebleu", "rouge_score", "evaluate", "datasets"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)
