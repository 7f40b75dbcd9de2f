"""A step whose loss is not finite is skipped, and one without memory is computed in smaller micro-batches."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from harness_mitigations.kl import GeneralKl

from harness.errors import RunError
from harness.registry import discover_plugins
from harness.training import stage_trainer
from harness.training.collator import Collator
from harness.training.micro_batches import split_batch

ENGINES = ["trl", "transformers"]


@pytest.fixture
def warnings_of(monkeypatch):
    """The warnings that a stage emits, and the registry that emits them."""
    registry, texts = discover_plugins(), []
    monkeypatch.setattr(registry, "emit", lambda event: texts.append(event.text))
    return registry, texts


@pytest.fixture
def damaged_stage(make_stage, make_rows, tiny_model):
    """A model for which the second of three rows gives NaN, and changed settings -> its stage."""
    rows = make_rows(8)
    poison = rows[5].input_ids[0]
    tiny_model.model.embed_tokens.weight.data[poison] = math.nan
    tiny_model.config.tie_word_embeddings = False
    tiny_model.lm_head.weight = torch.nn.Parameter(torch.nan_to_num(tiny_model.lm_head.weight.detach()))
    clean = [row for row in rows if poison not in row.input_ids]
    return lambda **settings: make_stage((clean[0], rows[5], clean[1]), batch_size=1, **settings)


def finite_weights(model):
    return {name: w.detach() for name, w in model.named_parameters() if "embed" not in name and "lm_head" not in name}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_that_is_not_finite_changes_no_weight_and_names_its_rows(
    engine, damaged_stage, fit, tiny_model, warnings_of
):
    registry, texts = warnings_of
    seen = {}
    data = damaged_stage(engine=engine, skip_nonfinite=1, weight_decay=0.1)
    before = {}

    def look(step, metrics):
        seen[step] = metrics
        before[step] = {name: w.clone() for name, w in finite_weights(tiny_model).items()}

    model, result, _ = fit(data, model=tiny_model, on_step=look, registry=registry)
    assert seen[2]["skipped"] == 1.0
    assert math.isnan(seen[2]["loss"])
    assert all(torch.equal(before[1][name], before[2][name]) for name in before[1])
    assert not all(torch.equal(before[2][name], w) for name, w in finite_weights(model).items())
    assert all(bool(torch.isfinite(w).all()) for w in finite_weights(model).values())
    assert math.isfinite(result.loss), "skipped steps do not count"
    assert [text for text in texts if f"the rows {5:016x}" in text and "skipped (1 of at most 1)" in text]


def test_one_more_step_than_may_be_skipped_ends_the_stage(damaged_stage, fit, tiny_model, warnings_of):
    data = damaged_stage(skip_nonfinite=1, steps=5)
    data = type(data)(data.stage, data.rows, ((0,), (1,), (2,), (0,), (1,)), (5,), {}, 1.0)
    with pytest.raises(RunError, match=r"step 5 of 5: after 1 skipped steps, loss is nan; .*train\.skip_nonfinite"):
        fit(data, model=tiny_model, registry=warnings_of[0])


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("packing", [False, True])
def test_micro_batches_are_halved_until_they_fit_and_train_the_same(
    engine, packing, make_stage, fit, monkeypatch, warnings_of
):
    registry, texts = warnings_of
    order = [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11)] if packing else None
    settings = {"engine": engine, "batch_size": 4, "accumulation": 2, "packing": packing, "halve_batches": 2}
    expected, expected_result, _ = fit(make_stage(order=order, **settings))
    sizes, real = [], stage_trainer.StageTrainer.summed_nll

    def fail_above(limit, real=real):
        def summed_nll(self, model, batch):
            sizes.append(int(batch["labels"].numel()))
            if sizes[-1] > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(self, model, batch)

        return summed_nll

    owner = stage_trainer.StageTrainer
    if engine == "trl":
        from harness.training import trl_trainer

        owner = trl_trainer.TrlTrainer
    monkeypatch.setattr(owner, "summed_nll", fail_above(45 if packing else 40))
    found, result, _ = fit(make_stage(order=order, **settings), registry=registry)
    difference = max(float((a - b).abs().max()) for a, b in zip(expected.parameters(), found.parameters(), strict=True))
    assert difference < 1e-5
    assert result.loss == pytest.approx(expected_result.loss, abs=1e-5)
    assert [text for text in texts if "out of memory; micro-batches are divided into 2 parts" in text]
    assert "batch_parts" in result.log[0]


def test_a_restarted_step_has_the_terms_of_its_mitigations(
    make_stage, make_rows, fit, tiny_model, monkeypatch, warnings_of
):
    data, real = make_stage(accumulation=2, halve_batches=1), stage_trainer.StageTrainer.summed_nll

    def first_gradient(failing_call):
        model, kl, calls = copy.deepcopy(tiny_model), GeneralKl("general", 4, 5.0, "forward", 1.0, None), []
        kl.on_stage_start(data.stage, model, {"general": make_rows(5, 1)}, seed=0)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.5)

        def summed_nll(self, model, batch):
            calls.append(batch)
            if len(calls) == failing_call:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(self, model, batch)

        monkeypatch.setattr(stage_trainer.StageTrainer, "summed_nll", summed_nll)
        return fit(data, {"kl": kl}, model=model, registry=warnings_of[0])[2][0]

    expected, restarted = first_gradient(None), first_gradient(2)
    assert [text for text in warnings_of[1] if "divided into 2 parts" in text]
    assert max(float((expected[name] - restarted[name]).abs().max()) for name in expected) < 1e-5


def test_memory_that_never_suffices_ends_the_stage_with_the_remedies(make_stage, fit, monkeypatch, warnings_of):
    def summed_nll(self, model, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(stage_trainer.StageTrainer, "summed_nll", summed_nll)
    with pytest.raises(RunError, match=r"do not fit into memory.*train\.accumulation"):
        fit(make_stage(halve_batches=3), registry=warnings_of[0])
    assert sum("out of memory" in text for text in warnings_of[1]) == 2, "four rows cannot be halved three times"


def test_parts_of_a_batch_have_its_rows_in_order():
    padded = {
        "input_ids": torch.tensor([[1, 2, 3], [4, 5, 0], [6, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]]),
    }
    first, second = split_batch(padded, 2)
    assert first["input_ids"].tolist() == [[1, 2, 3]]
    assert second["input_ids"].tolist() == [[4, 5], [6, 0]], "columns that are padding everywhere are left out"
    line = {"input_ids": torch.arange(8)[None], "position_ids": torch.tensor([[0, 1, 2, 0, 1, 0, 1, 2]])}
    assert [part["input_ids"].tolist() for part in split_batch(line, 2)] == [[[0, 1, 2]], [[3, 4, 5, 6, 7]]]
    assert len(split_batch(line, 5)) == 3


@pytest.mark.parametrize(("parts", "rows_of_parts"), [(2, [(0, 1), (2, 3, 4)]), (9, [(0,), (1,), (2,), (3,), (4,)])])
def test_parts_of_a_line_have_the_boundaries_of_their_rows(parts, rows_of_parts, make_rows):
    collate = Collator(make_rows(5), [(index,) for index in range(5)], 0, flatten=True, boundaries=True)
    divided = split_batch(collate(range(5)), parts)
    assert len(divided) == len(rows_of_parts)
    for part, indices in zip(divided, rows_of_parts, strict=True):
        expected = collate(indices)
        assert part.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(torch.as_tensor(part[name]), torch.as_tensor(value)), name
            assert isinstance(part[name], type(value))
