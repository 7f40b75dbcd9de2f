"""The loss from logits at trained positions equals the loss from full logits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness.errors import HarnessError
from harness.training.collator import Collator
from harness.training.loss import summed_nll, target_mask


@pytest.fixture
def batch(make_rows):
    rows = make_rows(5)
    return Collator(rows, [(index,) for index in range(5)], 0)(range(5))


def test_target_mask_marks_the_position_before_each_trained_token():
    labels = torch.tensor([[5, -100, 7, 8], [-100, -100, -100, -100]])
    assert target_mask(labels).tolist() == [[False, True, True, False], [False, False, False, False]]


def test_nll_at_trained_positions_equals_the_nll_from_full_logits_with_its_gradient(tiny_model, batch):
    nll = summed_nll(tiny_model, tiny_model, batch)
    nll.backward()
    gradients = [weight.grad.clone() for weight in tiny_model.parameters()]
    tiny_model.zero_grad()
    logits = tiny_model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].flatten(0, 1)
    full_nll = nn.functional.cross_entropy(logits, batch["labels"][:, 1:].flatten(), ignore_index=-100, reduction="sum")
    full_nll.backward()
    assert nll.item() == pytest.approx(full_nll.item(), rel=1e-6)
    for gradient, weight in zip(gradients, tiny_model.parameters(), strict=True):
        assert torch.allclose(gradient, weight.grad, atol=1e-5)


def test_head_is_applied_only_at_trained_positions_and_only_within_the_loss(tiny_model, batch):
    output_shapes = []
    tiny_model.lm_head.register_forward_hook(
        lambda module, arguments, output: output_shapes.append(tuple(output.shape))
    )
    summed_nll(tiny_model, tiny_model, batch)
    tiny_model(batch["input_ids"])
    batch_size, width = batch["labels"].shape
    count = int(target_mask(batch["labels"]).sum())
    assert count < batch_size * width / 2
    assert output_shapes == [(1, 0, 261), (1, count, 261), (batch_size, width, 261)]


def test_nll_is_float32_whatever_the_dtype_of_the_model(tiny_model, batch):
    assert summed_nll(tiny_model.bfloat16(), tiny_model, batch).dtype == torch.float32


def test_nll_of_a_uniform_model_is_log_v_per_token(tiny_model, batch):
    nn.init.zeros_(tiny_model.lm_head.weight)
    count = int(target_mask(batch["labels"]).sum())
    nll = summed_nll(tiny_model, tiny_model, batch).item()
    assert nll == pytest.approx(count * torch.log(torch.tensor(261.0)).item(), rel=1e-6)


def test_model_without_output_head_is_an_error(tiny_model, batch):
    with pytest.raises(HarnessError, match="no output embeddings"):
        summed_nll(tiny_model.model, tiny_model.model, batch)
