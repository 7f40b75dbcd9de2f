"""Every text metric as a metric of the package `evaluate`."""

from __future__ import annotations

import math

import pytest

from harness import HarnessError, Item

evaluate = pytest.importorskip("evaluate")

TEXT = ["bleu", "rouge", "chrf", "ter", "exact_match", "token_f1", "distinct", "length_ratio", "json_valid"]
ANSWERS = ["The dog bit the man.", "", "今天天气很好。", "It was Ａ surprise"]
REFERENCES = ["The dog had bit the man.", "No one was.", "今天天气非常好。", "It was a surprise!"]


@pytest.mark.parametrize("name", TEXT)
def test_compute_equals_aggregate(metric, name):
    instance = metric(name)
    theirs = instance.to_hf_evaluate()
    assert isinstance(theirs, evaluate.Metric)
    vectors = [instance.statistics(Item("x", "", r, a)) for a, r in zip(ANSWERS, REFERENCES, strict=True)]
    ours = {
        key: instance.aggregate(key, [math.fsum(column) for column in zip(*(v[key] for v in vectors), strict=True)])
        for key in instance.score_names
    }
    assert theirs.compute(predictions=ANSWERS, references=REFERENCES) == pytest.approx(ours, abs=1e-9)
    # Again, and batch by batch: nothing is left over from the call before.
    for start in (0, 2):
        theirs.add_batch(predictions=ANSWERS[start : start + 2], references=REFERENCES[start : start + 2])
    assert theirs.compute() == pytest.approx(ours, abs=1e-9)


def test_several_references_are_supported(metric):
    bleu = metric("bleu", tokenize="13a").to_hf_evaluate()
    answers = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    references = [
        ["The dog bit the man.", "The dog had bit the man."],
        ["It was not unexpected.", "No one was surprised."],
        ["The man bit him first.", "The man had bitten the dog."],
    ]
    assert bleu.compute(predictions=answers, references=references)["bleu"] == pytest.approx(48.530827, abs=1e-6)
    readme = ["hello there general kenobi", "foo bar foobar"]
    several = [["hello there general kenobi", "hello there!"], ["foo bar foobar"]]
    assert bleu.compute(predictions=readme, references=several)["bleu"] == pytest.approx(100.0)


def test_missing_answers_and_references_are_errors(metric):
    instance = metric("exact_match").to_hf_evaluate()
    with pytest.raises(HarnessError, match="exact_match: no answers to score"):
        instance.compute(predictions=[], references=[])
    with pytest.raises(HarnessError, match="no reference"):
        instance.compute(predictions=["a"], references=[[]])
    with pytest.raises(ValueError, match="Mismatch"):
        instance.compute(predictions=["a", "b"], references=["a"])


def test_the_converted_metric_describes_itself(metric):
    instance = metric("rouge").to_hf_evaluate()
    assert instance.name == "rouge"
    assert "rouge|tok:harness-cjk2" in instance.description
    assert "aclanthology" in instance.citation
