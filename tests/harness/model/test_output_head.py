"""The output head is applied at chosen positions only."""

from __future__ import annotations

import pytest
import torch

from harness.errors import HarnessError
from harness.model.output_head import logits_at

IDS = torch.arange(10, 22).reshape(2, 6)


def test_logits_at_positions_equal_those_of_the_full_forward_pass(tokenizer, tiny_model):
    positions = torch.zeros(2, 6, dtype=torch.bool)
    positions[0, 5] = positions[1, 2] = positions[1, 3] = True
    with torch.no_grad():
        full_logits = tiny_model(input_ids=IDS).logits
        with logits_at(tiny_model, positions):
            logits = tiny_model(input_ids=IDS).logits
        assert logits.shape == (1, 3, len(tokenizer))
        torch.testing.assert_close(logits[0], full_logits[positions])
        assert tiny_model(input_ids=IDS).logits.shape == full_logits.shape, "the head is as before"


def test_hook_is_removed_after_an_error_within_the_context(tiny_model):
    head = tiny_model.get_output_embeddings()
    with pytest.raises(RuntimeError), logits_at(tiny_model, torch.ones(1, 1, dtype=torch.bool)):
        raise RuntimeError
    assert not head._forward_pre_hooks


def test_hook_is_removed_when_the_forward_pass_fails(tiny_model):
    with pytest.raises(IndexError), logits_at(tiny_model, torch.ones(3, 3, dtype=torch.bool)):
        tiny_model(torch.tensor([[1, 2]]))
    assert tiny_model(torch.tensor([[1, 2]])).logits.shape == (1, 2, 261)


def test_model_without_output_embeddings_is_rejected(tiny_model):
    with (
        pytest.raises(HarnessError, match="LlamaModel has no output embeddings; give a causal language model"),
        logits_at(tiny_model.model, torch.ones(1, 1)),
    ):
        pytest.fail("entered the context")
