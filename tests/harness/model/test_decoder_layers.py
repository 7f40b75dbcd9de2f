"""The repeated layers of a model are found by their number."""

from __future__ import annotations

from peft import LoraConfig, get_peft_model

from harness.model.decoder_layers import find_decoder_layers


def test_the_layers_are_those_that_repeat_also_within_an_adapter(tiny_model):
    assert find_decoder_layers(tiny_model) == list(tiny_model.model.layers)
    adapted = get_peft_model(tiny_model, LoraConfig(r=2))
    assert find_decoder_layers(adapted) == list(tiny_model.model.layers)
    del tiny_model.model.layers[1]
    assert find_decoder_layers(tiny_model) == []
