"""Which models train without padding: the config's answer is that of the loaded model."""

from __future__ import annotations

import sys

import pytest
from support.architectures import ARCHITECTURES, build_architecture

from harness.model.position_limit import config_as_dict
from harness.model.unpadded_rows import UNPADDED_MODEL_TYPES, attention_window, longest_unpadded_row
from harness.training.packing_isolation import unpadded_batches

SETTINGS = {"precision": "float32", "packing": False}
WINDOW = 16


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("longest_row", [WINDOW, WINDOW + 1])
def test_the_config_of_every_architecture_says_what_its_model_does(name, longest_row, tokenizer):
    model = build_architecture(name, tokenizer)
    longest = longest_unpadded_row(config_as_dict(model.config), "auto")
    with unpadded_batches(model, SETTINGS, longest_row) as flatten:
        assert flatten == (longest_row <= longest)


def test_every_listed_model_type_is_verified():
    assert {model_type for model_type, _ in ARCHITECTURES.values()} >= UNPADDED_MODEL_TYPES


@pytest.mark.parametrize(
    ("config", "attention", "longest"),
    [
        ({"model_type": "llama"}, "auto", sys.maxsize),
        ({"model_type": "llama"}, "sdpa", sys.maxsize),
        ({"model_type": "llama"}, "eager", 0),
        ({"model_type": "mistral", "sliding_window": 4096}, "auto", 4096),
        ({"model_type": "mistral", "sliding_window": 4096}, "flash_attention_2", sys.maxsize),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "sliding_window": 512}}, "auto", 512),
        ({"model_type": "bloom"}, "auto", 0),
        ({"model_type": "mamba"}, "auto", 0),
        ({"model_type": "a new type"}, "auto", 0),
        (None, "auto", 0),
    ],
)
def test_the_longest_unpadded_row_follows_from_config_and_attention(config, attention, longest):
    assert longest_unpadded_row(config, attention) == longest


@pytest.mark.parametrize(
    "config", [{}, {"sliding_window": None}, {"sliding_window": 0}, {"sliding_window": 8, "use_sliding_window": False}]
)
def test_a_window_that_is_not_used_is_no_limit(config):
    assert attention_window(config) == sys.maxsize
