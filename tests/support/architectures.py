"""Tiny random models of many architectures, built in code with the vocabulary of a tokenizer."""

from __future__ import annotations

from typing import Any

import torch

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
"""Sizes by the names that most configs use."""

_MHA = {**SMALL, "num_key_value_heads": 4}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 48}
_MLA = {
    **_MHA,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": 8,
}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_DEEPSEEK_MOE = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_MAMBA = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "time_step_rank": 4}
_MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 16}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    # decoders with rotary positions; the tokenizer of Qwen2 adds a token, and its models have unused rows for it
    "llama": ("llama", SMALL),
    "llama-tied": ("llama", {**SMALL, "tie_word_embeddings": True}),
    "mistral": ("mistral", {**SMALL, "sliding_window": 16}),
    "qwen2": ("qwen2", {**SMALL, "vocab_size": 264}),
    "qwen2-tied": ("qwen2", {**SMALL, "vocab_size": 264, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {**SMALL, "head_dim": 8}),
    "gemma": ("gemma", {**SMALL, "head_dim": 8}),
    "gemma2": ("gemma2", {**SMALL, "head_dim": 8, "sliding_window": 16}),
    "gemma3": ("gemma3_text", {**SMALL, "head_dim": 8, "sliding_window": 16}),
    "phi": ("phi", _MHA),
    "phi3": ("phi3", SMALL),
    "smollm3": ("smollm3", SMALL),
    "olmo": ("olmo", _MHA),
    "olmo2": ("olmo2", _MHA),
    "olmo3": ("olmo3", {**_MHA, "sliding_window": 16}),
    "cohere": ("cohere", SMALL),
    "cohere2": ("cohere2", {**SMALL, "sliding_window": 16}),
    "granite": ("granite", SMALL),
    "stablelm": ("stablelm", _MHA),
    "starcoder2": ("starcoder2", SMALL),
    "glm": ("glm", {**SMALL, "head_dim": 8}),
    "glm4": ("glm4", {**SMALL, "head_dim": 8}),
    "exaone4": ("exaone4", {**SMALL, "sliding_window": 16}),
    "ernie4_5": ("ernie4_5", SMALL),
    "seed_oss": ("seed_oss", {**SMALL, "head_dim": 8}),
    "nemotron": ("nemotron", SMALL),
    "helium": ("helium", {**SMALL, "head_dim": 8}),
    "persimmon": ("persimmon", _MHA),
    "gpt_neox": ("gpt_neox", {**_MHA, "rotary_pct": 0.5}),
    "gptj": ("gptj", {**_GPT, "rotary_dim": 4}),
    "falcon": ("falcon", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}),
    # decoders with learned or ALiBi positions
    "gpt2": ("gpt2", _GPT),
    "gpt_bigcode": ("gpt_bigcode", _GPT),
    "gpt_neo": (
        "gpt_neo",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "max_position_embeddings": 256,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 16,
        },
    ),
    "opt": (
        "opt",
        {
            "hidden_size": 32,
            "word_embed_proj_dim": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
        },
    ),
    "xglm": (
        "xglm",
        {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4, "max_position_embeddings": 256},
    ),
    "bloom": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mpt": ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "expansion_ratio": 2, "max_seq_len": 256}),
    # latent attention
    "minicpm3": ("minicpm3", _MLA),
    # mixtures of experts
    "mixtral": ("mixtral", {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": ("qwen2_moe", {**SMALL, **_MOE, "shared_expert_intermediate_size": 24}),
    "qwen3_moe": ("qwen3_moe", {**SMALL, **_MOE, "head_dim": 8}),
    "olmoe": ("olmoe", {**_MHA, "num_experts": 4, "num_experts_per_tok": 2}),
    "granitemoe": ("granitemoe", {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "phimoe": ("phimoe", {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt_oss": (
        "gpt_oss",
        {**SMALL, "intermediate_size": 64, "head_dim": 8, "num_local_experts": 4, "sliding_window": 16},
    ),
    "llama4": (
        "llama4_text",
        {**SMALL, "head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 4, "num_experts_per_tok": 1},
    ),
    "deepseek_v3": ("deepseek_v3", {**_MLA, **_DEEPSEEK_MOE, "n_shared_experts": 1}),
    "glm4_moe": ("glm4_moe", {**SMALL, **_DEEPSEEK_MOE, "head_dim": 8, "n_shared_experts": 1}),
    "ernie4_5_moe": (
        "ernie4_5_moe",
        {**SMALL, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24, "moe_num_shared_experts": 1},
    ),
    # recurrent models, and hybrids of them
    "mamba": ("mamba", _MAMBA),
    "falcon_mamba": ("falcon_mamba", _MAMBA),
    "mamba2": ("mamba2", {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 16, "n_groups": 1,
                          "state_size": 8, "chunk_size": 16}),
    "rwkv": (
        "rwkv",
        {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "intermediate_size": 48,
         "rescale_every": 1},
    ),
    "recurrent_gemma": (
        "recurrent_gemma",
        {**SMALL, "num_hidden_layers": 3, "head_dim": 8, "lru_width": 32, "attention_window_size": 16},
    ),
    "jamba": (
        "jamba",
        {**SMALL, "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
         "expert_layer_offset": 1, "mamba_d_state": 8, "use_mamba_kernels": False},
    ),
    "bamba": ("bamba", {**SMALL, **_MAMBA2, "attn_layer_indices": [1]}),
    "falcon_h1": ("falcon_h1", {**SMALL, **_MAMBA2, "head_dim": 8, "mamba_d_ssm": 64}),
    "granitemoehybrid": (
        "granitemoehybrid",
        {**SMALL, **_MAMBA2, "layer_types": ["mamba", "attention"], "num_local_experts": 4, "num_experts_per_tok": 2,
         "shared_intermediate_size": 24},
    ),
    "lfm2": ("lfm2", {**SMALL, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8}),
    "qwen3_next": (
        "qwen3_next",
        {**SMALL, **_MOE, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
         "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
         "shared_expert_intermediate_size": 24},
    ),
    "minimax": (
        "minimax",
        {**SMALL, "head_dim": 8, "num_local_experts": 4, "layer_types": ["linear_attention", "full_attention"],
         "block_size": 16},
    ),
}  # fmt: skip
"""Name -> model type of transformers, and the settings of its config besides the vocabulary."""


def build_architecture(name: str, tokenizer: Any) -> Any:
    """Return a random model of the architecture in float32, seed 0, whose answers depend on its prompts.

    Args:
        name: A key of `ARCHITECTURES`.
        tokenizer: The tokenizer whose vocabulary and special tokens the model gets.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, settings = ARCHITECTURES[name]
    config = AutoConfig.for_model(
        model_type,
        **{
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **settings,
        },
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:  # weights of the usual 0.02 are nearly 0 at this width: answers would be one token
                parameter.mul_(4)
            else:  # biases are initialized with 0, where e.g. padding has no effect on a recurrent model
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()
