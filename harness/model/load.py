"""A located model's tokenizer, weights and size."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from harness.errors import HarnessError
from harness.model import device as device_module
from harness.model import hub
from harness.model.locate import ModelLocation
from harness.types import Progress, no_progress
from harness.utils import cache_dir
from harness.utils.silence import silence_libraries

WHERE = "model.path"

ORIGIN_ATTRIBUTE = "harness_origin"
"""Attribute of a loaded model: the ModelLocation that it came from."""

PUBLISHED_CONFIG_ATTRIBUTE = "harness_published"
"""Attribute of a loaded model: the generation config that was published with it, to be saved with it again."""

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "top_h", "epsilon_cutoff", "eta_cutoff")
_LENGTHS = ("max_length", "min_length", "max_new_tokens", "min_new_tokens")


def load_tokenizer(location: ModelLocation, settings: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """The model's fast tokenizer. It has a pad token: its own, else the end-of-sequence token.

    The padding side is as the model's authors left it; who pads sets it.
    Raises HarnessError when there is none, it is a slow one, or it has neither a pad nor an end-of-sequence token.
    """
    location = location.base or location
    try:
        with silence_libraries():
            found = AutoTokenizer.from_pretrained(location.path, **_from_pretrained_options(location, settings))
    except Exception as error:
        raise _load_error(error, location, "tokenizer") from error
    if not found.is_fast:
        raise HarnessError(
            WHERE,
            f"{type(found).__name__} of '{location.path}' is a slow tokenizer, without offsets of its tokens",
            "give a model with a tokenizer.json",
        )
    if found.pad_token_id is None:
        if found.eos_token_id is None:
            raise HarnessError(
                WHERE,
                f"the tokenizer of '{location.path}' has neither a pad nor an end-of-sequence token",
                "set one in its tokenizer_config.json",
            )
        found.pad_token = found.eos_token
    return found


def load_model(
    location: ModelLocation, settings: Mapping[str, Any], *, precision: str = "auto", progress: Progress = no_progress
) -> PreTrainedModel:
    """The model on this machine's device, in the dtype that `precision` means there, in evaluation mode.

    It keeps no cache of keys and values in a plain forward pass, does in `generate`, and decodes greedily unless told
    otherwise. A hub model is downloaded first. Of a run that trained an adapter: the PEFT model, its adapter free
    to move.
    Raises HarnessError when it cannot be had or loaded, or when device, dtype and attention do not go together.
    """
    if location.base is not None:
        base = {**settings, "revision": location.base.revision}
        return _attach_adapter(load_model(location.base, base, precision=precision, progress=progress), location)
    device = device_module.select_device()
    dtype = device_module.resolve_dtype(precision, device)
    attention = device_module.resolve_attention(settings.get("attention", "auto"), device)
    if location.kind == "hub" and location.reachable:
        hub.download_model(location.path, settings.get("revision"), progress)
    progress("load", 0, 0, location.path)
    try:
        with silence_libraries():
            automatic: Any = AutoModelForCausalLM  # typed as if it gave a model alone
            model, info = automatic.from_pretrained(
                location.path,
                dtype=dtype,
                attn_implementation=attention,
                output_loading_info=True,
                **_from_pretrained_options(location, settings),
            )
    except Exception as error:
        raise _load_error(error, location, "model") from error
    if info["missing_keys"] or info["mismatched_keys"]:
        lacking = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        raise HarnessError(
            WHERE,
            f"the weights of '{location.path}' do not fill {type(model).__name__}: "
            f"{', '.join(lacking[:3])} ({len(lacking)} in all)",
            "give a model that was saved whole",
        )
    _configure_model(model, load_tokenizer(location, settings))
    setattr(model, ORIGIN_ATTRIBUTE, location)
    try:
        model = model.to(device)
    except torch.cuda.OutOfMemoryError as error:
        free, total = torch.cuda.mem_get_info(device)
        raise HarnessError(
            WHERE,
            f"'{location.path}' does not fit on {device}: {free / 1e9:.1f} of {total / 1e9:.1f} GB are free",
            "free the device, take a smaller model, or set train.precision to bfloat16",
        ) from error
    return cast(PreTrainedModel, model.eval())


def load_on_meta(location: ModelLocation, settings: Mapping[str, Any]) -> PreTrainedModel | None:
    """The model on the meta device, from its config alone, without weights; None when a hub config cannot be had.

    Raises HarnessError when a local config describes no language model that transformers knows.
    """
    location = location.base or location
    try:
        with silence_libraries(), torch.device("meta"):
            config = AutoConfig.from_pretrained(location.path, **_from_pretrained_options(location, settings))
            remote = bool(settings.get("trust_remote_code", False))
            return cast(PreTrainedModel, AutoModelForCausalLM.from_config(config, trust_remote_code=remote))
    except Exception as error:
        if location.kind == "hub":
            return None
        raise _load_error(error, location, "config") from error


def parameter_count_from_config(location: ModelLocation, settings: Mapping[str, Any]) -> int | None:
    """How many weights the model has, tied ones once, from its config alone; None when a hub config cannot be had.

    Raises HarnessError when a local config describes no language model that transformers knows.
    """
    location = location.base or location
    if location.kind in ("gguf", "package"):
        manifest = cache_dir.load_manifest(Path(location.path))
        if manifest is not None:
            return int(manifest["parameters"])
    made = load_on_meta(location, settings)
    return None if made is None else parameter_count(made)


def source_digest(model: Any) -> str | None:
    """What identifies the files that `model`, or the base model of an adapter, was loaded from: see
    `ModelLocation.digest`.

    It says nothing of what training made of the weights since. None when they were not loaded here, or when the hub
    could not say which commit it was.
    """
    inner = getattr(model, "get_base_model", None)
    location = getattr(inner() if callable(inner) else model, ORIGIN_ATTRIBUTE, None)
    if location is None or (location.kind == "hub" and "@" not in location.digest):
        return None
    return str(location.digest)


def parameter_count(model: PreTrainedModel, *, trainable: bool = False) -> int:
    """How many weights a model has, each tied one once; trainable: those alone that can move."""
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad or not trainable)


def upcast_trainable(model: PreTrainedModel) -> None:
    """Turn every weight that can move and is kept in 16 bits into float32, in place.

    An update is often smaller than the rounding of 16 bits and would be lost. Computed with, such weights are cast
    down again: run the model under `autocast_context` from here on.
    """
    for weight in model.parameters():
        if weight.requires_grad and weight.dtype in (torch.bfloat16, torch.float16):
            weight.data = weight.data.float()


def autocast_context(model: PreTrainedModel, precision: str) -> AbstractContextManager[Any]:
    """The context that a forward pass of the model runs in: autocast to the 16-bit format of `precision`, or none."""
    place = next(model.parameters()).device
    kind = device_module.resolve_dtype(precision, place)
    return contextlib.nullcontext() if kind is torch.float32 else torch.autocast(place.type, kind)


def _attach_adapter(model: PreTrainedModel, location: ModelLocation) -> PreTrainedModel:
    """The model within the adapter that a run saved; the base weights stay where they are."""
    from peft import PeftModel

    try:
        # The adapter's first weights, which are replaced at once, must not use up anybody's random numbers.
        with silence_libraries(), torch.random.fork_rng():
            adapted = PeftModel.from_pretrained(model, location.path, is_trainable=True)
    except Exception as error:
        raise _load_error(error, location, "adapter") from error
    return cast(PreTrainedModel, adapted.eval())


def _from_pretrained_options(location: ModelLocation, settings: Mapping[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {"trust_remote_code": bool(settings.get("trust_remote_code", False))}
    if location.kind == "hub":
        options["revision"] = location.revision or "main"
        options["local_files_only"] = not location.reachable
    return options


def _load_error(error: BaseException, location: ModelLocation, part: str) -> HarnessError:
    """The error as one line with a remedy. What is no fault of the input is raised as it is."""
    if isinstance(error, HarnessError):
        return error
    if "trust_remote_code" in str(error):
        return HarnessError(
            WHERE,
            f"the {part} of '{location.path}' runs code that comes with it",
            "read that code, and set model.trust_remote_code to true if you trust it",
        )
    if isinstance(error, ValueError) and "attn_implementation" in str(error):
        return HarnessError("model.attention", str(error).splitlines()[0], "use eager")
    if location.kind == "hub":
        return hub.hub_error(error, location.path, location.revision)
    if isinstance(error, OSError | ValueError | ImportError | KeyError) or type(error).__name__ == "SafetensorError":
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        return HarnessError(WHERE, f"the {part} of '{location.path}' cannot be loaded: {text}", "is the folder whole?")
    raise error


def _configure_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make special tokens, caching and decoding of the model what a training and measuring run expects."""
    setattr(model, PUBLISHED_CONFIG_ATTRIBUTE, copy.deepcopy(model.generation_config))
    model.config.use_cache = False  # a training step would keep keys and values for nothing
    model.config.pad_token_id = tokenizer.pad_token_id
    generation = model.generation_config
    for name in (*_SAMPLING, *_LENGTHS):
        if hasattr(generation, name):
            setattr(generation, name, getattr(GenerationConfig(), name, None))
    generation.do_sample = False
    generation.use_cache = True
    generation.pad_token_id = tokenizer.pad_token_id
    if generation.eos_token_id is None:
        generation.eos_token_id = tokenizer.eos_token_id
