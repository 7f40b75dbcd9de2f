"""Digests of everything that an evaluation depends on besides its items: weights, tokenizer, template, arithmetic.

A stored answer must only be used for the model that gave it. The digests are therefore of the weights in memory, not
of the path that they were loaded from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch

from harness.data.tokenization.fingerprints import template_fingerprint
from harness.interfaces.template import Template
from harness.model.load import PUBLISHED_CONFIG_ATTRIBUTE
from harness.model.save import saveable_generation_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_IGNORED_KEYS = frozenset(
    {
        # origin, author and loading options: the loaded model itself has the result
        "_name_or_path", "_commit_hash", "transformers_version", "architectures", "dtype",
        "torch_dtype", "_attn_implementation", "_attn_implementation_internal", "attn_implementation",
        # switched by trainers and generators, without influence on the output
        "use_cache", "_from_model_config", "gradient_checkpointing",
    }
)  # fmt: skip


def model_configs(model: Any) -> dict[str, Any]:
    """Return the model's config and generation config as plain values.

    They are the same after training, and after saving and loading. The generation config is the one that was
    published with the model. For a model with an adapter they are the base model's. Empty for a model without configs.
    """
    configs = {}
    config: Any = getattr(model, "config", None)
    if hasattr(config, "to_dict"):
        configs["config"] = _plain_value(config.to_dict())
    generation_config: Any = getattr(model, "generation_config", None)
    if hasattr(generation_config, "to_dict"):
        published = getattr(model, PUBLISHED_CONFIG_ATTRIBUTE, None)
        if published is not None:
            generation_config = saveable_generation_config(published, generation_config)
        configs["generation"] = _plain_value(generation_config.to_dict())
    return configs


def _plain_value(value: Any) -> Any:
    """Return the value in plain JSON types, without keys that do not change the model's function."""
    if isinstance(value, dict):
        return {
            str(key): _plain_value(entry) for key, entry in sorted(value.items(), key=str) if key not in _IGNORED_KEYS
        }
    if isinstance(value, list | tuple):
        return [_plain_value(entry) for entry in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    return value if isinstance(value, str | int | float | bool | None) else str(value)


ABSENT = "none"


def evaluation_fingerprint(model: Any, tokenizer: PreTrainedTokenizerBase, template: Template) -> dict[str, str]:
    """Return what all items of an evaluation have in common, by name.

    Args:
        model: None if a server answers.
        tokenizer: The model's tokenizer.
        template: The template of the prompts.

    Returns:
        - `model`, `adapter`: digests of the weights, see `weight_digests`.
        - `config`: digest of the configs, see `model_configs`.
        - `dtype`: of the weights and, under autocast, of the arithmetic.
        - `attention`: the attention implementation.
        - `tokenizer`: digest of its complete definition.
        - `template`: its fingerprint.
        - `harness`: the version of harness.

        The first five are `none` without a model.
    """
    text_fingerprint = {
        "tokenizer": _tokenizer_digest(tokenizer),
        "template": template_fingerprint(template, tokenizer),
        "harness": _harness_version(),
    }
    if model is None:
        return {**dict.fromkeys(("model", "adapter", "config", "dtype", "attention"), ABSENT), **text_fingerprint}
    base, adapter, config = model_fingerprint(model)
    attention = getattr(model.config, "_attn_implementation", None)
    arithmetic = {"dtype": _dtype_description(model), "attention": str(attention or ABSENT)}
    return {"model": base, "adapter": adapter, "config": config, **arithmetic, **text_fingerprint}


def model_fingerprint(model: Any) -> tuple[str, str, str]:
    """Return digests of the weights, the adapter's weights (see `weight_digests`) and the configs of a model.

    Together they identify the function that the model computes.
    """
    return *weight_digests(model), json_digest(model_configs(model))


def weight_digests(model: Any) -> tuple[str, str]:
    """Return the SHA-256, in hex, of the base weights and of the adapter's weights, names included.

    The second is `none` for a model without an adapter or with its adapter disabled, which is a different model. Every
    weight is read once, which takes about one second per GB.
    """
    base: list[tuple[str, torch.Tensor]] = []
    adapter: list[tuple[str, torch.Tensor]] = []
    prefix = getattr(getattr(model, "base_model", None), "prefix", None)  # PEFT's, e.g. `lora_`
    has_adapter = hasattr(model, "peft_config")
    for name, tensor in model.state_dict().items():
        is_adapter_weight = has_adapter and (
            not name.startswith("base_model.model.")
            or ".modules_to_save." in name
            or ".trainable_tokens_" in name
            or (prefix is not None and prefix in name)
        )
        (adapter if is_adapter_weight else base).append((name, tensor))
    if not has_adapter or not _is_adapter_enabled(model):
        return _tensor_digest(base, ""), ABSENT
    # Scaling and rank change the function but are not weights.
    active = model.active_adapters if isinstance(model.active_adapters, list) else [model.active_adapter]
    settings = {
        name: _plain_adapter_settings(model.peft_config[name].to_dict()) for name in active if name in model.peft_config
    }
    return _tensor_digest(base, ""), _tensor_digest(adapter, json.dumps(settings, sort_keys=True))


def json_digest(value: Any) -> str:
    """Return the SHA-256, in hex, of a value of plain JSON types."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _tensor_digest(tensors: Iterable[tuple[str, torch.Tensor]], suffix: str) -> str:
    digest = hashlib.sha256(suffix.encode())
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        data = tensor.detach().contiguous().cpu()
        # PEFT renames a wrapped layer's own weight; it stays the same weight.
        plain_name = (
            name.replace("base_model.model.", "")
            .replace(".token_adapter.", ".")
            .replace(".base_layer.", ".")
            .replace(".original_module.", ".")
        )
        digest.update(f"{plain_name}\0{data.dtype}\0{tuple(data.shape)}\0".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _is_adapter_enabled(model: Any) -> bool:
    """Return whether the adapter of any layer takes part in the forward pass."""
    states = [module.disable_adapters for module in model.modules() if hasattr(module, "disable_adapters")]
    return not states or not all(states)


def _dtype_description(model: torch.nn.Module) -> str:
    dtypes = sorted({str(weight.dtype).removeprefix("torch.") for weight in model.parameters()})
    device_type = next(model.parameters()).device.type
    if torch.is_autocast_enabled(device_type):
        dtypes.append(f"autocast:{str(torch.get_autocast_dtype(device_type)).removeprefix('torch.')}")
    return "+".join(dtypes)


def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    definition = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return json_digest([definition, tokenizer.special_tokens_map])


def _plain_adapter_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    # The location of the base model and the training state do not change the adapter's function.
    ignored = ("base_model_name_or_path", "revision", "inference_mode")
    return {
        key: str(sorted(value) if isinstance(value, set) else value)
        for key, value in settings.items()
        if key not in ignored
    }


def _harness_version() -> str:
    try:
        return version("harness-sft")
    except PackageNotFoundError:
        return ABSENT
