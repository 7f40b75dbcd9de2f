"""Keys of other trainers and what they are in a spec, as tables of facts.

Sources: the documented arguments of LLaMA-Factory (hparams), Axolotl (config reference), ms-swift (command line
parameters) and TRL (SFTConfig, ModelConfig, ScriptArguments).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

OFF = object()
"""What a converter returns for a value that is off: the key of the spec stays as a sibling or the default has it."""


class NotConvertible(Exception):
    """A value that a spec cannot express. The message says why."""


@dataclass(frozen=True)
class Key:
    """What a key of another trainer is in a spec.

    Attributes:
        path: The key of the spec, with dots; "": nothing, since it does not change the result.
        convert: Returns the value of the spec, or `OFF`; raises `NotConvertible`.
        change: How the meaning differs; "": it does not.
        why: Why a spec cannot express the key; "": it can.
    """

    path: str = ""
    convert: Callable[[Any], Any] = lambda value: value
    change: str = ""
    why: str = ""


def missing(why: str) -> Key:
    """Return the entry of a key that a spec cannot express, unless it is off."""
    return Key(why=why)


UNIMPORTANT = Key()
"""A key that does not change the result: workers, logging, caches."""


def to_number(value: Any) -> float:
    """Return a number, also one that YAML 1.1 reads as text, such as 1e-4."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise NotConvertible(f"{value!r} is not a number")
    return number


def to_int(value: Any) -> int:
    """Return an integer."""
    number = to_number(value)
    if number != int(number):
        raise NotConvertible(f"{value!r} is not an integer")
    return int(number)


def to_count(value: Any) -> int:
    """Return a positive integer."""
    count = to_int(value)
    if count < 1:
        raise NotConvertible(f"{value!r} is not a number of rows")
    return count


def to_texts(value: Any) -> list[str]:
    """Return a list of texts."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise NotConvertible(f"{value!r} is not a list of texts")
    return value


def switch(result: Any) -> Callable[[Any], Any]:
    """Return a converter of a key that is on or off: on gives `result`, off leaves the key of the spec alone."""
    return lambda value: result if value else OFF


def choice(values: Mapping[str, Any]) -> Callable[[Any], Any]:
    """Return a converter of the values that the mapping has, in lower case."""

    def convert(value: Any) -> Any:
        name = str(value).lower()
        if name not in values:
            raise NotConvertible(f"there is nothing like {value!r}")
        return values[name]

    return convert


def when(expected: Any, result: Any, why: str) -> Callable[[Any], Any]:
    """Return a converter that accepts one value."""

    def convert(value: Any) -> Any:
        if value != expected:
            raise NotConvertible(why)
        return result

    return convert


def to_layers(value: Any) -> Any:
    """Return the target layers of an adapter."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    names = to_texts(value or [])
    return "all-linear" if names in (["all"], ["all-linear"]) else names


def to_steps(value: Any) -> int | None:
    """Return a number of steps; -1 and 0 mean none."""
    steps = to_number(value)
    if 0 < steps < 1:
        raise NotConvertible(f"{value!r} is a share of the training, and steps are a number here")
    return int(steps) if steps > 0 else None


def to_share(value: Any) -> float:
    """Return a share of rows."""
    share = to_number(value)
    if share < 0:
        raise NotConvertible(f"{value!r} is not a share of rows")
    if share >= 1:
        raise NotConvertible(f"{value!r} is a number of rows, and held_out is a share")
    return share


def to_warmup(value: Any) -> Any:
    """Return a number of steps, or a share of them below 1; 0 leaves it to `warmup_ratio`."""
    steps = to_number(value)
    return OFF if steps <= 0 else steps if steps < 1 else int(steps)


def to_epochs(value: Any) -> float:
    """Return the epochs between two events that happen so many times an epoch."""
    times = to_number(value)
    if times <= 0:
        raise NotConvertible(f"{value!r} is not a number of times an epoch")
    return 1 / times


def each_epoch(value: Any) -> Any:
    """Return 1 for the strategy `epoch`; the others are set by a number of steps."""
    return 1.0 if value == "epoch" else OFF


def to_bfloat16(value: Any) -> Any:
    """Return the precision of `bf16`: on, off or auto."""
    return "auto" if value == "auto" else "bfloat16" if value else OFF


