"""The arguments of transformers' Trainer, which four trainers share, and the values of components."""

from __future__ import annotations

from typing import Any

from harness.drafting.foreign_values import (
    Changed,
    Key,
    choice,
    component,
    differs,
    each_epoch,
    missing,
    switch,
    to_bfloat16,
    to_int,
    to_number,
    to_steps,
    to_warmup,
    unneeded,
)

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
_OPTIMIZERS = component(
    {
        **dict.fromkeys(("adamw", "adamw_torch", "adamw_torch_fused", "adamw_hf"), "adamw"),
        **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit"), "adamw_8bit"),
        **dict.fromkeys(("lion", "lion_32bit"), "lion"),
        **{name: name for name in ("adafactor", "sgd", "muon", "paged_adamw_8bit")},
        **dict.fromkeys(("paged_adamw", "paged_adamw_32bit"), "paged_adamw"),
    }
)
_ATTENTIONS = choice(
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
OTHER_OPTIMIZERS: dict[str, tuple[str, str]] = {
    "adamw_torch_8bit": ("adamw_8bit", "the state with 8 bits is that of bitsandbytes, not of torchao"),
    "adamw_torch_4bit": ("adamw_8bit", "the state has 8 bits, not 4: more exact, and one byte a weight more"),
}
"""Optimizers that exist here with another state -> (the name here, what differs)."""
OTHER_ATTENTIONS = ("xformers", "flex_attention", "flash_attention_3", "kernels-community/")
"""Kernels of attention that a spec does not name, or how their names begin."""


def to_optimizer(value: Any) -> Any:
    """Return the optimizer: its name -> options."""
    name, change = OTHER_OPTIMIZERS.get(str(value).lower(), ("", ""))
    return Changed({name: {}}, change) if name else _OPTIMIZERS(value)


def to_attention(value: Any) -> Any:
    """Return the attention implementation."""
    if str(value).lower().startswith(OTHER_ATTENTIONS):
        return Changed("auto", f"the same attention, by another kernel than {value}")
    return _ATTENTIONS(value)


LORA, TRAIN = "mitigations.lora", "train"
FULL_ROWS = (
    "rows are truncated on the right; other trainers divide the cut between prompt and response, or drop the row"
)
SPLIT = "rows are held out by the hash of their prompt, so that no prompt is on both sides; the rows differ"
DTYPE = "trained weights stay in float32"
DISTRIBUTED = "weights are divided among GPUs by train.sharding only"
WORKERS, LOGS, CACHES = "it speeds up reading data", "it changes logs only", "data is cached by its content"
KERNELS = "another kernel for the same function; the logits are computed in chunks, and train.compile fuses layers"
HUB = "harness export RUN --to hub pushes a model after it is verified"
OWN_FOLDER = "each run has a folder of its own"
LAUNCHER = "several processes start with --gpus N or torchrun"
TRACKERS = "logs go to MLflow, and to the trackers in track"

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
    "optim": Key(f"{TRAIN}.optimizer", to_optimizer),
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
    "group_by_length": differs("rows are in a random order; padding is avoided otherwise"),
    "resume_from_checkpoint": missing("harness run --resume RUN resumes a run"),
    "label_smoothing_factor": missing("there is no label smoothing"),
    "ddp_timeout": unneeded(LAUNCHER),
    "report_to": unneeded(TRACKERS),
    "run_name": unneeded(LOGS),
    "save_strategy": Key(f"{TRAIN}.save_epochs", each_epoch),
    "eval_strategy": Key(f"{TRAIN}.evaluate_epochs", each_epoch),
    "logging_strategy": unneeded(LOGS),
    "per_device_eval_batch_size": unneeded("a suite has its own batch_size"),
    "dataloader_num_workers": unneeded(WORKERS),
    "push_to_hub": unneeded(HUB),
    "hub_model_id": unneeded(HUB),
    "do_train": unneeded("a run trains"),
    "do_eval": unneeded("a run evaluates its suites"),
    "overwrite_output_dir": unneeded(OWN_FOLDER),
    "save_only_model": unneeded("checkpoints can always be resumed from"),
    "trust_remote_code": Key("model.trust_remote_code", bool),
    "gradient_checkpointing_kwargs": unneeded("it is how activations are recomputed"),
    "eval_on_start": unneeded("a run evaluates before training"),
    "torch_compile": Key(f"{TRAIN}.compile", bool),
    "torch_compile_mode": unneeded("it is how kernels are searched for"),
    "ddp_find_unused_parameters": differs("a weight without a gradient is an error with several processes"),
    "remove_unused_columns": unneeded("columns that no key names are not read"),
}
"""Arguments of transformers' Trainer, which all four trainers share."""
