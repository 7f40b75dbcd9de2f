"""Which models train without padding, from their config alone. Imports nothing heavy.

The order of the rows is laid down before a model is loaded, and depends on it: padded batches hold rows of similar
length, batches without padding need not. Whether a loaded model separates the rows of a line is verified by
`harness.training.packing_isolation`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from harness.model.position_limit import text_config

UNPADDED_MODEL_TYPES = frozenset({
    "cohere", "cohere2", "deepseek_v3", "ernie4_5", "ernie4_5_moe", "exaone4", "gemma", "gemma3_text", "glm", "glm4",
    "glm4_moe", "gpt2", "gpt_neox", "granite", "granitemoe", "helium", "llama", "minicpm3", "mistral", "mixtral",
    "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "opt", "phi", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3",
    "qwen3_moe", "seed_oss", "smollm3", "stablelm", "starcoder2",
})  # fmt: skip
"""Model types of transformers that compute attention through its `AttentionInterface`, from the positions of the rows.

The others have ALiBi, recurrent layers or an attention of their own. A test verifies a model of every type.
"""

_WINDOW_KEYS = ("sliding_window", "attention_chunk_size", "window_size", "attention_window")


def longest_unpadded_row(config: Mapping[str, Any] | None, attention: str) -> int:
    """Return the length of the longest row with which batches need no padding, in tokens.

    Args:
        config: The model's config as in config.json; None if it is unknown.
        attention: `model.attention` of the spec.

    Returns:
        0 for a model that trains on padded batches; `sys.maxsize` if the length does not matter.
    """
    if config is None or text_config(config).get("model_type") not in UNPADDED_MODEL_TYPES or attention == "eager":
        return 0
    return sys.maxsize if attention.startswith("flash") else attention_window(config)


def attention_window(config: Mapping[str, Any]) -> int:
    """Return the tokens that the shortest attention window of a model reaches; `sys.maxsize` for none."""
    config = text_config(config)
    if config.get("use_sliding_window") is False:
        return sys.maxsize
    windows = [config[key] for key in _WINDOW_KEYS if isinstance(config.get(key), int) and config[key] > 0]
    return min(windows, default=sys.maxsize)
