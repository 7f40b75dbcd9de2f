"""Save a trained model to a folder that plain transformers or PEFT loads, and use a model without its adapter."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from harness.errors import HarnessError
from harness.interfaces.exporter import LOADING_HEADING
from harness.model import frozen_lora, precision, quantization, svd_subspaces
from harness.model.load import ADDED_ROWS_ATTRIBUTE, ORIGIN_ATTRIBUTE, PUBLISHED_CONFIG_ATTRIBUTE
from harness.model.quantization_settings import DEQUANTIZED, quantizes_experts, save_quantization
from harness.utils import cache_dir
from harness.utils.silence import silence_libraries
from harness.utils.write_errors import report_write_errors


def save_model(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the model, its tokenizer and chat template into the folder, atomically. An existing folder is replaced.

    A PEFT model is written as one adapter, joined with its frozen factors (see `frozen_lora`); the adapter's config
    names the base model and its revision. Any other model is written in full, as safetensors. So is a model that is
    trained within subspaces of its weights (see `svd_subspaces`), in float32: no adapter of PEFT can express its frozen
    directions.

    README.md has the lines that load the model. They name the dtype of the base model, which may have been published in
    another one than that of the run.

    Args:
        model: A causal language model or a PEFT model.
        tokenizer: The model's tokenizer.
        folder: The folder to write.

    Raises:
        RunError: The folder cannot be written or its disk is full.
    """
    folder = Path(folder)
    draft = folder.with_name(f".{folder.name}.draft-{os.getpid()}")
    with report_write_errors(folder, "the model"), contextlib.ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, draft, ignore_errors=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        with silence_libraries():
            if saves_as_adapter(model):
                _save_adapter(model, draft)
                _sort_adapter_config(draft / "adapter_config.json")
            elif is_peft_model(model):
                _save_merged_model(model, draft)
            else:
                _save_full_model(model, draft)
            tokenizer.save_pretrained(draft)
        (draft / "README.md").write_text(_describe_loading(model, folder), encoding="utf-8")
        cache_dir.move_into_place(draft, folder)


@contextlib.contextmanager
def adapter_disabled(model: Any) -> Iterator[Any]:
    """Within the context, the model is as it was before training: with its adapter off.

    Afterwards the same weights are trainable as before: when PEFT switches an adapter on, it makes all of its weights
    trainable, frozen ones too.

    Raises:
        HarnessError: The model has no adapter, so its initial weights no longer exist.
    """
    if not is_peft_model(model):
        raise HarnessError(
            "mitigations",
            "a reference model needs an adapter that can be switched off, and this model has none",
            'add "lora" to the mitigations',
        )
    requires_grad = {weight: weight.requires_grad for weight in model.parameters()}
    try:
        with model.disable_adapter():
            yield model
    finally:
        for weight, is_trainable in requires_grad.items():
            weight.requires_grad_(is_trainable)


def base_model(model: Any) -> AbstractContextManager[Any]:
    """Return a context whose value is the model with its adapter off, or the model itself if it has no adapter."""
    return adapter_disabled(model) if is_peft_model(model) else contextlib.nullcontext(model)


def is_peft_model(model: Any) -> bool:
    """Return whether the model is a PEFT model."""
    return hasattr(model, "peft_config") and hasattr(model, "disable_adapter")


def saves_as_adapter(model: Any) -> bool:
    """Return whether `save_model` writes an adapter and not a full model."""
    return is_peft_model(model) and not svd_subspaces.subspace_layers(model)


def merge_adapter(model: Any) -> Any:
    """Merge the adapter into the base model's weights, in their dtype, and return the base model without adapter.

    Within `autocast_context` too, the change is computed in full precision: rounding it to 16 bits before the addition
    would lose more than rounding the sum. An adapted layer that shares its weight with another layer, such as the
    embedding of a model with tied embeddings, gets its own: the adapter changes only that layer.

    Weights that bitsandbytes quantized are dequantized first, so the sum is not quantized again.
    """
    if quantization.quantized_layers(model):
        model = _with_dequantized_base(model)
    _untie_adapted_layers(model)
    device = next(model.parameters()).device
    with torch.autocast(device.type, enabled=False):
        return model.merge_and_unload()


def _with_dequantized_base(model: Any) -> Any:
    """Return the PEFT model on the dequantized weights of its base model. Its adapters pass through a folder."""
    from peft import PeftModel

    with tempfile.TemporaryDirectory() as folder, silence_libraries(), torch.random.fork_rng():
        _save_adapter(model, Path(folder))
        base = model.unload()
        quantization.dequantize(base)
        return PeftModel.from_pretrained(base, folder)


def _untie_adapted_layers(model: Any) -> None:
    base = model.get_base_model()
    owners = Counter(id(weight) for module in base.modules() for weight in module.parameters(recurse=False))
    for layer in frozen_lora.lora_layers(model).values():
        adapted_layer = layer.get_base_layer()
        weight: Any = getattr(adapted_layer, "weight", None)
        if owners[id(weight)] > 1:
            owners[id(weight)] -= 1
            adapted_layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
            for config in (base.config, base.config.get_text_config()):
                config.tie_word_embeddings = False


