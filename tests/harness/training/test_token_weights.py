"""Weights of tokens in the loss: what is trained is what is logged, in chunks or not."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
import torch
from harness_mitigations.reweight import Reweight
from torch.nn import functional

from harness.errors import RunError
from harness.interfaces.mitigation import Mitigation
from harness.model import chunked_logits
from harness.training.collator import Collator
from harness.training.loss import target_logits, target_tokens

ENGINES = ("transformers", "trl")


class WholeReweight(Reweight):
    """Needs the logits of the whole batch."""

    weighs_tokens_in_parts = False


class Halves(Mitigation):
    """Gives every token the weight 0.5."""

    weighs_tokens_in_parts = composes_token_weights = True

    def token_weights(self, logits, targets, batch):
        assert {"input_ids", "labels"} < batch.keys()
        return torch.full(targets.shape, 0.5)


def assert_same_gradients(first, second, factor=1.0):
    for name, gradient in first[0].items():
        assert torch.allclose(gradient * factor, second[0][name], atol=1e-6), name


@pytest.mark.parametrize("engine", ENGINES)
def test_dft_trains_the_probability_of_the_tokens(engine, make_stage, fit, tiny_model):
    data = make_stage(engine=engine, batch_size=12, max_grad_norm=1e9)
    _, result, gradients = fit(data, {"reweight": Reweight(1.0, 0.0, "probability")})
    batch = Collator(data.rows, data.order, 0)(range(12))
    log_probs = target_logits(tiny_model, batch).log_softmax(-1)
    log_p = log_probs.gather(1, target_tokens(batch["labels"])[:, None])
    (-log_p.exp().mean()).backward()
    for name, weight in tiny_model.named_parameters():
        assert torch.allclose(gradients[0][name], weight.grad, atol=1e-7), name
    assert result.log[0]["loss"] == pytest.approx(float(-(log_p.exp() * log_p).mean().detach()), rel=1e-5)
    assert result.log[0]["nll"] == pytest.approx(float(-log_p.mean().detach()), rel=1e-5)


def test_chunks_of_logits_and_whole_logits_train_the_same(make_stage, fit, monkeypatch):
    data = make_stage(max_grad_norm=1e9)
    _, whole, of_whole = fit(data, {"reweight": WholeReweight(0.5, 0.01, "probability")})
    monkeypatch.setattr(chunked_logits, "MAX_LOGIT_BYTES", 4 * 261 * 3)  # chunks of 3 tokens
    _, parts, of_parts = fit(data, {"reweight": Reweight(0.5, 0.01, "probability")})
    assert_same_gradients(of_whole, of_parts)
    for first, second in zip(whole.log, parts.log, strict=True):
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-5)
        assert first["nll"] == pytest.approx(second["nll"], rel=1e-5)


def test_accumulation_does_not_change_a_step(make_stage, fit):
    _, once, of_once = fit(make_stage(batch_size=12), {"reweight": Reweight(1.0, 0.0, "probability")})
    _, often, of_often = fit(make_stage(batch_size=2, accumulation=6), {"reweight": Reweight(1.0, 0.0, "probability")})
    assert_same_gradients(of_once, of_often)
    assert once.log[0]["loss"] == pytest.approx(often.log[0]["loss"], rel=1e-5)


def test_weights_of_several_mitigations_multiply_and_scale_the_logged_loss(make_stage, fit):
    data = make_stage(max_grad_norm=1e9)
    _, plain, of_plain = fit(data)
    _, halved, of_halved = fit(data, {"a": Halves(), "b": Halves()})
    assert_same_gradients(of_plain, of_halved, 0.25)
    assert halved.log[0]["loss"] == pytest.approx(0.25 * plain.log[0]["loss"], rel=1e-5)
    assert halved.log[0]["nll"] == pytest.approx(plain.log[0]["loss"], rel=1e-5)
    assert "nll" not in plain.log[0]


def test_a_mitigation_that_reads_logits_composes_with_weights(make_stage, fit):
    class Entropy(Mitigation):
        requires_logits = True

        def batch_penalty(self, model, batch, logits):
            return (logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()

    data = make_stage()
    _, weighted, _ = fit(data, {"reweight": Reweight(1.0, 0.0, "probability")})
    _, both, _ = fit(data, {"reweight": Reweight(1.0, 0.0, "probability"), "entropy": Entropy()})
    assert both.log[0]["loss"] == pytest.approx(weighted.log[0]["loss"], rel=1e-5)
    assert both.log[0]["penalty/entropy"] < 0


def test_the_floor_is_the_smallest_weight():
    logits = torch.tensor([[0.0, 10.0], [0.0, 10.0]])
    weights = Reweight(1.0, 0.25, "probability").token_weights(logits, torch.tensor([0, 1]), {})
    assert weights.tolist() == pytest.approx([0.25, float(torch.tensor(10.0).sigmoid())])


class Constant(Mitigation):
    """A penalty that is much larger than the likelihoods, and the same for every token."""

    def token_penalty(self, model, batch):
        return lambda logits, place: torch.full(logits.shape[:1], 1e6) + 0 * logits.sum(-1)


@pytest.mark.parametrize("weights", [{}, {"halves": Halves()}])
def test_the_logged_loss_is_that_of_the_likelihoods_whatever_a_penalty_adds(weights, make_stage, fit):
    data = make_stage(precision="float32")
    _, plain, _ = fit(data, weights)
    _, penalized, _ = fit(data, {**weights, "constant": Constant()})
    first, second = plain.log[0], penalized.log[0]
    assert second["penalty/constant"] == pytest.approx(1e6)
    assert first["loss"] == second["loss"], "not the difference of two large numbers"
    assert first.get("nll") == second.get("nll")


def begin_flow(data, model, **options):
    """Return the mitigation of FLOW after the start of the stage."""
    mitigation = Reweight(**({"power": 1.0, "floor": 0.0, "by": "row_loss"} | options))
    mitigation.on_stage_start(replace(data.stage, planned_rows=data.rows), model, {}, seed=0)
    return mitigation


def nll_of_rows(model, rows):
    """Return the negative log-likelihoods of each row's trained tokens, computed row by row, with their graph."""
    result = []
    for row in rows:
        ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
        logits = model(input_ids=ids).logits[0, :-1]
        result.append(functional.cross_entropy(logits, labels[0, 1:], reduction="none")[labels[0, 1:] != -100])
    return result


