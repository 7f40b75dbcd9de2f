"""`train_stage`: loss, order, determinism, log, penalties and errors."""

from __future__ import annotations

import logging
import math
import re
import warnings
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from harness.errors import ComponentError, HarnessError, RunError
from harness.interfaces.mitigation import Mitigation
from harness.training.collator import Collator
from harness.training.train_stage import train_stage
from harness.types import TokenizedExample

ENGINES = ("trl", "transformers")


def weights(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def largest_difference(first, second):
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def plain_nll(model, rows):
    """Return the summed NLL of the trained tokens and their number, computed row by row from full logits."""
    total, count = 0.0, 0
    for row in rows:
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0].double()
        for position, label in enumerate(row.labels[1:]):
            if label != -100:
                total = total - functional.log_softmax(logits[position], -1)[label]
                count += 1
    return total, count


@pytest.mark.parametrize("engine", ENGINES)
def test_first_loss_and_gradient_are_those_of_the_mean_nll_of_trained_tokens(engine, make_stage, fit, tiny_model):
    data = make_stage(engine=engine, batch_size=12, max_grad_norm=1e9)
    _, result, gradients = fit(data)
    total, count = plain_nll(tiny_model, data.rows)
    (total / count).backward()
    assert result.log[0]["loss"] == pytest.approx(float((total / count).detach()), rel=1e-6)
    assert count == sum(row.loss_tokens for row in data.rows)
    expected = {name: weight.grad for name, weight in tiny_model.named_parameters()}
    assert largest_difference(gradients[0], expected) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("packing", [False, True])
def test_engines_agree_on_loss_and_gradients(fused, lora, packing, make_stage, fit, tiny_model, monkeypatch):
    from harness.training.trl_trainer import TrlTrainer

    monkeypatch.setattr(TrlTrainer, "fused", fused)
    order = [(0, 1, 2), (3, 4), (5,), (6, 7)] if packing else None
    results = []
    for engine in ENGINES:
        model = add_lora(tiny_model) if lora else None
        _, result, gradients = fit(make_stage(order=order, engine=engine, packing=packing, accumulation=2), model=model)
        results.append((result, gradients))
    (trl, trl_gradients), (transformers, transformers_gradients) = results
    assert trl.log[0]["loss"] == pytest.approx(transformers.log[0]["loss"], abs=1e-6)
    assert trl.log[0]["grad_norm"] == pytest.approx(transformers.log[0]["grad_norm"], rel=1e-5)
    assert largest_difference(trl_gradients[0], transformers_gradients[0]) < 1e-6


def add_lora(model):
    import copy

    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear", init_lora_weights=False)
    torch.manual_seed(1)
    return get_peft_model(copy.deepcopy(model), config)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("batch", "accumulation"), [(4, 3), (1, 12), (5, 3)])
