"""The head at trained positions gives what full logits give."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.errors import HarnessError
from harness.training.collator import Collator
from harness.training.loss import logits_at, summed_nll, target_mask


@pytest.fixture
def batch(make_rows):
    rows = make_rows(5)
    return Collator(rows, [(index,) for index in range(5)], 0)(range(5))


def test_trained_marks_the_position_before_each_trained_token():
    labels = torch.tensor([[5, -100, 7, 8], [-100, -100, -100, -100]])
    assert target_mask(labels).tolist() == [[False, True, True, False], [False, False, False, False]]


def test_sum_at_trained_positions_equals_the_sum_from_full_logits_with_its_gradient(tiny_model, batch):
    few = summed_nll(tiny_model, tiny_model, batch)
    few.backward()
    gradients = [weight.grad.clone() for weight in tiny_model.parameters()]
    tiny_model.zero_grad()
    logits = tiny_model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].flatten(0, 1)
    full = nn.functional.cross_entropy(logits, batch["labels"][:, 1:].flatten(), ignore_index=-100, reduction="sum")
    full.backward()
    assert few.item() == pytest.approx(full.item(), rel=1e-6)
    for gradient, weight in zip(gradients, tiny_model.parameters(), strict=True):
        assert torch.allclose(gradient, weight.grad, atol=1e-5)


def test_the_head_sees_only_trained_positions_and_only_within(tiny_model, batch):
    seen = []
    tiny_model.lm_head.register_forward_hook(lambda module, arguments, output: seen.append(tuple(output.shape)))
    summed_nll(tiny_model, tiny_model, batch)
    tiny_model(batch["input_ids"])
    lines, width = batch["labels"].shape
    count = int(target_mask(batch["labels"]).sum())
    assert count < lines * width / 2
    assert seen == [(1, count, 261), (lines, width, 261)]


def test_the_hook_is_taken_away_when_the_forward_pass_fails(tiny_model):
    with pytest.raises(IndexError), logits_at(tiny_model.lm_head, torch.ones(3, 3, dtype=torch.bool)):
        tiny_model(torch.tensor([[1, 2]]))
    assert tiny_model(torch.tensor([[1, 2]])).logits.shape == (1, 2, 261)


def test_sum_is_float32_whatever_the_model_is(tiny_model, batch):
    assert summed_nll(tiny_model.bfloat16(), tiny_model, batch).dtype == torch.float32


def test_a_uniform_model_costs_log_v_a_token(tiny_model, batch):
    nn.init.zeros_(tiny_model.lm_head.weight)
    count = int(target_mask(batch["labels"]).sum())
    found = summed_nll(tiny_model, tiny_model, batch).item()
    assert found == pytest.approx(count * torch.log(torch.tensor(261.0)).item(), rel=1e-6)


def test_a_model_without_a_head_is_an_error(tiny_model, batch):
    with pytest.raises(HarnessError, match="no output embeddings"):
        summed_nll(tiny_model.model, tiny_model.model, batch)