@pytest.mark.parametrize(
    ("engine", "packing"), [("transformers", False), ("trl", False), ("transformers", True), ("trl", True)]
)
def test_flow_trains_rows_by_their_loss_before_the_stage(engine, packing, make_stage, fit, tiny_model):
    order = [tuple(range(start, start + 3)) for start in range(0, 12, 3)] if packing else None
    size = {"batch_size": 2, "accumulation": 2} if packing else {"batch_size": 6, "accumulation": 2}
    data = make_stage(order=order, engine=engine, packing=packing, max_grad_norm=1e9, **size)
    mitigation = begin_flow(data, tiny_model)
    _, result, gradients = fit(data, {"reweight": mitigation})
    nll = nll_of_rows(tiny_model, data.rows)
    losses = [float(values.detach().mean()) for values in nll]
    temperature = statistics.median(losses)
    weights = [torch.tensor(-loss / temperature).exp() for loss in losses]
    total = sum(weight * values.sum() for weight, values in zip(weights, nll, strict=True)) / sum(map(len, nll))
    total.backward()
    for name, weight in tiny_model.named_parameters():
        assert torch.allclose(gradients[0][name], weight.grad, atol=1e-6), name
    assert result.log[0]["loss"] == pytest.approx(float(total.detach()), rel=1e-5)
    assert result.log[0]["nll"] == pytest.approx(float(torch.cat(nll).detach().mean()), rel=1e-5)
    assert result.log[0]["reweight/temperature"] == pytest.approx(temperature, rel=1e-5)
    assert result.log[0]["reweight/mean_weight"] == pytest.approx(float(torch.stack(weights).mean()), rel=1e-5)


def test_the_weights_of_rows_stay_those_before_the_stage(make_stage, tiny_model):
    data = make_stage()
    mitigation = begin_flow(data, tiny_model)
    batch = Collator(data.rows, data.order, 0)(range(4))
    targets = target_tokens(batch["labels"])
    before = mitigation.token_weights(torch.zeros(len(targets), 261), targets, batch)
    restored = Reweight(1.0, 0.0, "row_loss")
    restored.load_state_dict(mitigation.state_dict())
    after = restored.token_weights(torch.rand(len(targets), 261), targets, batch)
    assert torch.equal(before, after)
    assert len(before.unique()) == 4
    assert (
        len(mitigation.token_weights(torch.zeros(0, 261), targets[:0], {**batch, "labels": batch["labels"] * 0 - 100}))
        == 0
    )


def test_power_and_floor_apply_to_the_weights_of_rows(make_stage, tiny_model):
    data = make_stage()
    batch = Collator(data.rows, data.order, 0)(range(12))
    targets = target_tokens(batch["labels"])
    plain, squared, raised = (
        begin_flow(data, tiny_model, **options).token_weights(targets, targets, batch)
        for options in ({}, {"power": 2.0}, {"floor": 0.37})
    )
    assert torch.allclose(squared, plain**2)
    assert torch.allclose(raised, plain.clamp(min=0.37))
    assert bool((plain < 0.37).any())


def test_a_row_that_was_not_measured_is_an_error(make_stage, make_rows, tiny_model):
    mitigation = begin_flow(make_stage(), tiny_model)
    batch = Collator(make_rows(3, 9), [(0,)], 0)(range(1))
    targets = target_tokens(batch["labels"])
    with pytest.raises(RunError, match="a row of the batch was not measured"):
        mitigation.token_weights(targets, targets, batch)
