"""The trial that packed rows cannot see each other tells the good from the bad."""

from __future__ import annotations

import pytest
import torch

from harness.errors import HarnessError
from harness.training.packing_isolation import verify_packing_isolation


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_sdpa_and_eager_keep_rows_apart(attention, tiny_model):
    tiny_model.set_attn_implementation(attention)
    tiny_model.train()
    verify_packing_isolation(tiny_model)
    assert tiny_model.training


def test_a_model_whose_rows_see_each_other_is_refused(tiny_model, monkeypatch):
    import transformers.masking_utils as masks

    monkeypatch.setattr(masks, "find_packed_sequence_indices", lambda position_ids: None)
    with pytest.raises(HarnessError, match=r"train\.packing: with attention 'sdpa'.*see each other.*'eager'"):
        verify_packing_isolation(tiny_model)


def test_a_model_that_ignores_where_a_row_starts_is_refused(tiny_model):
    forward, embed = tiny_model.forward, tiny_model.get_input_embeddings()

    def counted_on(input_ids, **rest):
        slot_positions = torch.arange(input_ids.shape[1]).float()
        return forward(inputs_embeds=embed(input_ids) + slot_positions.sin()[None, :, None], **rest)

    tiny_model.forward = counted_on
    with pytest.raises(HarnessError, match="see each other"):
        verify_packing_isolation(tiny_model)


def test_a_model_of_which_one_layer_leaks_a_little_is_refused(tiny_model):
    attention = tiny_model.model.layers[1].self_attn
    forward = attention.forward

    def leaking(hidden_states, **rest):
        output, weights = forward(hidden_states=hidden_states, **rest)
        return output + 0.02 * hidden_states.cumsum(1), weights

    attention.forward = leaking
    with pytest.raises(HarnessError, match="see each other"):
        verify_packing_isolation(tiny_model)


def test_packed_training_tries_it_first(make_stage, fit, monkeypatch):
    import transformers.masking_utils as masks

    monkeypatch.setattr(masks, "find_packed_sequence_indices", lambda position_ids: None)
    with pytest.raises(HarnessError, match=r"train\.packing"):
        fit(make_stage(order=[(0, 1), (2, 3)], packing=True))
    fit(make_stage(order=[(0,), (1,)]))
