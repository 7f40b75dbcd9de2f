"""Weights of tokens by the entropy of the prediction: closed forms, and which tokens count less."""

from __future__ import annotations

import math

import pytest
import torch
from harness_mitigations.reweight import (
    ENTROPY_TOKENS,
    Reweight,
    median_of_rows,
    normalized_top_entropy,
    rows_of_targets,
)

from harness import HarnessError


def weights(logits, targets, **options):
    mitigation = Reweight(**({"power": 1.0, "floor": 0.0, "by": "entropy"} | options))
    return mitigation.token_weights(logits, targets, {})


def test_equal_logits_have_the_largest_entropy():
    assert torch.allclose(normalized_top_entropy(torch.zeros(3, 100)), torch.ones(3))


def test_a_certain_prediction_has_no_entropy():
    logits = torch.full((1, 50), -40.0)
    logits[0, 7] = 40.0
    assert float(normalized_top_entropy(logits)) == pytest.approx(0.0, abs=1e-6)


def test_entropy_is_that_of_the_renormalized_most_likely_tokens():
    p = torch.arange(1.0, 41.0)
    top = p[-ENTROPY_TOKENS:] / p[-ENTROPY_TOKENS:].sum()
    expected = float(-(top * top.log()).sum()) / math.log(ENTROPY_TOKENS)
    assert float(normalized_top_entropy(p.log()[None])) == pytest.approx(expected, rel=1e-5)


def test_a_small_vocabulary_is_used_whole():
    p = torch.tensor([0.5, 0.25, 0.25])
    expected = float(-(p * p.log()).sum()) / math.log(3)
    assert float(normalized_top_entropy(p.log()[None])) == pytest.approx(expected, rel=1e-5)


def test_an_unlikely_token_counts_less_only_where_the_model_is_sure():
    sure, unsure = torch.zeros(30), torch.zeros(30)
    sure[3] = 12.0
    targets = torch.tensor([5, 5])  # unlikely in both
    by_entropy = weights(torch.stack([sure, unsure]), targets)
    by_probability = weights(torch.stack([sure, unsure]), targets, by="probability")
    assert by_entropy[0] < 0.01 < 0.99 < by_entropy[1]
    assert by_probability.max() < 0.05


def test_power_and_floor_apply_to_entropies():
    logits = torch.arange(1.0, 41.0).log()[None]
    base = float(normalized_top_entropy(logits))
    target = torch.tensor([0])
    assert float(weights(logits, target, power=2.0)) == pytest.approx(base**2, rel=1e-5)
    assert float(weights(logits, target, floor=0.999)) == pytest.approx(0.999)


def test_the_rows_of_a_line_differ_by_their_positions():
    labels = torch.tensor([[-100, 5, 6, -100, 7, 8, -100, -100]])
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 0]])
    rows = rows_of_targets({"labels": labels, "position_ids": positions})
    assert len(rows) == 4
    assert [int(row == rows[0]) for row in rows] == [1, 1, 0, 0]
    padded = torch.tensor([[-100, 5, 6], [-100, 7, -100]])
    rows = rows_of_targets({"labels": padded})
    assert [int(row == rows[0]) for row in rows] == [1, 1, 0]


def test_the_median_is_that_of_the_means_of_rows():
    values = torch.tensor([1.0, 3.0, 10.0, 4.0, 4.0, 4.0])
    assert float(median_of_rows(values, torch.tensor([9, 9, 4, 2, 2, 2]))) == pytest.approx(4.0)
    assert float(median_of_rows(values[:3], torch.tensor([0, 0, 1]))) == pytest.approx(6.0)


def test_talr_weights_are_exponentials_of_the_loss_over_the_median():
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(5, 30, generator=generator), torch.tensor([1, 2, 3, 4, 5])
    batch = {"labels": torch.tensor([[-100, 1, 2], [-100, 3, -100], [-100, 4, 5]])}
    nll = -logits.log_softmax(-1)[range(5), targets]
    temperature = sorted([float(nll[:2].mean()), float(nll[2]), float(nll[3:].mean())])[1]
    mitigation = Reweight(power="median", floor=0.01, by="probability")
    assert not mitigation.weighs_tokens_in_parts
    expected = (-nll / temperature).exp().clamp(min=0.01)
    assert torch.allclose(mitigation.token_weights(logits, targets, batch), expected, rtol=1e-5)
    assert len(mitigation.token_weights(logits[:0], targets[:0], {"labels": torch.full((1, 3), -100)})) == 0


def test_rows_that_are_known_by_heart_keep_finite_weights():
    logits = torch.full((2, 8), -60.0)
    logits[:, 3] = 60.0
    mitigation = Reweight(power="median", floor=0.0, by="probability")
    weights = mitigation.token_weights(logits, torch.tensor([3, 3]), {"labels": torch.tensor([[0, 3, 3]])})
    assert torch.equal(weights, torch.ones(2))


def test_the_median_is_for_probabilities():
    with pytest.raises(HarnessError, match="'power' is 'median', and 'by' is 'entropy'"):
        Reweight(power="median", floor=0.0, by="entropy")