def component(values: Mapping[str, str | dict[str, Any]]) -> Callable[[Any], Any]:
    """Return a converter to a component: its name, or name -> options where they differ from their defaults."""
    convert = choice(values)

    def to_component(value: Any) -> Any:
        found = convert(value)
        return {found: {}} if isinstance(found, str) else copy.deepcopy(found)

    return to_component


def to_quantization(parts: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the options of `model.quantization.bitsandbytes`; None if the model is not quantized.

    Args:
        parts: The values of the names in `QUANTIZATION`.
    """
    bits = 4 if parts.get("4bit") else 8 if parts.get("8bit") else parts.get("bits")
    if not bits:
        return None
    method = str(parts.get("method") or "bnb").lower()
    if method not in ("bnb", "bitsandbytes"):
        raise NotConvertible(f"weights are quantized with bitsandbytes, not with {method!r}")
    bits = to_int(bits)
    if bits not in (4, 8):
        raise NotConvertible(f"bitsandbytes has 4 and 8 bits, not {bits}")
    if bits == 8:
        return {"bits": 8}
    number_format = choice({"nf4": "nf4", "fp4": "fp4"})(parts.get("type") or "nf4")
    return {"bits": 4, "type": number_format, "double": bool(parts["double"])}


SCHEDULERS = component(
    {
        **{name: name for name in ("cosine", "linear", "constant", "constant_with_warmup")},
        "cosine_with_min_lr": "cosine",
        "warmup_stable_decay": "wsd",
        "cosine_with_restarts": {"cosine_with_restarts": {"cycles": 1}},
        "polynomial": {"polynomial": {"power": 1.0}},
        "inverse_sqrt": "inverse_sqrt",
    }
)
OPTIMIZERS = component(
    {
        **dict.fromkeys(("adamw", "adamw_torch", "adamw_torch_fused", "adamw_hf"), "adamw"),
        **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit"), "adamw_8bit"),
        **dict.fromkeys(("lion", "lion_32bit"), "lion"),
        **{name: name for name in ("adafactor", "sgd", "muon", "paged_adamw_8bit")},
    }
)
ATTENTIONS = choice(
    {
        **dict.fromkeys(("fa2", "flash_attn", "flash_attention_2", "flash_attention"), "flash_attention_2"),
        **dict.fromkeys(("auto", "none"), "auto"),
        "sdpa": "sdpa",
        **dict.fromkeys(("eager", "disabled"), "eager"),
    }
)
DTYPES = choice(
    {
        **dict.fromkeys(("bfloat16", "bf16"), "bfloat16"),
        **dict.fromkeys(("float16", "fp16", "half"), "float16"),
        **dict.fromkeys(("float32", "fp32", "float"), "float32"),
        "auto": "auto",
    }
)
LORA, TRAIN = "mitigations.lora", "train"
FULL_ROWS = (
    "rows are truncated on the right; other trainers divide the cut between prompt and response, or drop the row"
)
SPLIT = "rows are held out by the hash of their prompt, so that no prompt is on both sides; the rows differ"
DTYPE = "trained weights stay in float32"
DISTRIBUTED = "sharding is not configured in a spec; several processes start with --gpus N or torchrun"

HUGGING_FACE: dict[str, Key] = {
    "learning_rate": Key(f"{TRAIN}.learning_rate", to_number),
    "num_train_epochs": Key(f"{TRAIN}.epochs", to_number),
    "max_steps": Key(f"{TRAIN}.steps", to_steps),
    "per_device_train_batch_size": Key(f"{TRAIN}.batch_size", to_int),
    "gradient_accumulation_steps": Key(f"{TRAIN}.accumulation", to_int),
    "warmup_ratio": Key(f"{TRAIN}.warmup_ratio", to_number),
    "warmup_steps": Key(f"{TRAIN}.warmup_steps", to_warmup),
    "weight_decay": Key(f"{TRAIN}.weight_decay", to_number),
    "max_grad_norm": Key(f"{TRAIN}.max_grad_norm", to_number),
    "lr_scheduler_type": Key(f"{TRAIN}.scheduler", SCHEDULERS),
    "optim": Key(f"{TRAIN}.optimizer", OPTIMIZERS),
    "seed": Key("seed", to_int, change="the same seed draws other rows and another order"),
    "output_dir": Key("output", str, change="the folder that holds runs: each run has a folder of its own below it"),
    "logging_steps": Key(f"{TRAIN}.log_steps", to_int),
    "save_steps": Key(f"{TRAIN}.save_steps", to_steps),
    "save_total_limit": Key(f"{TRAIN}.save_limit", to_int),
    "eval_steps": Key(f"{TRAIN}.evaluate_steps", to_steps),
    "gradient_checkpointing": Key(f"{TRAIN}.gradient_checkpointing", bool),
    "bf16": Key(f"{TRAIN}.precision", to_bfloat16, change=DTYPE),
    "fp16": Key(f"{TRAIN}.precision", switch("float16"), change=DTYPE),
    "tf32": Key(f"{TRAIN}.tf32", bool),
    "neftune_noise_alpha": missing("there is no noise on embeddings"),
    "deepspeed": missing(DISTRIBUTED),
    "fsdp": missing(DISTRIBUTED),
    "group_by_length": missing("rows are in a random order; padding is avoided otherwise"),
    "resume_from_checkpoint": missing("harness run --resume RUN resumes a run"),
    "label_smoothing_factor": missing("there is no label smoothing"),
    "ddp_timeout": UNIMPORTANT,
    "report_to": UNIMPORTANT,
    "run_name": UNIMPORTANT,
    "save_strategy": Key(f"{TRAIN}.save_epochs", each_epoch),
    "eval_strategy": Key(f"{TRAIN}.evaluate_epochs", each_epoch),
    "logging_strategy": UNIMPORTANT,
    "per_device_eval_batch_size": UNIMPORTANT,
    "dataloader_num_workers": UNIMPORTANT,
    "push_to_hub": Key(why="harness export RUN --to hub pushes a model after it is verified"),
    "hub_model_id": UNIMPORTANT,
    "do_train": UNIMPORTANT,
    "do_eval": UNIMPORTANT,
    "overwrite_output_dir": UNIMPORTANT,
    "save_only_model": UNIMPORTANT,
    "trust_remote_code": Key("model.trust_remote_code", bool),
}
"""Arguments of transformers' Trainer, which all four trainers share."""

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
    "flash_attn": Key("model.attention", ATTENTIONS),
    "pure_bf16": Key(f"{TRAIN}.precision", switch("bfloat16"), change=DTYPE),
    "disable_gradient_checkpointing": Key(f"{TRAIN}.gradient_checkpointing", lambda value: not value),
    "train_on_prompt": missing("the loss is on responses only"),
    "use_muon": Key(f"{TRAIN}.optimizer", switch({"muon": {}})),
    "use_galore": missing("there is no GaLore"),
    "use_badam": missing("there is no BAdam"),
    "mix_strategy": missing("rows of all sources are trained in one random order"),
    "interleave_probs": missing("shares are set by mitigations.mixing, in trained tokens"),
    "streaming": missing("rows are read once and stored on disk"),
    "resize_vocab": UNIMPORTANT,
    "dataset_dir": UNIMPORTANT,
    "preprocessing_num_workers": UNIMPORTANT,
    "overwrite_cache": UNIMPORTANT,
    "plot_loss": UNIMPORTANT,
    "use_fast_tokenizer": UNIMPORTANT,
    "include_num_input_tokens_seen": UNIMPORTANT,
}

