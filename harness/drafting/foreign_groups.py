"""Keys of other trainers that are read together, or whose meaning depends on the rest of the configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from harness.drafting import foreign_tables, foreign_values
from harness.drafting.foreign_values import NotConvertible
from harness.drafting.imported_spec import ImportedSpec

ADAM_KEYS = {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}
"""Key -> its default."""

_ADAM_AND_SCHEDULE = (*ADAM_KEYS, "lr_scheduler_kwargs")
GROUPED_KEYS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("llamafactory", "ms-swift", "trl"), _ADAM_AND_SCHEDULE),
    "axolotl": (
        *(*_ADAM_AND_SCHEDULE, "cosine_min_lr_ratio", "cosine_constant_lr_ratio", "bnb_config_kwargs"),
        *("special_tokens", "tokens", "batch_size", "unfrozen_parameters", "use_eaft", "eaft_alpha", "eaft_k"),
        *("model_config", "model_quantization_config", "model_quantization_config_kwargs"),
    ),
}
"""Trainer -> the keys that this module reads, besides those of quantization."""


def import_groups(tool: str, config: Mapping[str, Any], imported: ImportedSpec, adapter_key: str) -> None:
    """Set what these keys are in a spec.

    Args:
        tool: A key of `foreign_tables.TABLES`.
        config: The configuration.
        imported: The spec, with everything that single keys set.
        adapter_key: The key that chooses an adapter, or none.
    """
    _import_quantization(tool, config, imported, adapter_key)
    _import_scheduler_options(config, imported)
    _import_adam(config, imported)
    if tool == "axolotl":
        _import_special_tokens(config, imported)
        _import_batch_size(config, imported)
        _import_unfrozen(config, imported)
        _import_eaft(config, imported)
        _import_model_config(config, imported)
        _import_checkpoint_quantization(config, imported)


def _import_quantization(tool: str, config: Mapping[str, Any], imported: ImportedSpec, adapter_key: str) -> None:
    """Set `model.quantization` from the keys that belong together: bits, method, number format, double."""
    names = foreign_tables.QUANTIZATION[tool]
    parts = {name: config[key] for key, name in names.items() if config.get(key) is not None}
    more = config.get("bnb_config_kwargs") if tool == "axolotl" else None
    for key, value in more.items() if isinstance(more, Mapping) else ():
        name = foreign_tables.BITSANDBYTES_ARGUMENTS.get(key)
        if name is None:
            imported.dropped.append((f"bnb_config_kwargs: {key}", "model.quantization has nothing like it"))
        else:
            parts[name] = value
    if config.get(adapter_key) == "qlora":
        parts.setdefault("4bit", True)
    parts.setdefault("double", tool != "trl")  # TRL alone does not quantize the scales by default
    keys = ", ".join(key for key in names if not foreign_values.is_off(config.get(key))) or adapter_key
    try:
        options = foreign_values.to_quantization(parts)
    except NotConvertible as error:
        imported.dropped.append((keys, str(error)))
        return
    if options is not None:
        imported.document["model"]["quantization"] = {"bitsandbytes": options}
        imported.carried.append((keys, "model.quantization.bitsandbytes"))


def _import_scheduler_options(config: Mapping[str, Any], imported: ImportedSpec) -> None:
    """Set the options of a schedule from `lr_scheduler_kwargs`, and from Axolotl's keys of the cosine."""
    given = config.get("lr_scheduler_kwargs") or {}
    if not given and not config.get("cosine_min_lr_ratio"):
        return
    ((name, options),) = imported.document["train"].setdefault("scheduler", {"cosine": {}}).items()
    known = foreign_tables.SCHEDULER_OPTIONS.get(name, {})
    entries = [
        (f"lr_scheduler_kwargs: {option}", option, value)
        for option, value in (given.items() if isinstance(given, Mapping) else [("", given)] if given else [])
    ]
    if config.get("cosine_min_lr_ratio") and config.get("cosine_constant_lr_ratio"):
        imported.dropped.append(("cosine_constant_lr_ratio", "train.scheduler.cosine reaches its end at the last step"))
    elif config.get("cosine_min_lr_ratio"):
        entries.append(("cosine_min_lr_ratio", "min_lr_rate", config["cosine_min_lr_ratio"]))
    for key, option, value in entries:
        try:
            convert_to, convert = known[option]
            options[convert_to] = convert(value)
        except (KeyError, NotConvertible):
            imported.dropped.append((key, f"train.scheduler.{name} has nothing like it"))
        else:
            imported.carried.append((key, f"train.scheduler.{name}.{convert_to}"))


