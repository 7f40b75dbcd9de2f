"""What the numbers of an evaluation depend on beside the item: which weights, which words, which arithmetic.

No stored answer is used for a model that did not give it, so the digests are of the weights as they are in memory,
not of a path that they once came from.
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
        # where it came from, who wrote it, and how it is loaded, which is told by the loaded model itself
        "_name_or_path", "_commit_hash", "transformers_version", "architectures", "dtype",
        "torch_dtype", "_attn_implementation", "_attn_implementation_internal", "attn_implementation",
        # switched by whoever trains or generates, and without influence on what comes out
        "use_cache", "_from_model_config", "gradient_checkpointing",
    }
)  # fmt: skip


def model_configs(model: Any) -> dict[str, Any]:
    """The model's config and generation config as plain values, such that a model that was trained or saved and loaded
    again has the same ones. Empty for a model that has none.

    The generation config is the one that was published with it. Of an adapted model they are the base model's.
    """
    made = {}
    config: Any = getattr(model, "config", None)
    if hasattr(config, "to_dict"):
        made["config"] = _plain_value(config.to_dict())
    ours: Any = getattr(model, "generation_config", None)
    if hasattr(ours, "to_dict"):
        published = getattr(model, PUBLISHED_CONFIG_ATTRIBUTE, None)
        made["generation"] = _plain_value(
            (ours if published is None else saveable_generation_config(published, ours)).to_dict()
        )
    return made


def _plain_value(value: Any) -> Any:
    """The value in JSON's own types, without what says nothing of the function."""
    if isinstance(value, dict):
        return {str(key): _plain_value(one) for key, one in sorted(value.items(), key=str) if key not in _IGNORED_KEYS}
    if isinstance(value, list | tuple):
        return [_plain_value(one) for one in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    return value if isinstance(value, str | int | float | bool | None) else str(value)


ABSENT = "none"


def evaluation_fingerprint(model: Any, tokenizer: PreTrainedTokenizerBase, template: Template) -> dict[str, str]:
    """What all items of an evaluation have in common, by name.

    `model` and `adapter`: see `weight_digests`. `config`: of what its config files say (see `model_configs`).
    `tokenizer`: its whole definition. `template`: its fingerprint. `dtype`: of the weights and, under autocast, of the
    arithmetic.
    `attention`: the implementation. `harness`: its version.
    model: None where a server answers; `model`, `adapter`, `config`, `dtype` and `attention` are then `none`.
    """
    words = {
        "tokenizer": _tokenizer_digest(tokenizer),
        "template": template_fingerprint(template, tokenizer),
        "harness": _harness_version(),
    }
    if model is None:
        return {**dict.fromkeys(("model", "adapter", "config", "dtype", "attention"), ABSENT), **words}
    base, adapter, config = model_fingerprint(model)
    attention = getattr(model.config, "_attn_implementation", None)
    how = {"dtype": _dtype_description(model), "attention": str(attention or ABSENT)}
    return {"model": base, "adapter": adapter, "config": config, **how, **words}


def model_fingerprint(model: Any) -> tuple[str, str, str]:
    """What decides which function the model is, as digests: its weights, its adapter's (see `weight_digests`), its
    configs."""
    return *weight_digests(model), json_digest(model_configs(model))


def weight_digests(model: Any) -> tuple[str, str]:
    """SHA-256, in hex, of the model's own weights, and of its adapter's, names included.

    The second is `none` for a model without an adapter, or with its adapter switched off: that is another model.
    Reads every weight once, about a second a GB.
    """
    own: list[tuple[str, torch.Tensor]] = []
    adapter: list[tuple[str, torch.Tensor]] = []
    prefix = getattr(getattr(model, "base_model", None), "prefix", None)  # PEFT's, e.g. `lora_`
    adapted = hasattr(model, "peft_config")
    for name, tensor in model.state_dict().items():
        belongs = adapted and (
            not name.startswith("base_model.model.")
            or ".modules_to_save." in name
            or (prefix is not None and prefix in name)
        )
        (adapter if belongs else own).append((name, tensor))
    if not adapted or not _is_adapter_enabled(model):
        return _tensor_digest(own, ""), ABSENT
    # Scaling and rank change the function and are no weights.
    active = model.active_adapters if isinstance(model.active_adapters, list) else [model.active_adapter]
    settings = {
        name: _plain_adapter_settings(model.peft_config[name].to_dict()) for name in active if name in model.peft_config
    }
    return _tensor_digest(own, ""), _tensor_digest(adapter, json.dumps(settings, sort_keys=True))


def json_digest(value: Any) -> str:
    """The SHA-256, in hex, of a value made of plain JSON types."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _tensor_digest(tensors: Iterable[tuple[str, torch.Tensor]], suffix: str) -> str:
    found = hashlib.sha256(suffix.encode())
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        data = tensor.detach().contiguous().cpu()
        # PEFT renames a wrapped layer's own weight; it stays the same weight.
        plain = name.replace("base_model.model.", "").replace(".base_layer.", ".").replace(".original_module.", ".")
        found.update(f"{plain}\0{data.dtype}\0{tuple(data.shape)}\0".encode())
        found.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _is_adapter_enabled(model: Any) -> bool:
    """Whether any layer's adapter takes part in the forward pass."""
    states = [module.disable_adapters for module in model.modules() if hasattr(module, "disable_adapters")]
    return not states or not all(states)


def _dtype_description(model: torch.nn.Module) -> str:
    kinds = sorted({str(weight.dtype).removeprefix("torch.") for weight in model.parameters()})
    place = next(model.parameters()).device.type
    if torch.is_autocast_enabled(place):
        kinds.append(f"autocast:{str(torch.get_autocast_dtype(place)).removeprefix('torch.')}")
    return "+".join(kinds)


def _tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    core = getattr(tokenizer, "backend_tokenizer", None)
    definition = core.to_str() if core is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return json_digest([definition, tokenizer.special_tokens_map])


def _plain_adapter_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    # Where the base lies, and whether it is being trained, is no part of what the adapter does.
    aside = ("base_model_name_or_path", "revision", "inference_mode")
    return {
        key: str(sorted(value) if isinstance(value, set) else value)
        for key, value in settings.items()
        if key not in aside
    }


def _harness_version() -> str:
    try:
        return version("harness-sft")
    except PackageNotFoundError:
        return ABSENT
