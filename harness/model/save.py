"""A trained model written to a folder that plain transformers or PEFT loads, and the model without its adapter."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from harness.errors import HarnessError, RunError
from harness.model import frozen_lora, svd_subspaces
from harness.model.load import ORIGIN_ATTRIBUTE, PUBLISHED_CONFIG_ATTRIBUTE
from harness.utils import cache_dir
from harness.utils.silence import silence_libraries


def save_model(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the model, its tokenizer and chat template into the folder, whole or not at all.

    A PEFT model is written as its adapter, joined with what is kept beside it (`adapters`), which records where its
    base model is and at what revision; any other model in full, as safetensors. So is one that is trained within
    directions of its weights (`subspaces`), in float32: no adapter of peft can say what its frozen directions are. A
    folder that is there already is replaced. Raises RunError when it cannot be written.
    """
    folder = Path(folder)
    draft = folder.with_name(f".{folder.name}.draft-{os.getpid()}")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        with silence_libraries():
            if saves_as_adapter(model):
                _save_adapter(model, draft)
            elif is_peft_model(model):
                _save_merged_model(model, draft)
            else:
                _save_full_model(model, draft)
            tokenizer.save_pretrained(draft)
        cache_dir.move_into_place(draft, folder)
    except Exception as error:
        if cache_dir.is_disk_full_error(error):
            raise RunError(str(folder), "no disk space left to save the model", "free some and run again") from error
        if isinstance(error, OSError) and not isinstance(error, HarnessError):
            raise RunError(
                str(folder), f"the model cannot be saved: {error}", "check the folder's permissions"
            ) from error
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def adapter_disabled(model: Any) -> Iterator[Any]:
    """The model as it was before training: with its adapter off, until the context ends.

    Which weights can move is the same after it: peft lets every weight of an active adapter move again when it switches
    the adapter on, those that were frozen too.
    Raises HarnessError when the model has no adapter, for then its first weights are gone.
    """
    if not is_peft_model(model):
        raise HarnessError(
            "mitigations",
            "a reference model needs an adapter, which can be switched off, and this model has none",
            'add "lora" to the mitigations',
        )
    moving = {weight: weight.requires_grad for weight in model.parameters()}
    try:
        with model.disable_adapter():
            yield model
    finally:
        for weight, moves in moving.items():
            weight.requires_grad_(moves)


def base_model(model: Any) -> AbstractContextManager[Any]:
    """The model before its first stage: with its adapter off if it has one, else as it is."""
    return adapter_disabled(model) if is_peft_model(model) else contextlib.nullcontext(model)


def is_peft_model(model: Any) -> bool:
    """Whether the model is a PEFT model."""
    return hasattr(model, "peft_config") and hasattr(model, "disable_adapter")


def saves_as_adapter(model: Any) -> bool:
    """Whether `save_model` writes an adapter, to be put on the base model again, and not a whole model."""
    return is_peft_model(model) and not svd_subspaces.subspace_layers(model)


def merge_adapter(model: Any) -> Any:
    """The base model with what its adapter learned in its weights, in their own format; the adapter is gone.

    Computed in full precision within `autocast_context` too: rounded to 16 bits before it is added, a change of the
    weights loses more than the sum does.
    """
    place = next(model.parameters()).device
    with torch.autocast(place.type, enabled=False):
        return model.merge_and_unload()


def _save_adapter(model: Any, draft: Path) -> None:
    origin = getattr(model.get_base_model(), ORIGIN_ATTRIBUTE, None)
    if origin is not None:
        for config in model.peft_config.values():
            config.base_model_name_or_path = origin.path
            config.revision = origin.revision
    if frozen_lora.frozen_lora(model):
        frozen_lora.save_joined_adapter(model, draft)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(draft)
    (draft / "README.md").unlink(missing_ok=True)  # a card with nothing filled in


def _save_merged_model(model: Any, draft: Path) -> None:
    """Which format the weights have stands in the config too, and is what they are loaded in."""
    _save_full_model(model.get_base_model(), draft, svd_subspaces.merged_state_dict(model))
    file = draft / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n", encoding="utf-8")


def _save_full_model(model: PreTrainedModel, draft: Path, state: Mapping[str, Any] | None = None) -> None:
    """What changed for training is changed back for the saved copy: caching on, the published generation config."""
    caching, generation = model.config.use_cache, model.generation_config
    published = getattr(model, PUBLISHED_CONFIG_ATTRIBUTE, None)
    try:
        model.config.use_cache = True
        if published is not None:
            model.generation_config = saveable_generation_config(published, generation)
        model.save_pretrained(draft, state_dict=None if state is None else dict(state))
    finally:
        model.config.use_cache, model.generation_config = caching, generation


def saveable_generation_config(published: GenerationConfig, current: GenerationConfig) -> GenerationConfig:
    """The published generation config with our special tokens, mended where transformers refuses to save it.

    Some models were published with a temperature but without sampling (Llama 2 was); sampling is what was meant.
    """
    config = copy.deepcopy(published)
    config.pad_token_id, config.eos_token_id = current.pad_token_id, current.eos_token_id
    try:
        config.validate(strict=True)
    except ValueError:
        config.do_sample = True
    return config
