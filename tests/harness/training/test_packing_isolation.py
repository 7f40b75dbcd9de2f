"""The verification of packing isolation accepts isolated rows and rejects leaks."""

from __future__ import annotations

import pytest
import torch

from harness.errors import HarnessError
from harness.training.packing_isolation import verify_packing_isolation


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_sdpa_and_eager_isolate_rows(attention, tiny_model):
    tiny_model.set_attn_implementation(attention)
    tiny_model.train()
    verify_packing_isolation(tiny_model)
    assert tiny_model.training


def test_model_whose_rows_attend_to_each_other_is_rejected(tiny_model, monkeypatch):
    import transformers.masking_utils as masks

    monkeypatch.setattr(masks, "find_packed_sequence_indices", lambda position_ids: None)
    with pytest.raises(HarnessError, match=r"train\.packing: with attention 'sdpa'.*attend to each other.*'eager'"):
        verify_packing_isolation(tiny_model)


def test_model_that_ignores_where_a_row_starts_is_rejected(tiny_model):
    forward, embed = tiny_model.forward, tiny_model.get_input_embeddings()

    def forward_with_absolute_positions(input_ids, **rest):
        positions = torch.arange(input_ids.shape[1]).float()
        return forward(inputs_embeds=embed(input_ids) + positions.sin()[None, :, None], **rest)

    tiny_model.forward = forward_with_absolute_positions
    with pytest.raises(HarnessError, match="attend to each other"):
        verify_packing_isolation(tiny_model)


def test_model_with_a_small_leak_in_one_layer_is_rejected(tiny_model):
    attention = tiny_model.model.layers[1].self_attn
    forward = attention.forward

    def leaking(hidden_states, **rest):
        output, weights = forward(hidden_states=hidden_states, **rest)
        return output + 0.02 * hidden_states.cumsum(1), weights

    attention.forward = leaking
    with pytest.raises(HarnessError, match="attend to each other"):
        verify_packing_isolation(tiny_model)


def test_packed_training_verifies_isolation_first(make_stage, fit, monkeypatch):
    import transformers.masking_utils as masks

    monkeypatch.setattr(masks, "find_packed_sequence_indices", lambda position_ids: None)
    with pytest.raises(HarnessError, match=r"train\.packing"):
        fit(make_stage(order=[(0, 1), (2, 3)], packing=True))
    fit(make_stage(order=[(0,), (1,)]))