AXOLOTL: dict[str, Key] = {
    **HUGGING_FACE,
    "base_model": Key("model.path", str),
    "revision_of_model": Key("model.revision", str),
    "adapter": Key("", choice({"lora": None, "qlora": None, "none": None, "": None})),
    "lora_r": Key(f"{LORA}.rank", to_int),
    "lora_alpha": Key(f"{LORA}.alpha", to_number),
    "lora_dropout": Key(f"{LORA}.dropout", to_number),
    "lora_target_linear": Key(f"{LORA}.target", when(True, "all-linear", "set lora_target_modules")),
    "lora_target_modules": Key(f"{LORA}.target", to_layers),
    "peft_use_dora": Key(f"{LORA}.dora", bool),
    "peft_use_rslora": Key(f"{LORA}.rslora", bool),
    "val_set_size": Key("held_out", to_share, change=SPLIT),
    "sequence_len": Key(f"{TRAIN}.max_length", to_int, change="longer rows are truncated on the right, not dropped"),
    "sample_packing": Key(f"{TRAIN}.packing", bool),
    "micro_batch_size": Key(f"{TRAIN}.batch_size", to_int),
    "num_epochs": Key(f"{TRAIN}.epochs", to_number),
    "optimizer": Key(f"{TRAIN}.optimizer", OPTIMIZERS),
    "lr_scheduler": Key(f"{TRAIN}.scheduler", SCHEDULERS),
    "flash_attention": Key("model.attention", switch("flash_attention_2")),
    "attn_implementation": Key("model.attention", ATTENTIONS),
    "sdp_attention": Key("model.attention", switch("sdpa")),
    "train_on_inputs": missing("the loss is on responses only"),
    "tokens": Key("model.add_tokens", to_texts),
    "chat_template": Key("template"),
    "evals_per_epoch": Key(f"{TRAIN}.evaluate_epochs", to_epochs),
    "saves_per_epoch": Key(f"{TRAIN}.save_epochs", to_epochs),
    "early_stopping_patience": missing("set train.early_stopping with a suite"),
    "unfrozen_parameters": missing("mitigations.freeze chooses the layers that are trained"),
    "special_tokens": missing("a padding token is set by model.pad_token; the tokenizer's end of sequence is used"),
    "wandb_project": Key("track.wandb.project", str),
    "wandb_entity": UNIMPORTANT,
    "wandb_watch": UNIMPORTANT,
    "wandb_name": UNIMPORTANT,
    "wandb_log_model": UNIMPORTANT,
    "dataset_prepared_path": UNIMPORTANT,
    "pad_to_sequence_len": UNIMPORTANT,
    "eval_sample_packing": UNIMPORTANT,
    "model_type": UNIMPORTANT,
    "tokenizer_type": UNIMPORTANT,
    "strict": UNIMPORTANT,
    "gradient_checkpointing_kwargs": UNIMPORTANT,
    "plugins": missing("plugins of Axolotl change its trainer"),
    "fsdp_config": missing(DISTRIBUTED),
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
    "attn_impl": Key("model.attention", ATTENTIONS),
    "template": Key("template"),
    "system": Key("system", str),
    "loss_scale": Key("", when("default", None, "the loss is on responses only")),
    "freeze_parameters_ratio": missing("mitigations.freeze chooses the layers that are trained"),
    "use_hf": UNIMPORTANT,
    "dataset_num_proc": UNIMPORTANT,
    "model_author": UNIMPORTANT,
    "model_name": UNIMPORTANT,
    "task_type": UNIMPORTANT,
}

