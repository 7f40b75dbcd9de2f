"""Load a located model's tokenizer and weights, and count its parameters."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from harness.errors import HarnessError
from harness.model import added_tokens, hub, model_config, quantization, quantized_experts
from harness.model import device as device_module
from harness.model.added_tokens import ADDED_ROWS_ATTRIBUTE as ADDED_ROWS_ATTRIBUTE
from harness.model.locate import ModelLocation
from harness.model.precision import upcast_norms_and_embeddings
from harness.model.tokenizer import from_pretrained_options, load_error, load_published_tokenizer, trusts_remote_code
from harness.model.tokenizer import load_tokenizer as load_tokenizer
from harness.types import Progress, no_progress
from harness.utils.formatting import join_names
from harness.utils.silence import silence_libraries

WHERE = "model.path"

ORIGIN_ATTRIBUTE = "harness_origin"
"""Attribute of a loaded model: the ModelLocation that it was loaded from."""

PUBLISHED_CONFIG_ATTRIBUTE = "harness_published"
"""Attribute of a loaded model: the generation config it was published with, which is saved with it again."""

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "top_h", "epsilon_cutoff", "eta_cutoff")
_LENGTHS = ("max_length", "min_length", "max_new_tokens", "min_new_tokens")


def load_model(
    location: ModelLocation, settings: Mapping[str, Any], *, precision: str = "auto", progress: Progress = no_progress
) -> PreTrainedModel:
    """Load the model onto this process's device, in evaluation mode. A hub model is downloaded first.

    The model keeps no cache of keys and values in a plain forward pass, keeps one in `generate`, and decodes greedily
    by default. For a run that trained an adapter: the PEFT model, with a trainable adapter.

    In a 16-bit precision norms and embeddings are float32 nevertheless: run the model under `autocast_context`.

    Args:
        location: The model, as `resolve_model` returns it.
        settings: The spec's `model`.
        precision: The spec's `train.precision`, see `resolve_dtype`.
        progress: Called while the model is downloaded and loaded.

    Raises:
        HarnessError: The model cannot be downloaded or loaded, its quantization is not available, or device, dtype and
            attention are incompatible.
    """
    if location.base is not None:
        base = {**settings, "revision": location.base.revision}
        return _attach_adapter(load_model(location.base, base, precision=precision, progress=progress), location)
    device = device_module.select_device()
    dtype = device_module.resolve_dtype(precision, device)
    attention = device_module.resolve_attention(settings.get("attention", "auto"), device)
    checkpoint_config = model_config.load_located_config(location)
    quantization.check_checkpoint(checkpoint_config, location.quantization, dequantize=location.dequantize)
    quantization_options = quantization.loading_options(location.quantization, dtype, device)
    if location.kind == "hub" and location.reachable:
        hub.download_model(location.path, settings.get("revision"), progress)
    progress("load", 0, 0, location.path)
    try:
        if location.dequantize:
            quantization_options = quantization.dequantizing_options(_load_config(location, settings).to_dict())
        with silence_libraries(), quantized_experts.quantized_while_loading(location.quantization):
            auto_class: Any = AutoModelForCausalLM  # its type hints do not know `output_loading_info`
            model, info = auto_class.from_pretrained(
                location.path,
                dtype=dtype,
                attn_implementation=attention,
                output_loading_info=True,
                **quantization_options,
                **from_pretrained_options(location, settings),
            )
    except torch.cuda.OutOfMemoryError as error:
        raise _does_not_fit(location, device) from error
    except HarnessError:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and "attn_implementation" in str(error):
            what = f"the code of '{location.path}' does not support {attention}"
            raise HarnessError("model.attention", what, "use 'auto', which chooses what it supports") from error
        raise load_error(error, location, "model") from error
    if info["missing_keys"] or info["mismatched_keys"]:
        unfilled = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        raise HarnessError(
            WHERE,
            f"the weights of '{location.path}' do not fill {type(model).__name__}: "
            f"{join_names(unfilled[:3])} ({len(unfilled)} in all)",
            "give a folder with all weights of the model",
        )
    quantization.require_quantized_experts(model, location.quantization)
    if location.dequantize and quantization.quantized_layers(model):  # of bitsandbytes
        quantization.dequantize(model, dtype)
    quantization.finish_dequantization(model, _load_config(location, settings), dtype)
    quantization.prepare_quantized_layers(model)
    tokenizer = load_tokenizer(location, settings)
    if location.added:
        new_ids = added_tokens.add_to_tokenizer(load_published_tokenizer(location, settings), location.added)
        setattr(model, ADDED_ROWS_ATTRIBUTE, added_tokens.grow_embeddings(model, tokenizer, new_ids))
    upcast_norms_and_embeddings(model)
    _configure_model(model, tokenizer)
    setattr(model, ORIGIN_ATTRIBUTE, location)
    try:
        model = model if "device_map" in quantization_options else model.to(device)
    except torch.cuda.OutOfMemoryError as error:
        raise _does_not_fit(location, device) from error
    return cast(PreTrainedModel, model.eval())


def load_on_meta(location: ModelLocation, settings: Mapping[str, Any]) -> PreTrainedModel | None:
    """Return the model on the meta device, built from its config; None when a hub config is unavailable.

    Raises:
        HarnessError: A local config is not that of a language model that transformers knows.
    """
    location = location.base or location
    try:
        with silence_libraries(), torch.device("meta"):
            config = _load_config(location, settings)
            trust_remote_code = trusts_remote_code(settings)
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
            return cast(PreTrainedModel, model)
    except Exception as error:
        if location.kind == "hub":
            return None
        raise load_error(error, location, "config") from error


def source_digest(model: Any) -> str | None:
    """Return the digest of the files that the model, or an adapter's base model, was loaded from.

    See `ModelLocation.digest`. The digest does not depend on what training changed since. None when the model was not
    loaded by `load_model`, or when its commit on the hub is unknown.
    """
    get_base_model = getattr(model, "get_base_model", None)
    location = getattr(get_base_model() if callable(get_base_model) else model, ORIGIN_ATTRIBUTE, None)
    if location is None or (location.kind == "hub" and "@" not in location.digest):
        return None
    return str(location.digest)


def parameter_count(model: PreTrainedModel, *, trainable: bool = False) -> int:
    """Return the number of weights of a model, tied weights counted once.

    Args:
        model: The model.
        trainable: Whether to count only the weights that are trained.
    """
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad or not trainable)


def _does_not_fit(location: ModelLocation, device: torch.device) -> HarnessError:
    free, total = torch.cuda.mem_get_info(device)
    return HarnessError(
        WHERE,
        f"'{location.path}' does not fit on {device}: {free / 1e9:.1f} of {total / 1e9:.1f} GB are free",
        "free the device, use a smaller model, set train.precision to bfloat16, or model.quantization to bitsandbytes",
    )


def _attach_adapter(model: PreTrainedModel, location: ModelLocation) -> PreTrainedModel:
    """Return the model with the adapter that a run saved."""
    from peft import PeftModel

    try:
        # PEFT draws initial weights, which are replaced at once: they must not advance the random state.
        with (
            silence_libraries(),
            torch.random.fork_rng(),
            quantized_experts.experts_as_parameters(model),
        ):
            adapted = PeftModel.from_pretrained(model, location.path, is_trainable=True)
    except Exception as error:
        raise load_error(error, location, "adapter") from error
    return cast(PreTrainedModel, adapted.eval())


def _load_config(location: ModelLocation, settings: Mapping[str, Any]) -> Any:
    return AutoConfig.from_pretrained(location.path, **from_pretrained_options(location, settings))


def _configure_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set the model's special tokens, caching and decoding to what training and evaluation expect."""
    setattr(model, PUBLISHED_CONFIG_ATTRIBUTE, copy.deepcopy(model.generation_config))
    model.config.use_cache = False  # training does not read keys and values
    model.config.pad_token_id = tokenizer.pad_token_id
    if hasattr(model.config, "rescale_every"):  # in evaluation RWKV halves weights in place, and would save them so
        model.config.rescale_every = 0
    generation = model.generation_config
    for name in (*_SAMPLING, *_LENGTHS):
        if hasattr(generation, name):
            setattr(generation, name, getattr(GenerationConfig(), name, None))
    generation.do_sample = False
    generation.use_cache = True
    generation.pad_token_id = tokenizer.pad_token_id
    if generation.eos_token_id is None:
        generation.eos_token_id = tokenizer.eos_token_id
