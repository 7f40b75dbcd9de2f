"""What to write instead of an unknown key: a similar key, the name of another tool's key, or the key's place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

MAX_PLACES = 3

PEER_KEYS: Mapping[str, str] = {
    name: key
    for key, names in {
        "model.path": "model_name model_name_or_path base_model pretrained_model_name_or_path",
        "output": "output_dir save_path",
        "sources": "dataset datasets dataset_name train_dataset data",
        "track": "report_to wandb_project",
        "train.learning_rate": "lr",
        "train.batch_size": "per_device_train_batch_size micro_batch_size train_batch_size",
        "train.accumulation": "gradient_accumulation_steps grad_accum_steps",
        "train.epochs": "num_train_epochs num_epochs",
        "train.steps": "max_steps num_steps",
        "train.max_length": "max_seq_length max_seq_len cutoff_len sequence_len model_max_length seq_length",
        "train.scheduler": "lr_scheduler lr_scheduler_type lr_decay_style",
        "train.warmup_ratio": "warmup",
        "train.max_grad_norm": "gradient_clipping clip_grad grad_clip",
        "train.precision": "bf16 fp16 torch_dtype dtype mixed_precision compute_type",
        "train.packing": "sample_packing use_packing",
        "train.gradient_checkpointing": "activation_checkpointing recompute",
        "train.log_steps": "logging_steps",
        "train.save_limit": "save_total_limit",
        "train.evaluate_steps": "eval_steps",
        "model.attention": "attn_implementation flash_attn flash_attention",
        "mitigations.lora.rank": "r lora_r lora_rank",
        "mitigations.lora.alpha": "lora_alpha",
        "mitigations.lora.dropout": "lora_dropout",
        "mitigations.lora.target": "target_modules lora_target lora_target_modules",
        "mitigations.lora": "peft_config lora_config adapter finetuning_type peft",
    }.items()
    for name in names.split()
}
"""Key of TRL, peft, LLaMA-Factory or axolotl -> key of a spec."""


def hint_for_unknown_key(name: str, known: Sequence[str], path: Sequence[str | int], schema: Mapping[str, Any]) -> str:
    """Return what to type instead of a key, or what is allowed in its place.

    Args:
        name: The unknown key.
        known: The keys that are allowed in its place.
        path: Where it is in the document.
        schema: The composed schema of specs.
    """
    section = ".".join(map(str, path))
    if name in PEER_KEYS:
        place, _, key = PEER_KEYS[name].rpartition(".")
        return f"did you mean {key!r}?" if place == section else f"write it as {PEER_KEYS[name]}"
    near = get_close_matches(name, known, 1)
    if near:
        return f"did you mean {near[0]!r}?"
    places = [place for place in _places_of_key(name, schema) if place != section]
    if 0 < len(places) <= MAX_PLACES:
        return f"{name!r} is a key of {' or '.join(place or 'the spec itself' for place in places)}: move it there"
    return ""


def _places_of_key(name: str, schema: Mapping[str, Any], place: str = "") -> Iterator[str]:
    """Yield the objects of the spec that have the key, without those under names that the user chooses."""
    properties = schema.get("properties", {})
    if name in properties:
        yield place
    for key, option in properties.items():
        if isinstance(option, dict):
            yield from _places_of_key(name, option, f"{place}.{key}" if place else key)
