"""FSDP, DeepSpeed and activations in main memory of other trainers as `train.sharding` and the offload keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.drafting.foreign_config import read_config
from harness.drafting.foreign_values import is_off
from harness.drafting.imported_spec import ImportedSpec
from harness.errors import HarnessError

FSDP_KEYS = ("fsdp", "fsdp_config", "fsdp_version", "fsdp_transformer_layer_cls_to_wrap")
ACTIVATION_KEYS = ("activation_offloading", "use_unsloth_gc")
SHARDING_KEYS = (*FSDP_KEYS, *ACTIVATION_KEYS, "deepspeed")
"""The keys that this module reads."""
STRATEGIES = ("full_shard", "shard_grad_op", "hybrid_shard", "hybrid_shard_zero2", "no_shard")
SHARDED_OPTIMIZERS = ("adamw", "lion")
"""Optimizers that work on parts of weights."""
DEEPSPEED_KEYS = (
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
    *("zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "fp16", "bf16", "zero_optimization"),
    *("steps_per_print", "wall_clock_breakdown"),
)
"""Keys of a configuration of DeepSpeed that the trainer sets itself, or that are read here."""
OFFLOADED = "train.offload_shards: weights, gradients and optimizer states are in main memory"


def import_sharding(config: Mapping[str, Any], file: Path, imported: ImportedSpec) -> None:
    """Set `train.sharding`, with an optimizer that supports it.

    Args:
        config: The configuration.
        file: Its file, beside or below which a file of DeepSpeed is searched.
        imported: The spec, with everything else.
    """
    fsdp = [key for key in FSDP_KEYS if not is_off(config.get(key))]
    divides, offloaded = bool(fsdp), _import_fsdp(config, imported) if fsdp else []
    deepspeed = config.get("deepspeed")
    if not is_off(deepspeed):
        has_zero, targets = _import_deepspeed(deepspeed, file, imported)
        divides, offloaded = has_zero or divides, [*offloaded, *targets]
    if not divides:
        imported.dropped.extend((key, "nothing is divided that could be in main memory") for key in offloaded)
        return
    keys = ", ".join([*fsdp, *(["deepspeed"] if not is_off(deepspeed) else [])])
    train = imported.document.setdefault("train", {})
    train["sharding"] = "fsdp2"
    imported.changed.append((keys, "train.sharding: fsdp2; start the run with --gpus N"))
    if offloaded:
        train["offload_shards"] = True
        imported.changed.append((", ".join(offloaded), OFFLOADED))
    quantization = imported.document["model"].get("quantization") or {}
    if quantization.get("bitsandbytes", {}).get("bits") == 8:
        imported.dropped.append((f"{keys}: 8 bits", "weights of 8 bits cannot be divided"))
    ((optimizer, options),) = train.get("optimizer", {"adamw": {}}).items()
    if optimizer in SHARDED_OPTIMIZERS:
        return
    if "adamw" in optimizer:
        train["optimizer"] = {"adamw": options}
        what = "train.optimizer: adamw, whose state of 8 bytes a weight is divided; that of 8 bits cannot be"
        imported.changed.append((f"{keys}: optimizer", what))
    else:
        imported.dropped.append((f"{keys}: optimizer", f"{optimizer} needs whole weights"))


def import_activation_offloading(config: Mapping[str, Any], imported: ImportedSpec) -> None:
    """Set `train.offload_activations`, which other trainers have as a key or as a value of `gradient_checkpointing`."""
    values = {key: config[key] for key in ACTIVATION_KEYS if not is_off(config.get(key))}
    checkpointing = config.get("gradient_checkpointing")
    if isinstance(checkpointing, str) and checkpointing.startswith("offload"):
        values["gradient_checkpointing"] = checkpointing
    for key, value in values.items():
        if "disk" in str(value):
            imported.dropped.append((key, "activations are stored in main memory, not on disk"))
            continue
        imported.document.setdefault("train", {}).update(gradient_checkpointing=True, offload_activations=True)
        imported.carried.append((key, "train.offload_activations, with train.gradient_checkpointing"))


def _import_fsdp(config: Mapping[str, Any], imported: ImportedSpec) -> list[str]:
    """Note what differs, and return the keys that move weights to main memory.

    What the keys say of wrapping, loading and saving is the same for every model.
    """
    given = config.get("fsdp_config")
    settings = (
        {str(key).removeprefix("fsdp_"): value for key, value in given.items()} if isinstance(given, dict) else {}
    )
    named = config.get("fsdp")
    words = [str(word) for word in named] if isinstance(named, list) else str(named or "").split()
    default = next((word for word in words if word in STRATEGIES), "full_shard")
    strategy = str(settings.get("sharding_strategy") or default).lower()
    if strategy not in ("full_shard", "1"):
        what = f"{strategy}: weights are divided among all processes"
        imported.dropped.append(("fsdp_config: sharding_strategy", what))
    if settings.get("activation_checkpointing"):
        imported.document.setdefault("train", {})["gradient_checkpointing"] = True
    return ["fsdp_config: offload_params"] if settings.get("offload_params") or "offload" in words else []


def _import_deepspeed(named: Any, file: Path, imported: ImportedSpec) -> tuple[bool, list[str]]:
    """Note what differs.

    Returns:
        Whether DeepSpeed divides something, with a stage of ZeRO above 0; and the keys that use main memory.
    """
    folders = [Path(), *file.resolve().parents]
    path = next((folder / str(named) for folder in folders if (folder / str(named)).is_file()), None)
    if path is None:
        what = f"{named} was not found: start in the folder that it is relative to"
        imported.dropped.append(("deepspeed", what))
        return False, []
    try:
        settings = read_config(path)
    except HarnessError as error:
        imported.dropped.append(("deepspeed", f"{named} {error.what}"))
        return False, []
    zero = settings.get("zero_optimization")
    zero = zero if isinstance(zero, Mapping) else {}
    for key in settings:
        if key not in DEEPSPEED_KEYS:
            imported.dropped.append((f"deepspeed: {key}", "train.sharding has nothing like it"))
    offloaded = []
    for key in ("offload_optimizer", "offload_param"):
        target = zero.get(key)
        device = target.get("device", "none") if isinstance(target, Mapping) else "none"
        if device == "cpu":
            offloaded.append(f"deepspeed: {key}")
        elif device != "none":
            imported.dropped.append((f"deepspeed: {key}", f"shards are stored in main memory, not on {device}"))
    return bool(zero.get("stage")), offloaded