def _save_adapter(model: Any, draft: Path) -> None:
    origin = getattr(model.get_base_model(), ORIGIN_ATTRIBUTE, None)
    if origin is not None:
        for config in model.peft_config.values():
            config.base_model_name_or_path = origin.path
            config.revision = origin.revision
        save_quantization(DEQUANTIZED if origin.dequantize else origin.quantization, draft)
    if frozen_lora.frozen_lora(model):
        frozen_lora.save_joined_adapter(model, draft)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # PEFT would save the whole embeddings because they grew; the adapter has the new rows
        grew = any(getattr(config, "trainable_token_indices", None) for config in model.peft_config.values())
        model.save_pretrained(draft, save_embedding_layers=False if grew else "auto")


def _sort_adapter_config(file: Path) -> None:
    """Sort the keys and the names of layers of an adapter's config, which PEFT writes in the order of a set."""
    config = json.loads(file.read_text(encoding="utf-8"))
    for name in _SETS_OF_ADAPTER_CONFIG:
        if isinstance(config.get(name), list) and all(isinstance(value, str | int) for value in config[name]):
            config[name] = sorted(config[name], key=str)
    file.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


_SETS_OF_ADAPTER_CONFIG = ("target_modules", "exclude_modules", "modules_to_save", "target_parameters")
"""Settings of PEFT in which the order has no meaning."""


def _describe_loading(model: Any, folder: Path) -> str:
    """Return a README with the lines that load the model as it was evaluated."""
    causal_lm = model.get_base_model() if is_peft_model(model) else model
    options = ", trust_remote_code=True" if getattr(causal_lm.config, "auto_map", None) else ""
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", "", f"folder = {str(folder)!r}"]
    note = ""
    if saves_as_adapter(model):
        config = model.peft_config[model.active_adapter]
        dtype = str(precision.loaded_dtype(model)).removeprefix("torch.")
        options = f", revision={config.revision!r}, dtype={dtype!r}{options}"
        lines.insert(0, "from peft import PeftModel")
        origin = getattr(causal_lm, ORIGIN_ATTRIBUTE, None)
        if origin is not None and origin.quantization:
            lines[1] = "from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig"
            lines.append(quantization.config_source(origin.quantization, dtype))
            options = f"{options}, quantization_config=quantization"
        method = getattr(causal_lm, quantization.DEQUANTIZED_ATTRIBUTE, None)
        config_class = quantization.dequantizing_config_class(method)
        if config_class is not None:
            lines[1] = f"from transformers import AutoModelForCausalLM, AutoTokenizer, {config_class}"
            options = f"{options}, quantization_config={config_class}(dequantize=True)"
        lines.append(f"base = AutoModelForCausalLM.from_pretrained({config.base_model_name_or_path!r}{options})")
        if config_class is not None and dtype == "float32":
            lines.append("base = base.float()  # transformers dequantizes to bfloat16")
        if method == quantization.BITSANDBYTES:
            lines.insert(0, "import torch")
            lines.append(f"base = base.dequantize(torch.{dtype})")
        if getattr(causal_lm, ADDED_ROWS_ATTRIBUTE, ()):
            rows = causal_lm.config.get_text_config().vocab_size
            lines.append(f"base.resize_token_embeddings({rows})  # the adapter has the rows of added tokens")
        if origin is not None and quantizes_experts(origin.quantization):
            lines.insert(2, "from harness.model.quantized_experts import experts_as_parameters, quantize_experts")
            lines += ["quantize_experts(base, quantization)", "with experts_as_parameters(base):"]
            lines.append("    model = PeftModel.from_pretrained(base, folder)")
        else:
            lines.append("model = PeftModel.from_pretrained(base, folder)")
        note = (
            "\nThe run computed with this dtype of the base model. `AutoPeftModelForCausalLM` takes the published "
            "one,\nand resizes the base model if the tokenizer has more tokens: scores then differ.\n"
        )
    else:
        lines.append(f"model = AutoModelForCausalLM.from_pretrained(folder{options})")
    lines.append("tokenizer = AutoTokenizer.from_pretrained(folder)")
    return "\n".join([LOADING_HEADING, "", "```python", *lines, "```", note])


def _save_merged_model(model: Any, draft: Path) -> None:
    _save_full_model(model.get_base_model(), draft, svd_subspaces.merged_state_dict(model))
    _write_dtype(torch.float32, draft)


def _write_dtype(dtype: torch.dtype, draft: Path) -> None:
    """Name the dtype that the weights are loaded in."""
    file = draft / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["dtype"] = str(dtype).removeprefix("torch.")
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _save_full_model(model: PreTrainedModel, draft: Path, state: Mapping[str, Any] | None = None) -> None:
    """Write the full model with the published settings: caching on, and the published generation config."""
    caching, generation = model.config.use_cache, model.generation_config
    published = getattr(model, PUBLISHED_CONFIG_ATTRIBUTE, None)
    try:
        model.config.use_cache = True
        if published is not None:
            model.generation_config = saveable_generation_config(published, generation)
        with precision.stored_dtypes(model) as dtype:
            model.save_pretrained(draft, state_dict=None if state is None else dict(state))
        _write_dtype(dtype, draft)
    finally:
        model.config.use_cache, model.generation_config = caching, generation


def saveable_generation_config(published: GenerationConfig, current: GenerationConfig) -> GenerationConfig:
    """Return the published generation config with the current special tokens, in a form that transformers saves.

    Some models, such as Llama 2, were published with a temperature but without sampling, which transformers refuses to
    save. Sampling is switched on for them, as intended by their authors.
    """
    config = copy.deepcopy(published)
    config.pad_token_id, config.eos_token_id = current.pad_token_id, current.eos_token_id
    try:
        config.validate(strict=True)
    except ValueError:
        config.do_sample = True
    return config
