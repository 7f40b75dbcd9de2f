"""Weights of tokens in the loss: what is trained is what is logged, in chunks or not."""

from __future__ import annotations

import pytest
import torch
from harness_mitigations.reweight import Reweight

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
