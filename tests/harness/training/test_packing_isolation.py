"""The verification of packing isolation accepts isolated rows and rejects leaks."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import pytest
import torch

from harness.errors import HarnessError
from harness.model import row_attention
from harness.training.collator import Collator
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
    with pytest.raises(HarnessError, match=r"train\.packing: with attention 'sdpa'.*attend to each other") as caught:
        verify_packing_isolation(tiny_model)
    assert caught.value.hint == 'set train.packing to false, or try model.attention "eager"'


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


def one_row(positions):
    return [row_attention.LineSpan(0, len(positions), 0, 0)]


def test_packed_training_verifies_isolation_first(make_stage, fit, monkeypatch):
    import transformers.masking_utils as masks

    monkeypatch.setattr(masks, "find_packed_sequence_indices", lambda position_ids: None)
    monkeypatch.setattr(row_attention, "find_spans", one_row)
    with pytest.raises(HarnessError, match=r"train\.packing"):
        fit(make_stage(order=[(0, 1), (2, 3)], packing=True))
    fit(make_stage(order=[(0,), (1,)]))


@pytest.mark.parametrize("separates", [True, False])
def test_a_batch_is_one_line_only_if_the_model_separates_its_rows(make_stage, fit, monkeypatch, separates):
    shapes = []
    collate = Collator.__call__

    def recording_call(self, indices):
        batch = collate(self, indices)
        shapes.append(("attention_mask" in batch, batch["input_ids"].shape[0]))
        return batch

    if not separates:
        monkeypatch.setattr(row_attention, "find_spans", one_row)
    data = make_stage(order=[(0,), (1,)], batch_size=2)
    monkeypatch.setattr(Collator, "__call__", recording_call)
    _, result, _ = fit(data)
    assert shapes[-1] == ((False, 1) if separates else (True, 2))
    assert result.steps == 1


def test_rows_ordered_for_unpadded_batches_warn_where_they_are_padded(make_stage, fit, monkeypatch):
    data = replace(make_stage(order=[(0,), (1,)], batch_size=2), is_padded=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(data)
    monkeypatch.setattr(row_attention, "supports_row_attention", lambda model, longest_row: False)
    with pytest.warns(UserWarning, match="padded batches whose rows have different lengths"):
        fit(data)


def test_training_without_padding_equals_padded_training(make_stage, fit, tiny_model, monkeypatch):
    weights, losses = [], []
    for padded in (False, True):
        if padded:
            monkeypatch.setattr(row_attention, "supports_row_attention", lambda model, longest_row: False)
        model = copy.deepcopy(tiny_model)
        stage = make_stage(order=[(0,), (1,), (2,), (3,)], batch_size=2, precision="float32")
        _, result, _ = fit(stage, model=model)
        losses.append([entry["loss"] for entry in result.log])
        weights.append(torch.cat([weight.detach().flatten() for weight in model.parameters()]))
        assert model.config._attn_implementation == "sdpa", "the model's own attention is restored"
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=1e-5)