def _import_adam(config: Mapping[str, Any], imported: ImportedSpec) -> None:
    """Set `betas` and `eps` of an optimizer that has them."""
    stated = [key for key in ADAM_KEYS if config.get(key) is not None]
    if not stated:
        return
    optimizer = imported.document.setdefault("train", {}).setdefault("optimizer", {"adamw": {}})
    ((name, options),) = optimizer.items()
    if "adamw" not in name:
        imported.dropped.append((", ".join(stated), f"train.optimizer.{name} has nothing like it"))
        return
    try:
        beta1, beta2, eps = (
            foreign_values.to_number(default if config.get(key) is None else config[key])
            for key, default in ADAM_KEYS.items()
        )
    except NotConvertible as error:
        imported.dropped.append((", ".join(stated), str(error)))
        return
    options |= {"betas": [beta1, beta2], "eps": eps}
    imported.carried.append((", ".join(stated), f"train.optimizer.{name}"))


# -- Axolotl ----------------------------------------------------------------------------------------------------------


def _import_special_tokens(config: Mapping[str, Any], imported: ImportedSpec) -> None:
    """Set the padding token and added tokens; the other control tokens are those of the tokenizer."""
    for key in ("special_tokens", "tokens"):
        value = config.get(key)
        if key == "tokens" and value and not isinstance(value, Mapping):
            try:
                imported.document["model"]["add_tokens"] = foreign_values.to_texts(value)
            except NotConvertible as error:
                imported.dropped.append((key, str(error)))
            else:
                imported.carried.append((key, "model.add_tokens"))
            continue
        for name, token in value.items() if isinstance(value, Mapping) else [("", value)] if value else ():
            if name not in ("pad_token", "bos_token", "eos_token", "unk_token") or not isinstance(token, str):
                imported.dropped.append((f"{key}: {name}", "only control tokens that are texts can be named"))
            elif name == "pad_token":
                imported.document["model"]["pad_token"] = token
                imported.carried.append((f"{key}: pad_token", "model.pad_token"))
            else:
                what = f"the tokenizer's own is used, and the template ends a turn: look for {token} in harness preview"
                imported.changed.append((f"{key}: {name}", what))