TRL: dict[str, Key] = {
    **HUGGING_FACE,
    "model_name_or_path": Key("model.path", str),
    "model_revision": Key("model.revision", str),
    "dtype": Key(f"{TRAIN}.precision", DTYPES, change=DTYPE),
    "torch_dtype": Key(f"{TRAIN}.precision", DTYPES, change=DTYPE),
    "attn_implementation": Key("model.attention", ATTENTIONS),
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
    "dataset_num_proc": UNIMPORTANT,
    "eval_packing": UNIMPORTANT,
    "padding_free": UNIMPORTANT,
    "use_liger_kernel": UNIMPORTANT,
}

QUANTIZATION: dict[str, dict[str, str]] = {
    "llamafactory": {
        "quantization_bit": "bits", "quantization_method": "method", "quantization_type": "type",
        "double_quantization": "double",
    },
    "axolotl": {"load_in_4bit": "4bit", "load_in_8bit": "8bit"},
    "ms-swift": {
        "quant_bits": "bits", "quantization_bit": "bits", "quant_method": "method", "bnb_4bit_quant_type": "type",
        "bnb_4bit_use_double_quant": "double",
    },
    "trl": {
        "load_in_4bit": "4bit", "load_in_8bit": "8bit", "bnb_4bit_quant_type": "type", "use_bnb_nested_quant": "double",
    },
}  # fmt: skip
"""Trainer -> the keys that together are `model.quantization`, and what each is for `to_quantization`."""

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
