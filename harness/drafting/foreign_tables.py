"""Keys of other trainers and what they are in a spec, as tables of facts.

Sources: the documented arguments of LLaMA-Factory (hparams), ms-swift (command line parameters) and TRL (SFTConfig,
ModelConfig, ScriptArguments). Axolotl's are in `foreign_axolotl`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.drafting.foreign_axolotl import AXOLOTL
from harness.drafting.foreign_hugging_face import (
    CACHES,
    DISTRIBUTED,
    DTYPE,
    DTYPES,
    FULL_ROWS,
    HUGGING_FACE,
    KERNELS,
    LAUNCHER,
    LOGS,
    LORA,
    SPLIT,
    TRAIN,
    WORKERS,
    to_attention,
)
from harness.drafting.foreign_values import (
    Key,
    choice,
    differs,
    missing,
    switch,
    to_int,
    to_layers,
    to_number,
    to_share,
    unneeded,
    when,
)

LLAMA_FACTORY: dict[str, Key] = {
    **HUGGING_FACE,
    "model_name_or_path": Key("model.path", str),
    "adapter_name_or_path": missing('a spec continues a run: "model": {"path": "run:EARLIER"}'),
    "stage": Key("", when("sft", None, "only supervised fine-tuning is trained")),
    "lora_rank": Key(f"{LORA}.rank", to_int),
    "lora_alpha": Key(f"{LORA}.alpha", to_number),
    "lora_dropout": Key(f"{LORA}.dropout", to_number),
    "lora_target": Key(f"{LORA}.target", to_layers),
    "use_rslora": Key(f"{LORA}.rslora", bool),
    "use_dora": Key(f"{LORA}.dora", bool),
    "pissa_init": Key(f"{LORA}.start", switch("pissa")),
    "loraplus_lr_ratio": Key(f"{LORA}.loraplus_ratio", to_number),
    "template": Key("template"),
    "cutoff_len": Key(f"{TRAIN}.max_length", to_int, change=FULL_ROWS),
    "packing": Key(f"{TRAIN}.packing", bool, change="packed rows do not attend to each other, as with neat_packing"),
    "neat_packing": Key(f"{TRAIN}.packing", bool),
    "flash_attn": Key("model.attention", to_attention),
    "pure_bf16": Key(f"{TRAIN}.precision", switch("bfloat16"), change=DTYPE),
    "disable_gradient_checkpointing": Key(f"{TRAIN}.gradient_checkpointing", lambda value: not value),
    "train_on_prompt": missing("the loss is on responses only"),
    "use_muon": Key(f"{TRAIN}.optimizer", switch({"muon": {}})),
    "use_galore": missing("there is no GaLore"),
    "use_badam": missing("there is no BAdam"),
    "mix_strategy": missing("rows of all sources are trained in one random order"),
    "interleave_probs": missing("shares are set by mitigations.mixing, in trained tokens"),
    "streaming": missing("rows are read once and stored on disk"),
    "resize_vocab": unneeded("the embeddings get a row for each added token"),
    "dataset_dir": unneeded("it names where dataset_info.json is"),
    "preprocessing_num_workers": unneeded(WORKERS),
    "overwrite_cache": unneeded(CACHES),
    "plot_loss": unneeded("report.html has the curves"),
    "use_fast_tokenizer": unneeded("the fast tokenizer is used"),
    "include_num_input_tokens_seen": unneeded(LOGS),
    "eval_dataset": differs("the held-out rows are measured; add a source and a suite for other rows"),
    "pissa_iter": differs("the decomposition is exact, not iterated"),
    "pissa_convert": unneeded("the adapter is saved with the base model unchanged"),
    "use_dft_loss": Key("mitigations.reweight", switch({"by": "probability"})),
    "use_eaft_loss": Key(
        "mitigations.reweight", switch({"by": "entropy"}), change="the entropy is divided by ln 20, not by 3"
    ),
    "oft_block_size": Key("mitigations.oft.block", to_int),
    "oft_target": Key("mitigations.oft.target", to_layers),
    "use_v1_kernels": unneeded(KERNELS),
    "batching_strategy": Key(
        "",
        choice({"normal": None, "padding_free": None}),
        unneeded="rows are trained without padding where the device supports it",
    ),
    "model_class": Key("", when("llm", None, "a causal language model is trained"), unneeded="it is the only class"),
    "sample_backend": unneeded("a run evaluates its suites"),
    "max_new_tokens": unneeded("a suite has its own generation"),
    "batching_workers": unneeded(WORKERS),
    "cp_size": Key("", when(1, None, DISTRIBUTED)),
    "cp_mode": unneeded("it belongs to cp_size"),
    "enable_activation_checkpointing": Key(f"{TRAIN}.gradient_checkpointing", bool),
    "enable_liger_kernel": unneeded(KERNELS),
    "use_unsloth": unneeded(KERNELS),
    "ray_num_workers": differs(LAUNCHER),
    "use_distributed_optimizer": missing(DISTRIBUTED),
    "fp8": missing("there is no computation in FP8"),
    **dict.fromkeys(
        (
            *("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size"),
            "expert_model_parallel_size",
        ),
        Key("", when(1, None, DISTRIBUTED)),
    ),
}

MS_SWIFT: dict[str, Key] = {
    **HUGGING_FACE,
    "model": Key("model.path", str),
    "model_revision": Key("model.revision", str),
    "torch_dtype": Key(f"{TRAIN}.precision", DTYPES, change=DTYPE),
    "lora_rank": Key(f"{LORA}.rank", to_int),
    "lora_alpha": Key(f"{LORA}.alpha", to_number),
    "lora_dropout": Key(f"{LORA}.dropout", to_number),
    "target_modules": Key(f"{LORA}.target", to_layers),
    "use_rslora": Key(f"{LORA}.rslora", bool),
    "use_dora": Key(f"{LORA}.dora", bool),
    "split_dataset_ratio": Key("held_out", to_share, change=SPLIT),
    "max_length": Key(f"{TRAIN}.max_length", to_int, change="longer rows are truncated on the right, not dropped"),
    "packing": Key(f"{TRAIN}.packing", bool),
    "attn_impl": Key("model.attention", to_attention),
    "template": Key("template"),
    "system": Key("system", str),
    "loss_scale": Key("", when("default", None, "the loss is on responses only")),
    "freeze_parameters_ratio": missing("mitigations.freeze chooses the layers that are trained"),
    "use_hf": unneeded("data sets are those of the Hugging Face hub"),
    "dataset_num_proc": unneeded(WORKERS),
    "model_author": unneeded(LOGS),
    "model_name": unneeded(LOGS),
    "task_type": unneeded("a causal language model is trained"),
}

TRL: dict[str, Key] = {
    **HUGGING_FACE,
    "model_name_or_path": Key("model.path", str),
    "model_revision": Key("model.revision", str),
    "dtype": Key(f"{TRAIN}.precision", DTYPES, change=DTYPE),
    "torch_dtype": Key(f"{TRAIN}.precision", DTYPES, change=DTYPE),
    "attn_implementation": Key("model.attention", to_attention),
    "lora_r": Key(f"{LORA}.rank", to_int),
    "lora_alpha": Key(f"{LORA}.alpha", to_number),
    "lora_dropout": Key(f"{LORA}.dropout", to_number),
    "lora_target_modules": Key(f"{LORA}.target", to_layers),
    "use_rslora": Key(f"{LORA}.rslora", bool),
    "use_dora": Key(f"{LORA}.dora", bool),
    "max_length": Key(f"{TRAIN}.max_length", to_int),
    "max_seq_length": Key(f"{TRAIN}.max_length", to_int),
    "packing": Key(f"{TRAIN}.packing", bool),
    "eos_token": missing("a response ends with the end of turn of the template"),
    "pad_token": Key("model.pad_token", str),
    "assistant_only_loss": Key("", when(True, None, "the loss is on responses only")),
    "completion_only_loss": Key("", when(True, None, "the loss is on responses only")),
    "dataset_text_field": Key("text_column", str),
    "dataset_test_split": missing("held-out rows are a share of the source: set sources.NAME.held_out"),
    "dataset_num_proc": unneeded(WORKERS),
    "eval_packing": unneeded("rows are evaluated one by one or in batches"),
    "padding_free": unneeded("rows are trained without padding where the device supports it"),
    "use_liger_kernel": unneeded(KERNELS),
}

QUANTIZATION: dict[str, dict[str, str]] = {
    "llamafactory": {
        "quantization_bit": "bits", "quantization_method": "method", "quantization_type": "type",
        "double_quantization": "double",
    },
    "axolotl": {"load_in_4bit": "4bit", "load_in_8bit": "8bit", "quantize_moe_experts": "experts"},
    "ms-swift": {
        "quant_bits": "bits", "quantization_bit": "bits", "quant_method": "method", "bnb_4bit_quant_type": "type",
        "bnb_4bit_use_double_quant": "double",
    },
    "trl": {
        "load_in_4bit": "4bit", "load_in_8bit": "8bit", "bnb_4bit_quant_type": "type", "use_bnb_nested_quant": "double",
    },
}  # fmt: skip
"""Trainer -> the keys that together are `model.quantization`, and what each is for `to_quantization`."""

BITSANDBYTES_ARGUMENTS = {"bnb_4bit_quant_type": "type", "bnb_4bit_use_double_quant": "double"}
"""Arguments of `BitsAndBytesConfig`, and what each is for `to_quantization`."""

SCHEDULER_OPTIONS: dict[str, dict[str, tuple[str, Callable[[Any], Any]]]] = {
    "cosine": {"min_lr_rate": ("final", to_number)},
    "cosine_with_restarts": {"num_cycles": ("cycles", to_int)},
    "polynomial": {"power": ("power", to_number)},
}
"""Schedule -> keys of `lr_scheduler_kwargs` -> (its option, converter)."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "llamafactory": {
        "learning_rate": 5e-5, "num_train_epochs": 3.0, "per_device_train_batch_size": 8, "warmup_ratio": 0.0,
        "lr_scheduler_type": "linear", "cutoff_len": 2048, "lora_rank": 8, "seed": 42,
        "disable_gradient_checkpointing": False,
    },
    "axolotl": {"learning_rate": 5e-5, "num_epochs": 1.0, "micro_batch_size": 1, "warmup_ratio": 0.0, "seed": 42},
    "ms-swift": {
        "learning_rate": 1e-5, "num_train_epochs": 3.0, "per_device_train_batch_size": 1, "warmup_ratio": 0.0,
        "lr_scheduler_type": "cosine", "lora_rank": 8, "lora_alpha": 32, "lora_dropout": 0.05, "seed": 42,
    },
    "trl": {
        "learning_rate": 2e-5, "num_train_epochs": 3.0, "per_device_train_batch_size": 8, "warmup_ratio": 0.0,
        "lr_scheduler_type": "linear", "max_length": 1024, "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05,
        "seed": 42,
    },
}  # fmt: skip
"""Trainer -> the defaults of its keys that differ from those of a spec, or are written so that they stay the same."""

TABLES: dict[str, dict[str, Key]] = {
    "llamafactory": LLAMA_FACTORY,
    "axolotl": AXOLOTL,
    "ms-swift": MS_SWIFT,
    "trl": TRL,
}