def _import_batch_size(config: Mapping[str, Any], imported: ImportedSpec) -> None:
    """Set the accumulation from `batch_size`, which Axolotl reads if the accumulation is not given."""
    if not config.get("batch_size"):
        return
    if config.get("gradient_accumulation_steps"):
        imported.unneeded.append(("batch_size", "gradient_accumulation_steps is given"))
        return
    train = imported.document.setdefault("train", {})
    try:
        rows = foreign_values.to_count(config["batch_size"])
        train["accumulation"] = foreign_values.to_count(rows // train.get("batch_size", 1))
    except (NotConvertible, TypeError, ZeroDivisionError) as error:
        imported.dropped.append(("batch_size", str(error)))
    else:
        imported.carried.append(("batch_size", "train.accumulation"))


_RANGE = re.compile(r".+\[\d*(:\d*)?\]$")
"""Axolotl's names of a part of a weight: `model.embed_tokens.weight$[:32000]`."""
_RENAMED_MODULES = {r"block_sparse_moe": "(block_sparse_moe|mlp)"}
"""Modules that transformers 5 has under another name."""


def _import_unfrozen(config: Mapping[str, Any], imported: ImportedSpec) -> None:
    """Set the weights that are trained; with an adapter there is nothing to set, since its base weights are frozen."""
    key, value = "unfrozen_parameters", config.get("unfrozen_parameters")
    if not value:
        return
    if {"lora", "oft"} & set(imported.document.get("mitigations", {})):
        imported.unneeded.append((key, "only the adapter is trained"))
        return
    try:
        names = foreign_values.to_texts(value)
        ranges = [name for name in names if _RANGE.match(name)]
        if ranges:
            raise NotConvertible(f"{ranges[0]!r} is a part of a weight")
    except NotConvertible as error:
        imported.dropped.append((key, str(error)))
        return
    expressions = [_to_expression(name) for name in names if name != "embed_tokens"]  # no full name begins with it
    imported.document.setdefault("mitigations", {})["freeze"] = {"embeddings": False, "trainable": expressions}
    imported.changed.append((key, "mitigations.freeze.trainable: the names are those of transformers 5"))


def _to_expression(name: str) -> str:
    """Return Axolotl's name of weights as a regular expression: a dot is a dot, unless a plus follows it.

    The language model of a model for images and text may be loaded alone. Its weights are then named without
    `language_model`.
    """
    expression = re.sub(r"\\?\.(?!\+)", r"\\.", name)
    for module, replacement in _RENAMED_MODULES.items():
        expression = expression.replace(module, replacement)
    for prefix in (r"model\.language_model", r"^model\.language_model"):
        if not expression.startswith(prefix):
            continue
        rest = expression.removeprefix(prefix)
        if rest in ("", r"\.", r"\.*"):
            return r"model\.(language_model|embed_tokens|layers|norm)\b"
        return r"model\.(language_model\.)?" + rest.removeprefix(r"\.")
    return expression


def _import_model_config(config: Mapping[str, Any], imported: ImportedSpec) -> None:
    """Set the loss that balances experts, which a model computes if its config says so."""
    given = config.get("model_config")
    given = given if isinstance(given, Mapping) else {"": given} if given else {}
    for key, value in given.items():
        if key == "output_router_logits":
            coefficient = given.get("router_aux_loss_coef", "config")
            if value:
                imported.document.setdefault("train", {})["router_loss"] = coefficient
                imported.carried.append((f"model_config: {key}", "train.router_loss"))
        elif key != "router_aux_loss_coef":
            imported.dropped.append((f"model_config: {key}", "the model's config is that of its files"))
        elif not given.get("output_router_logits"):
            imported.unneeded.append((f"model_config: {key}", "output_router_logits is off"))


def _import_checkpoint_quantization(config: Mapping[str, Any], imported: ImportedSpec) -> None:
    """Set whether a checkpoint that is quantized itself is dequantized; its files name its method."""
    key, options_key = "model_quantization_config", "model_quantization_config_kwargs"
    options = config.get(options_key) or {}
    options = options if isinstance(options, Mapping) else {"": options}
    if not config.get(key):
        if options:
            imported.unneeded.append((options_key, f"Axolotl does not read it without {key}"))
        return
    imported.unneeded.append((key, "the model's config.json names its quantization"))
    for option, value in options.items():
        if option != "dequantize":
            what = "of a checkpoint's own quantization only dequantize can be set"
            imported.dropped.append((f"{options_key}: {option}", what))
        elif value:
            imported.document["model"]["dequantize"] = True
            imported.carried.append((f"{options_key}: dequantize", "model.dequantize"))


def _import_eaft(config: Mapping[str, Any], imported: ImportedSpec) -> None:
    """Set the weights of tokens by entropy (EAFT)."""
    if not config.get("use_eaft"):
        return
    try:
        if foreign_values.to_int(config.get("eaft_k") or 20) != 20:
            raise NotConvertible("the entropy is that of the 20 most likely tokens")
        power = foreign_values.to_number(config.get("eaft_alpha") or 1.0)
    except NotConvertible as error:
        imported.dropped.append(("use_eaft", str(error)))
        return
    imported.document.setdefault("mitigations", {})["reweight"] = {"by": "entropy", "power": power}
    imported.changed.append(("use_eaft", "mitigations.reweight: the entropy is divided by ln 20"))
