"""Measurements of a base model are taken from the cache only where everything that they depend on is the same."""

from __future__ import annotations

import json
import os

import pytest
import torch

from harness.evaluation import answers, base_cache
from harness.evaluation.batch_support import FULL_SUPPORT, BatchSupport
from harness.evaluation.context import ModelToEvaluate
from harness.evaluation.evaluate import evaluate_suites
from harness.evaluation.generation import Answer
from harness.evaluation.predictions import load_predictions, predictions_path

SAID = ["yes", "a much longer answer", "no"]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(base_cache.SWITCH, "1")


@pytest.fixture
def evaluate(kit, tokenizer, tmp_path):
    """Return a function that evaluates into a new folder: the evaluation and the number of forward passes."""
    runs = []

    def run(model, *, said=SAID, stage=0, batch_support=FULL_SUPPORT, folder=None, metrics=None, **suite_settings):
        runs.append(folder or tmp_path / f"run{len(runs)}")
        passes = []
        handle = model.eval().register_forward_pre_hook(lambda *_: passes.append(1))
        subject = ModelToEvaluate(
            model, tokenizer, kit.template(), stage=stage, seed=0, max_length=128, use_cache=True,
            batch_support=batch_support,
        )  # fmt: skip
        suite = kit.suite(max_new_tokens=6, **suite_settings)
        rows = {"desk": [kit.example(text, text) for text in said]}
        metrics = {"desk": metrics or {"same": kit.same, "nll": kit.likelihood}}
        (result,) = evaluate_suites(subject, [suite], rows, metrics, folder=runs[-1])
        handle.remove()
        return result, len(passes), runs[-1]

    return run


def test_second_run_takes_the_measurements_of_the_base_model_from_the_cache(evaluate, tiny_model):
    first, passes, folder = evaluate(tiny_model)
    assert passes > 0
    assert not first.is_from_cache
    second, none, other = evaluate(tiny_model)
    assert none == 0
    assert second == first
    assert second.is_from_cache
    stored, again = (load_predictions(predictions_path(path, "desk", 0)) for path in (folder, other))
    assert again.items == stored.items
    assert again.header.pop("cached") == ["answer", "likelihood"]
    assert again.header == stored.header


def with_changed_weight(model):
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-3
    return model


def with_adapter(model):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (with_changed_weight, {}),
        (with_adapter, {}),
        (lambda model: model, {"stage": 1}),
        (lambda model: model, {"said": SAID[:2]}),
        (lambda model: model, {"temperature": 0.5}),
        (lambda model: model, {"batch_size": 2}),
        (lambda model: model, {"batch_support": BatchSupport(lines=True)}),
    ],
)
def test_anything_else_is_measured(evaluate, tiny_model, change, options):
    evaluate(tiny_model)
    result, passes, _ = evaluate(change(tiny_model), **options)
    assert passes > 0
    assert result.items[0].nll is not None


@pytest.mark.parametrize("name", ["get_cpu_capability", "get_num_threads", "__version__"])
def test_other_arithmetic_is_measured(evaluate, tiny_model, monkeypatch, name):
    evaluate(tiny_model)
    owner = torch.backends.cpu if name == "get_cpu_capability" else torch
    monkeypatch.setattr(owner, name, "2.0" if name == "__version__" else lambda: 99)
    assert evaluate(tiny_model)[1] > 0


def test_a_damaged_entry_is_measured_again_and_replaced(evaluate, tiny_model):
    first, passes, _ = evaluate(tiny_model)
    for file in base_cache.cache_folder().iterdir():
        entry = json.loads(file.read_text())
        entry["items"][0] = dict.fromkeys(entry["items"][0])
        file.write_text(json.dumps(entry))
    assert evaluate(tiny_model)[:2] == (first, passes)
    assert evaluate(tiny_model)[1] == 0


def test_variable_switches_the_cache_off(evaluate, tiny_model, monkeypatch):
    evaluate(tiny_model)
    monkeypatch.setenv(base_cache.SWITCH, "0")
    assert evaluate(tiny_model)[1] > 0


def test_least_recently_used_entries_are_removed(monkeypatch):
    monkeypatch.setattr(base_cache, "MAX_CACHE_BYTES", 250)
    for index in range(4):
        base_cache.save_measurement(f"{index}", [{"nll": 1.0}])
    assert 0 < len(list(base_cache.cache_folder().iterdir())) < 4
    assert base_cache.load_measurement("3", 1) == [{"nll": 1.0}]
    assert base_cache.load_measurement("3", 2) is None


SERVER = {
    "url": "http://127.0.0.1:9/v1", "model": "m", "prompts": "tokens", "concurrency": 1, "timeout": 1.0, "retries": 0,
    "key_env": None, "body": {}, "chat": False, "tolerance": 0.5,
}  # fmt: skip


def test_answers_of_a_server_are_asked_for_in_every_run(evaluate, kit, tiny_model, monkeypatch):
    said = iter(["first"] * len(SAID) + ["second"] * len(SAID))

    def complete(requests, ask, on_answer, *, concurrency, where):
        for key in requests:
            on_answer(key, Answer(next(said), "stop", 1))

    monkeypatch.setattr(answers, "collect_answers", complete)
    for text in ("first", "second"):  # the server may have other weights under the same name
        result, _, _ = evaluate(tiny_model, server=SERVER, metrics={"same": kit.same})
        assert {item.answer for item in result.items} == {text}
        assert not result.is_from_cache
    assert not base_cache.cache_folder().exists()


def test_a_resumed_measurement_is_not_cached(evaluate, tiny_model, tmp_path):
    evaluate(tiny_model, said=SAID[:2], folder=tmp_path / "interrupted")
    evaluate(tiny_model, folder=tmp_path / "interrupted")  # measures one more item, in batches of its own
    assert evaluate(tiny_model)[1] > 0


def test_an_entry_that_was_used_again_outlives_a_newer_one(monkeypatch):
    for age, key in enumerate("cba"):
        base_cache.save_measurement(key, [{"nll": 1.0}])
        os.utime(base_cache.cache_folder() / f"{key}.json", (1000 - age, 1000 - age))
    size = (base_cache.cache_folder() / "a.json").stat().st_size
    assert base_cache.load_measurement("a", 1) is not None  # the oldest one, now used
    monkeypatch.setattr(base_cache, "MAX_CACHE_BYTES", 3 * size)
    base_cache.save_measurement("d", [{"nll": 1.0}])
    assert {file.stem for file in base_cache.cache_folder().glob("*.json")} == {"a", "c", "d"}
