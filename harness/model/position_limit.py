"""The number of positions that a model can compute with, from its config alone. Imports nothing heavy.

A model with a table of positions (GPT-2, OPT, GPT-J) cannot compute beyond it. A model with rotary positions computes
beyond the positions that it was trained with, but usually badly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

POSITION_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions")
"""Keys of a config that hold the number of positions; the first one that a config has counts."""

TABLE_MODEL_TYPES = frozenset({
    "bart", "bert", "bert-generation", "big_bird", "bigbird_pegasus", "biogpt", "blenderbot", "blenderbot-small",
    "codegen", "ctrl", "electra", "ernie", "git", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neo", "gptj", "marian",
    "mbart", "megatron-bert", "mpt", "mvp", "openai-gpt", "opt", "pegasus", "plbart", "prophetnet", "reformer",
    "rembert", "roc_bert", "roformer", "trocr", "whisper", "xlm",
})  # fmt: skip
"""Model types of transformers whose positions are a table with one row each."""

OFFSET_MODEL_TYPES = frozenset({
    "camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
})  # fmt: skip
"""The same, but the rows up to that of the padding token are not positions."""

UNLIMITED_MODEL_TYPES = frozenset({"bloom"})
"""Model types with linear biases instead of positions (ALiBi), whatever their config says."""


@dataclass(frozen=True)
class PositionLimit:
    """The positions of a model.

    Attributes:
        positions: Number of positions of its table, or that it was trained with.
        is_hard: Whether the model cannot compute beyond them.
    """

    positions: int
    is_hard: bool


def position_limit(config: Mapping[str, Any]) -> PositionLimit | None:
    """Return the positions of a model; None if its config has no number of them (ALiBi, state-space models).

    Args:
        config: The model's config as in config.json, complete or of a multimodal model.
    """
    config = text_config(config)
    model_type = config.get("model_type")
    positions = next((config[key] for key in POSITION_KEYS if config.get(key)), None)
    if not isinstance(positions, int) or positions < 1 or model_type in UNLIMITED_MODEL_TYPES:
        return None
    if model_type in OFFSET_MODEL_TYPES:
        return PositionLimit(positions - int(config.get("pad_token_id") or 0) - 1, is_hard=True)
    return PositionLimit(positions, is_hard=model_type in TABLE_MODEL_TYPES)


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config of the language model, which a multimodal model's config has within it."""
    for key in ("text_config", "llm_config", "language_config"):
        if isinstance(config.get(key), Mapping):
            inner: Mapping[str, Any] = config[key]
            return inner
    return config


def config_as_dict(config: Any) -> Mapping[str, Any]:
    """Return the config object of a loaded model as `position_limit` takes it."""
    to_dict = getattr(config, "to_dict", None)
    result: Mapping[str, Any] = to_dict() if callable(to_dict) else vars(config)
    return result
