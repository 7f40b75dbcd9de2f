"""Values that a metric computes before its statistics are stored one by one, and computed once."""

from __future__ import annotations

import json
from difflib import SequenceMatcher

import pytest
import torch
from support.paths import ROOT

from harness.errors import ComponentError, HarnessError
from harness.evaluation import rescore
from harness.evaluation.predictions import load_predictions, predictions_path
from harness.interfaces.metric import Metric

PROMPTS = ("tea", "more coffee", "six pots", "x")


class Judge(Metric):
    """Fraction of prompts with the letter e; counts its calls, and fails at one item."""

    requires = "answer"
    score_names = ("judged",)

    def __init__(self, version: int = 1, fails_at: int | None = None, skips: int = 0) -> None:
        self.version, self.fails_at, self.skips = version, fails_at, skips
        self.judged: list[str] = []

    def signature(self):
        return f"judge|version:{self.version}"

    def prepare(self, items):
        for index, item in enumerate(reversed(items[self.skips :])):
            if index == self.fails_at:
                raise ConnectionError("the judge is busy")
            self.judged.append(item.prompt)
            yield item, {"says": [item.answer, "e" in item.answer]}

    def statistics(self, item):
        return {"judged": (float(item.computed["says"][1]), 1.0)}

    def aggregate(self, name, total):
        return total[0] / total[1]


@pytest.fixture
def examples(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "third_party" / "harness-example")
    from harness_example import closeness, prompt_nll

    return {"closeness": closeness.Closeness(), "prompt_nll": prompt_nll.PromptNll()}


@pytest.fixture
def evaluate(kit, tmp_path):
    """Return a function that evaluates an echo into one folder."""

    def run(metrics, model=None, prompts=PROMPTS, **options):
        rows = [kit.example(prompt, prompt.upper()) for prompt in prompts]
        return kit.evaluate(model or kit.echo(), kit.suite(), rows, metrics, **{"folder": tmp_path, **options})

    return run


def test_statistics_get_the_value_of_their_item_whatever_the_order(evaluate, tmp_path):
    judge = Judge()
    result = evaluate({"judge": judge})
    assert judge.judged == list(reversed(PROMPTS))
    assert [vector[0] for vector in result.scores[0].statistics] == [1.0, 1.0, 0.0, 0.0]
    assert [item.computed for item in result.items] == [None] * 4
    stored = load_predictions(predictions_path(tmp_path, "desk", 0))
    assert stored.computed["id-tea"] == {"judge": {"says": ["tea", True]}}
    assert stored.items == result.items


def test_a_metric_that_fails_keeps_its_values_and_resumes_with_the_others(evaluate, kit, tmp_path):
    failing = Judge(fails_at=2)
    with pytest.raises(ComponentError, match="Judge, prepare: ConnectionError: the judge is busy"):
        evaluate({"judge": failing})
    stored = load_predictions(predictions_path(tmp_path, "desk", 0))
    assert (len(stored.computed), stored.complete) == (2, False)
    resumed, echo = Judge(), kit.echo()
    whole = evaluate({"judge": Judge()}, folder=None)
    assert evaluate({"judge": resumed}, echo) == whole
    assert resumed.judged == ["more coffee", "tea"]
    assert echo.rows == [], "the answers are stored"
    repeated = Judge()
    assert evaluate({"judge": repeated}) == whole
    assert repeated.judged == []


def test_values_are_computed_again_for_another_signature_or_answer(evaluate, kit):
    evaluate({"judge": Judge()})
    other = Judge(version=2)
    evaluate({"judge": other})
    assert len(other.judged) == 4
    changed = Judge(version=2)
    evaluate({"judge": changed}, prompts=(*PROMPTS[:3], "green"))
    assert changed.judged == ["green"]
    second = Judge(version=2)
    evaluate({"another": second}, prompts=(*PROMPTS[:3], "green"))
    assert len(second.judged) == 4, "values belong to one metric of the suite"


def test_an_item_without_a_value_is_an_error(evaluate):
    with pytest.raises(ComponentError, match=r"prepare: yielded no value for 1 of 4 items, e\.g\. id-tea"):
        evaluate({"judge": Judge(skips=1)})


def test_an_item_that_was_not_passed_is_an_error(evaluate):
    class Twice(Judge):
        def prepare(self, items):
            yield items[0], {"says": ["", True]}
            yield items[0], {"says": ["", True]}

    with pytest.raises(ComponentError, match="yielded the item id-tea, which has a value already or was not passed"):
        evaluate({"judge": Twice()})


def test_values_of_concurrent_calls_belong_to_their_items(evaluate, examples):
    result = evaluate({"closeness": examples["closeness"]})
    expected = [SequenceMatcher(None, prompt, prompt.upper()).ratio() for prompt in PROMPTS]
    assert [vector[0] for vector in result.scores[0].statistics] == expected


def test_a_metric_of_the_model_measures_each_item_once_for_the_same_weights(evaluate, examples, tiny_model, tokenizer):
    model, metrics, passes = tiny_model.eval(), {"prompt_nll": examples["prompt_nll"]}, []
    model.register_forward_pre_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    first = evaluate(metrics, model)
    assert passes == [False] * len(PROMPTS)
    assert evaluate(metrics, model) == first
    assert len(passes) == len(PROMPTS)
    ids = tokenizer(PROMPTS[1], return_tensors="pt")["input_ids"]
    loss = model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
    assert first.scores[0].statistics[1] == pytest.approx((loss, ids.shape[1] - 1), rel=1e-5)
    passes.clear()
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    assert evaluate(metrics, model).scores[0].value != first.scores[0].value
    assert len(passes) == len(PROMPTS)


def test_a_finished_run_is_scored_again_with_the_stored_values(evaluate, examples, tiny_model, tmp_path, monkeypatch):
    metrics = {"prompt_nll": examples["prompt_nll"], "closeness": examples["closeness"]}
    during_run = evaluate(metrics, tiny_model.eval(), folder=tmp_path / "predictions")
    options = {name: {} for name in metrics}
    spec = {"evaluate": {"desk": {**SUITE, "metrics": options}}}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    monkeypatch.setattr(rescore, "create_metric", lambda registry, name, options, lang="auto": metrics[name])
    (again,) = rescore.score_run(tmp_path, None, None)
    assert again == during_run
    (named,) = rescore.score_run(tmp_path, {"prompt_nll": {}}, None)
    assert named.scores == during_run.scores[:1]

    class Changed(type(metrics["prompt_nll"])):
        def signature(self):
            return "prompt_nll|version:2"

    metrics["prompt_nll"] = Changed()
    with pytest.raises(HarnessError, match=r"metric prompt_nll: the values of prompt_nll\|version:2 are not stored"):
        rescore.score_run(tmp_path, None, None)
    with pytest.raises(
        HarnessError, match="requires values that it measured with the model, which no suite of the run"
    ):
        rescore.score_run(tmp_path, {"prompt_nll": {}}, None)


SUITE = {"source": "s", "role": "domain", "limit": None, "max_new_tokens": 24, "batch_size": 4}