def test_step_does_not_depend_on_its_division_into_batches(engine, batch, accumulation, make_stage, fit):
    _, single, single_gradients = fit(make_stage(engine=engine, batch_size=12))
    _, split, split_gradients = fit(make_stage(engine=engine, batch_size=batch, accumulation=accumulation))
    assert len(single_gradients) == len(split_gradients) == 1
    assert largest_difference(single_gradients[0], split_gradients[0]) < 1e-7
    assert split.log[0]["loss"] == pytest.approx(single.log[0]["loss"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_train_as_they_do_alone(engine, attention, make_stage, fit, tiny_model, make_rows):
    tiny_model.set_attn_implementation(attention)
    rows = make_rows(9)
    packs = [(0, 1, 2), (3,), (4, 5), (6, 7, 8)]
    _, alone, alone_gradients = fit(make_stage(rows, engine=engine, batch_size=9, max_grad_norm=1e9))
    _, packed, packed_gradients = fit(
        make_stage(rows, packs, engine=engine, packing=True, batch_size=4, max_grad_norm=1e9)
    )
    assert packed.log[0]["loss"] == pytest.approx(alone.log[0]["loss"], abs=1e-5)
    assert largest_difference(alone_gradients[0], packed_gradients[0]) < 1e-5
    assert packed.tokens == alone.tokens == sum(len(row.input_ids) for row in rows)


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_are_trained_in_the_given_order(engine, make_stage, fit, monkeypatch):
    seen = []
    collate = Collator.__call__

    def recording(self, indices):
        seen.append([row for index in indices for row in self.sequences[index]])
        return collate(self, indices)

    monkeypatch.setattr(Collator, "__call__", recording)
    order = [(i,) for i in (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7)]
    _, result, _ = fit(make_stage(order=order, engine=engine, accumulation=2, epoch_ends=(7, 14)))
    assert seen[-4:] == [[3, 1, 4, 1], [5, 9, 2, 6], [5, 3, 5, 8], [9, 7]], "after the probe of the attention"
    assert result.steps == 2
    assert [entry["epoch"] for entry in result.log] == [pytest.approx(1 + 1 / 7), 2.0]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_seed_gives_the_same_weights_bit_for_bit(engine, make_stage, fit, tiny_model):
    tiny_model.config.attention_dropout = 0.1
    for layer in tiny_model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    data = make_stage(engine=engine)
    first, _, _ = fit(data, seed=3)
    torch.rand(5)  # what came before does not matter
    second, _, _ = fit(data, seed=3)
    other, _, _ = fit(data, seed=4)
    assert largest_difference(weights(first), weights(second)) == 0
    assert largest_difference(weights(first), weights(other)) > 0


@pytest.mark.parametrize("engine", ENGINES)
def test_training_lowers_the_loss_and_reports_it(engine, make_stage, fit, make_rows):
    data = make_stage(make_rows(8), [(i % 8,) for i in range(80)], engine=engine, batch_size=8, learning_rate=1e-2)
    steps, progress_calls = [], []
    _, result, _ = fit(
        data,
        on_step=lambda step, metrics: steps.append((step, dict(metrics))),
        progress=lambda *event: progress_calls.append(event),
    )
    assert result.loss < result.log[0]["loss"] - 1
    assert [step for step, _ in steps] == list(range(1, 11))
    assert [{"step": step, **metrics} for step, metrics in steps] == list(result.log)
    assert set(steps[0][1]) == {"loss", "grad_norm", "learning_rate", "tokens_per_second", "epoch"}
    assert result.tokens == 10 * sum(len(row.input_ids) for row in data.rows)
    assert [event[:3] for event in progress_calls] == [("train", step, 10) for step in range(11)]
    assert re.fullmatch(r"loss \d\S* · \d+ tokens/s", progress_calls[-1][3])
    assert progress_calls[-1][4] == "steps"


def test_loss_of_the_stage_is_the_mean_over_its_last_tenth(make_stage, fit, make_rows):
    data = make_stage(make_rows(8), [(i % 8,) for i in range(40)], batch_size=2, log_steps=3)
    _, result, _ = fit(data)
    assert [entry["step"] for entry in result.log] == [3, 6, 9, 12, 15, 18, 20]
    every = make_stage(make_rows(8), [(i % 8,) for i in range(40)], batch_size=2)
    _, exact, _ = fit(every)
    losses = [entry["loss"] for entry in exact.log]
    assert result.loss == pytest.approx(sum(losses[-2:]) / 2)
    assert result.log[0]["loss"] == pytest.approx(sum(losses[:3]) / 3)
    assert result.log[-1]["loss"] == pytest.approx(sum(losses[-2:]) / 2)


def test_learning_rate_rises_in_the_warmup_and_falls_linearly(make_stage, fit, make_rows):
    data = make_stage(
        make_rows(10), batch_size=1, scheduler={"linear": {"final": 0.0}}, warmup_ratio=0.2, learning_rate=1e-3
    )
    _, result, _ = fit(data)
    rates = [entry["learning_rate"] for entry in result.log]
    assert rates == pytest.approx([1e-3 * x for x in (0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8)])


SCHEDULERS = [{"cosine": {"final": 0.0}}, {"linear": {"final": 0.0}}, {"constant": {}}, {"constant_with_warmup": {}}]


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda scheduler: next(iter(scheduler)))
def test_only_step_of_a_stage_has_the_peak_rate(make_stage, fit, make_rows, scheduler):
    data = make_stage(make_rows(1), batch_size=1, scheduler=scheduler, warmup_ratio=0.05, learning_rate=1e-3)
    _, result, _ = fit(data)
    assert [entry["learning_rate"] for entry in result.log] == [1e-3]


def test_gradient_is_clipped_and_its_norm_before_clipping_is_logged(make_stage, fit):
    _, unclipped_result, unclipped = fit(make_stage(max_grad_norm=1e9))
    _, held, clipped = fit(make_stage(max_grad_norm=1e-3))
    assert held.log[0]["grad_norm"] == pytest.approx(unclipped_result.log[0]["grad_norm"])
    norm = torch.stack([gradient.norm() for gradient in clipped[0].values()]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)
    norm = torch.stack([gradient.norm() for gradient in unclipped[0].values()]).norm()
    assert float(norm) == pytest.approx(unclipped_result.log[0]["grad_norm"], rel=1e-4)


class ConstantPenalty(Mitigation):
    """Adds the same force to every gradient."""

    def __init__(self, force):
        self.force = force

    def add_weight_penalty(self, model):
        for weight in model.parameters():
            weight.grad += self.force
        return torch.tensor(7.0)


def test_weight_penalty_after_clipping_is_added_without_clipping(make_stage, fit):
    data = make_stage(max_grad_norm=1e-3)
    _, _, without = fit(data)
    _, result, penalized = fit(data, {"constant": ConstantPenalty(0.5)})
    for name, gradient in penalized[0].items():
        assert torch.allclose(gradient, without[0][name] + 0.5, atol=1e-6)
    assert result.log[0]["penalty/constant"] == 7.0
    assert result.log[0]["grad_norm"] > 1e-2, "the task's own, before clipping"


class EarlyPenalty(ConstantPenalty):
    """Adds the same force, before clipping."""

    penalty_timing = "before_clip"


def test_weight_penalty_before_clipping_is_clipped_with_the_task_gradient(make_stage, fit):
    _, unclipped_result, unclipped = fit(make_stage(max_grad_norm=1e9))
    _, result, penalized = fit(make_stage(max_grad_norm=0.1), {"early": EarlyPenalty(0.5)})
    combined = {name: gradient + 0.5 for name, gradient in unclipped[0].items()}
    norm = torch.stack([gradient.norm() for gradient in combined.values()]).norm()
    for name, gradient in combined.items():
        assert torch.allclose(penalized[0][name], gradient * 0.1 / norm, atol=1e-6)
    assert result.log[0]["grad_norm"] == pytest.approx(float(norm), rel=1e-5)
    assert result.log[0]["penalty/early"] == 7.0
    assert result.log[0]["loss"] == unclipped_result.log[0]["loss"]


def test_stage_stats_of_a_mitigation_are_logged_once(make_stage, fit):
    class WithStats(Mitigation):
        def stage_stats(self):
            return {"tail": 0.25}

    _, result, _ = fit(make_stage(), {"stats": WithStats()})
    assert [entry.get("stats/tail") for entry in result.log] == [0.25, None, None]


class MeanLogit(Mitigation):
    """A penalty that reads logits: twice the mean, over trained tokens, of the square of the eighth logit."""

    requires_logits = True

    def batch_penalty(self, model, batch, logits):
        assert len(logits) == int((batch["labels"][:, 1:] != -100).sum())
        return 2 * logits[:, 7].square().mean()


class TokenLogit(Mitigation):
    """The same penalty, token by token."""

    def token_penalty(self, model, batch):
        return lambda logits, place: 2 * logits[:, 7].square()


class Reader(Mitigation):
    """Reads all logits of a batch, and adds nothing."""

    requires_logits = True


def test_a_token_penalty_of_a_wrong_shape_is_an_error(make_stage, fit):
    class Mean(Mitigation):
        def token_penalty(self, model, batch):
            return lambda logits, place: logits.mean()

    with pytest.raises(ComponentError, match=r"Mean, token_penalty: its function returned a Tensor of shape \(\), not"):
        fit(make_stage(), {"mean": Mean()})


@pytest.mark.slow
@pytest.mark.parametrize("added", [{"logit": MeanLogit}, {"logit": TokenLogit}, {"logit": TokenLogit, "x": Reader}])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_penalty_of_logits_is_added_to_the_loss_as_a_mean_over_the_step(engine, added, make_stage, fit, tiny_model):
    data = make_stage(engine=engine, batch_size=12, max_grad_norm=1e9)
    mitigations = {name: mitigation() for name, mitigation in added.items()}
    _, result, gradients = fit(data, mitigations)
    total, count, penalty = 0.0, 0, 0.0
    for row in data.rows:
        nll, tokens = plain_nll(tiny_model, [row])
        logits = tiny_model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
        penalty = penalty + 2 * logits[torch.tensor(row.labels[1:]) != -100, 7].square().sum()
        total, count = total + nll, count + tokens
    ((total + penalty) / count).backward()
    expected = {name: weight.grad for name, weight in tiny_model.named_parameters()}
    assert result.log[0]["loss"] == pytest.approx(float((total / count).detach()), rel=1e-6)
    assert result.log[0]["penalty/logit"] == pytest.approx(float((penalty / count).detach()), rel=1e-5)
    assert largest_difference(gradients[0], expected) < 1e-6
    for batch, accumulation in [(3, 4), (1, 12)]:
        cut = make_stage(engine=engine, batch_size=batch, accumulation=accumulation, max_grad_norm=1e9)
        _, split, parts = fit(cut, mitigations)
        assert largest_difference(gradients[0], parts[0]) < 1e-6
        assert split.log[0]["penalty/logit"] == pytest.approx(result.log[0]["penalty/logit"], rel=1e-5)


def test_mitigation_that_adds_nothing_changes_no_bit_and_logs_nothing(make_stage, fit):
    data = make_stage()
    plain, result, _ = fit(data)
    idle, same, _ = fit(data, {"idle": Mitigation()})
    assert largest_difference(weights(plain), weights(idle)) == 0
    assert not [key for key in same.log[0] if key.startswith("penalty/")]
    assert [entry["loss"] for entry in result.log] == [entry["loss"] for entry in same.log]


@pytest.mark.parametrize("engine", ENGINES)
def test_gradient_checkpointing_does_not_change_the_weights(engine, make_stage, fit):
    plain, _, _ = fit(make_stage(engine=engine))
    checkpointed, _, _ = fit(make_stage(engine=engine, gradient_checkpointing=True))
    assert not any(getattr(module, "gradient_checkpointing", False) for module in checkpointed.modules())
    assert largest_difference(weights(plain), weights(checkpointed)) < 1e-7


@pytest.mark.parametrize("engine", ENGINES)
def test_nan_loss_ends_the_stage_before_the_weights_change(engine, make_stage, fit, tiny_model, make_rows):
    rows = make_rows(8)
    tiny_model.model.embed_tokens.weight.data[rows[5].input_ids[0]] = math.nan
    tiny_model.config.tie_word_embeddings = False
    tiny_model.lm_head.weight = torch.nn.Parameter(torch.nan_to_num(tiny_model.lm_head.weight.detach()))
    clean = [row for row in rows if rows[5].input_ids[0] not in row.input_ids]
    data = make_stage((*clean[:2], rows[5]), engine=engine, batch_size=1, name="first")
    seen = []
    with pytest.raises(
        RunError, match=r"stage 'first', step 3 of 3: loss is nan; the step trains the rows 0+5;.*train\.learning_rate"
    ) as caught:
        fit(data, model=tiny_model, on_step=lambda step, metrics: seen.append(step))
    assert caught.value.exit_code == 1
    assert seen == [1, 2]
    assert bool(torch.isfinite(tiny_model.model.layers[0].mlp.up_proj.weight).all())


def test_out_of_memory_is_an_error_with_remedies(make_stage, fit, monkeypatch):
    class MemoryHog(Mitigation):
        def add_weight_penalty(self, model):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(RunError, match=r"train\.batch_size: 4 rows .* do not fit .*accumulation.*lora"):
        fit(make_stage(), {"hungry": MemoryHog()})


def test_an_error_of_a_mitigation_names_it(make_stage, fit):
    class Wrong(Mitigation):
        def add_weight_penalty(self, model):
            raise NotImplementedError("a bug")

    with pytest.raises(ComponentError, match="Wrong, add_weight_penalty: NotImplementedError: a bug"):
        fit(make_stage(), {"wrong": Wrong()})


def test_stage_without_rows_or_trainable_weights_is_an_error(make_stage, fit, tiny_model):
    with pytest.raises(HarnessError, match="no row to train on"):
        fit(make_stage(rows=()))
    tiny_model.requires_grad_(False)
    with pytest.raises(HarnessError, match="no trainable weight"):
        fit(make_stage(), model=tiny_model)


def test_tokenizer_without_padding_token_is_an_error(make_stage, tiny_model, tokenizer, tmp_path):
    import copy

    tokenizer_without_pad = copy.deepcopy(tokenizer)
    tokenizer_without_pad.pad_token = None
    with pytest.raises(HarnessError, match="no padding token"):
        train_stage(tiny_model, tokenizer_without_pad, make_stage(), {}, seed=0, folder=tmp_path)


def test_batch_without_a_trained_token_changes_no_weight(make_stage, fit, make_rows, tiny_model):
    untrained_rows = tuple(
        TokenizedExample(row.id, row.source, row.input_ids, (-100,) * len(row.labels)) for row in make_rows(2)
    )
    for engine in ENGINES:
        model, result, gradients = fit(make_stage(untrained_rows, engine=engine))
        assert result.loss == 0
        assert all(float(gradient.abs().max()) == 0 for gradient in gradients[0].values())
        assert largest_difference(weights(model), weights(tiny_model)) == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_training_prints_nothing_and_writes_no_file(engine, make_stage, fit, tmp_path, capfd, caplog):
    with caplog.at_level(logging.WARNING), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(make_stage(engine=engine))
    out = capfd.readouterr()
    assert [str(warning.message) for warning in caught] == []
    assert (out.out, out.err) == ("", "")
    assert [record.getMessage() for record in caplog.records] == []
    assert list(Path(tmp_path).rglob("*")) == []
