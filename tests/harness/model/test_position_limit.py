"""The number of positions from a config, compared with what the models of transformers compute."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from harness.model.position_limit import PositionLimit, position_limit, text_config

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
GPT_SIZES = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 16}
TABLES = {
    "gpt2": GPT_SIZES,
    "gpt_bigcode": GPT_SIZES,
    "gptj": {**GPT_SIZES, "rotary_dim": 4},
    "codegen": {**GPT_SIZES, "n_head": 4, "rotary_dim": 4},
    "openai-gpt": GPT_SIZES,
    "ctrl": {**GPT_SIZES, "dff": 32},
    "gpt_neo": {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "attention_types": [[["global"], 1]]},
    "opt": {**SIZES, "ffn_dim": 32, "word_embed_proj_dim": 32},
    "biogpt": SIZES,
    "mpt": {"d_model": 32, "n_layers": 1, "n_heads": 2, "max_seq_len": 16},
    "bert": {**SIZES, "is_decoder": True},
    "roberta": {**SIZES, "is_decoder": True, "pad_token_id": 1},
    "xlm-roberta": {**SIZES, "is_decoder": True, "pad_token_id": 1},
    "roformer": {**SIZES, "embedding_size": 32, "is_decoder": True},
}


def build_model(model_type, **settings):
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, vocab_size=40, **{"max_position_embeddings": 16, **settings})
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("model_type", TABLES)
def test_a_model_with_a_table_computes_up_to_its_limit_and_not_beyond(model_type):
    model = build_model(model_type, **TABLES[model_type])
    limit = position_limit(model.config.to_dict())
    assert limit is not None
    assert limit.is_hard
    ids = torch.full((1, limit.positions + 1), 7)
    model(input_ids=ids[:, :-1])
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=ids)


def test_a_rotary_model_computes_beyond_the_positions_of_its_training():
    model = build_model("llama", **SIZES)
    assert position_limit(model.config.to_dict()) == PositionLimit(16, is_hard=False)
    model(input_ids=torch.full((1, 40), 7))


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [("bloom", {"n_layer": 1, "n_head": 2, "hidden_size": 32}), ("mamba", {"hidden_size": 32, "num_hidden_layers": 1})],
)
def test_a_model_without_positions_has_no_limit(model_type, settings):
    assert position_limit(AutoConfig.for_model(model_type, **settings).to_dict()) is None


def test_the_config_of_a_multimodal_model_is_that_of_its_language_model():
    text = {"model_type": "gemma3_text", "max_position_embeddings": 512}
    assert position_limit({"model_type": "gemma3", "text_config": text}) == PositionLimit(512, is_hard=False)


@pytest.mark.slow
def test_every_model_type_of_transformers_without_rotary_positions_is_classified():
    """A new model type with a table must be added to `TABLE_MODEL_TYPES`; else its rows would fail in training."""
    unclassified = set()
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            config = AutoConfig.for_model(model_type).to_dict()
        except Exception:  # a few configs have no complete defaults
            continue
        limit = position_limit(config)
        is_rotary = any("rope" in key or "rotary" in key for key in text_config(config))
        if limit is not None and not limit.is_hard and not is_rotary:
            unclassified.add(model_type)
    assert unclassified <= {"inkling2_text", "inkling_text", "jamba", "nemotron_h", "xglm", "zamba"}
