"""What the mitigations that add an adapter share: options, checks, and adding it with seeded weights."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness import seeding
from harness.errors import HarnessError
from harness.interfaces.mitigation import Mitigation

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RANK_OPTION: dict[str, Any] = {
    "type": "integer",
    "minimum": 1,
    "default": 16,
    "description": "Rank of each adapter. Usual: 8 to 64.",
}
ALPHA_OPTION: dict[str, Any] = {
    "type": ["number", "null"],
    "exclusiveMinimum": 0,
    "default": None,
    "description": "The adapter's output is scaled by alpha / rank. null: twice the rank.",
}
DROPOUT_OPTION: dict[str, Any] = {
    "type": "number",
    "minimum": 0,
    "exclusiveMaximum": 1,
    "default": 0.0,
    "description": "Dropout before each adapter while training.",
}
TARGET_OPTION: dict[str, Any] = {
    "type": ["string", "array"],
    "items": {"type": "string"},
    "minItems": 1,
    "default": "all-linear",
    "description": 'Names of the modules that get an adapter; "all-linear": all but the output head; "re:" and a '
    "regular expression: the modules whose full path it matches.",
}

LORA_OPTIONS: dict[str, dict[str, Any]] = {
    "rank": RANK_OPTION,
    "alpha": ALPHA_OPTION,
    "dropout": DROPOUT_OPTION,
    "target": TARGET_OPTION,
}
"""The options of every mitigation that adds a LoRA adapter."""

REGEX_PREFIX = "re:"
"""What a target that is a regular expression begins with."""

ADAPTER_PRIORITY = -10
"""Adapters are added first: other mitigations read the trainable weights."""

ADAPTER_MITIGATIONS = ("lora", "orthogonal_lora", "merged_lora", "osf", "oft")


def require_single_adapter(name: str, others: Mapping[str, Mitigation]) -> None:
    """Reject a second mitigation that adds an adapter.

    Args:
        name: the mitigation that asks.
        others: the other mitigations by name.

    Raises:
        HarnessError: one of the others adds an adapter too.
    """
    second = [other for other in others if other in ADAPTER_MITIGATIONS and other != name]
    if second:
        what = f"'{name}' and '{second[0]}' each add an adapter to the same layers"
        raise HarnessError(f"mitigations.{name}", what, "keep one of them")


def refuse_merged_lora(name: str, others: Mapping[str, Mitigation]) -> None:
    """Reject `merged_lora` next to a mitigation that replaces the weights after a stage.

    Args:
        name: the mitigation that replaces them.
        others: the other mitigations by name.

    Raises:
        HarnessError: `merged_lora` is one of them.
    """
    if "merged_lora" in others:
        what = f"'{name}' replaces the weights after a stage, and so the merged adapter of 'merged_lora'"
        raise HarnessError(f"mitigations.{name}", what, f"remove {name}, or replace 'merged_lora' by 'lora'")


def to_target_modules(name: str, target: str | Sequence[str]) -> str | list[str]:
    """Return peft's `target_modules` for the option `target`.

    peft reads a string other than "all-linear" as a regular expression; the option means a name, unless it begins with
    `re:`.

    Args:
        name: the mitigation.
        target: its option.

    Raises:
        HarnessError: the regular expression is not valid.
    """
    if isinstance(target, str) and target.startswith(REGEX_PREFIX):
        expression = target.removeprefix(REGEX_PREFIX)
        try:
            re.compile(expression)
        except re.error as error:
            what = f"{expression!r} is not a regular expression: {error}"
            raise HarnessError(f"mitigations.{name}.target", what, "correct it, or list the names of modules") from None
        return expression
    return target if target == "all-linear" else [target] if isinstance(target, str) else list(target)


def refuse_added_rows(where: str, model: Any) -> None:
    """Reject a model with added tokens, whose new rows are trained next to the adapter.

    Args:
        where: the spec key of the caller.
        model: the model, with or without an adapter.

    Raises:
        HarnessError: the model has new rows.
    """
    from harness.model.load import ADDED_ROWS_ATTRIBUTE

    base = getattr(model, "get_base_model", lambda: model)()
    if getattr(base, ADDED_ROWS_ATTRIBUTE, ()):
        what = "the rows of added tokens are trained themselves, not as a low-rank change"
        hint = "remove it, or model.add_tokens, add_special_tokens and pad_token"
        raise HarnessError(where, what, hint)


def add_adapter(name: str, model: PreTrainedModel, config: Any, *, seed: int) -> PreTrainedModel:
    """Add an adapter whose initial weights depend on the seed alone.

    Adapter weights are float32, also where the base is bfloat16. "all-linear" leaves out the output head, and layers
    that are linear by type but return something else, such as the routers of Llama 4.

    Args:
        name: the mitigation that adds it.
        model: the model without an adapter.
        config: a peft config with `target_modules`.
        seed: the seed that `Mitigation.prepare_model` received.

    Returns:
        The PEFT model that wraps `model`.

    Raises:
        HarnessError: the model has an adapter, or `config.target_modules` matches no module or one that cannot be
            adapted.
    """
    import torch
    from peft import PeftModel, get_peft_model

    from harness.model.load import ADDED_ROWS_ATTRIBUTE
    from harness.model.quantization import experts_as_parameters
    from harness_mitigations import linear_layers

    where = f"mitigations.{name}.target"
    if isinstance(model, PeftModel):
        raise HarnessError(
            f"mitigations.{name}",
            "the model already has an adapter",
            "remove one of the mitigations that add one, or merge the adapter of model.path into its base first",
        )
    if model.config.model_type == "rwkv":
        what = "plain transformers halves weights of RWKV in evaluation, but not those of their adapters"
        raise HarnessError(f"mitigations.{name}", what, "train all weights: remove the mitigation")
    adapts_all, targets = config.target_modules == "all-linear", config.target_modules
    head = next((path for path, module in model.named_modules() if module is model.get_output_embeddings()), "")
    if not adapts_all and linear_layers.is_target(head, targets):
        raise HarnessError(
            where, "the output head cannot be adapted", f"remove '{head.split('.')[-1]}'; 'all-linear' excludes it"
        )
    irregular = linear_layers.find_irregular_linear_layers(model)
    if adapts_all:
        config.exclude_modules = irregular or None
    elif path := next((path for path in irregular if linear_layers.is_target(path, targets)), None):
        what = f"the layer {path}, a {type(model.get_submodule(path)).__name__}, does not return a linear function"
        raise HarnessError(where, what, f"remove '{path.split('.')[-1]}'; 'all-linear' excludes it")
    added_rows = getattr(model, ADDED_ROWS_ATTRIBUTE, ())
    if added_rows:
        config.trainable_token_indices = _trainable_rows(name, model, config, list(added_rows))
    # A seed of its own: the weights must not depend on how many random numbers were drawn before.
    with torch.random.fork_rng(), warnings.catch_warnings(), experts_as_parameters(model):
        # peft asks transformers for a name that transformers has deprecated
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")  # see `save.merge_adapter`
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False")  # peft sets it to what it must be
        torch.manual_seed(seeding.derive_seed(seed, name))
        try:
            peft_model: PreTrainedModel = get_peft_model(model, config)
        except (ValueError, TypeError) as error:
            names = json.dumps(linear_layers.adaptable_names(model))
            hint = f"set {where} to {names}" if adapts_all else f"name some of {names}, or use 'all-linear'"
            raise HarnessError(where, str(error).splitlines()[0], hint) from error
    if added_rows:  # else peft compares with the published vocabulary and writes the whole embeddings to checkpoints
        for adapter_config in peft_model.peft_config.values():
            adapter_config.base_model_name_or_path = ""
    return peft_model


def add_linear_lora(
    name: str,
    model: PreTrainedModel,
    *,
    rank: int,
    alpha: float,
    dropout: float,
    target: str | list[str],
    seed: int,
) -> PreTrainedModel:
    """Add a plain LoRA adapter to linear layers; the model still computes the same.

    Args:
        name: the mitigation that adds it.
        model: the model without an adapter.
        rank: rank of the adapter.
        alpha: the adapter's output is scaled by alpha / rank.
        dropout: fraction of an adapter's inputs set to zero in training.
        target: peft's `target_modules`.
        seed: the seed that `Mitigation.prepare_model` received.

    Raises:
        HarnessError: see `add_adapter`, or a target is not a linear layer.
    """
    from peft import LoraConfig

    from harness_mitigations.linear_layers import require_linear_adapters

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=target,
    )
    peft_model = add_adapter(name, model, config, seed=seed)
    require_linear_adapters(f"mitigations.{name}", peft_model)
    return peft_model


def _trainable_rows(name: str, model: PreTrainedModel, config: Any, rows: list[int]) -> dict[str, list[int]]:
    """Return peft's `trainable_token_indices`: the new rows of the embedding, and of an output head of its own.

    Raises:
        HarnessError: the adapter cannot hold the new rows.
    """
    from harness_mitigations import linear_layers

    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    paths = {id(module): path for path, module in model.named_modules()}
    path = paths[id(embedding)]
    what = ""
    if not hasattr(config, "trainable_token_indices") or name != "lora":
        what = f"'{name}' cannot train the rows of added tokens"
    elif config.target_modules != "all-linear" and linear_layers.is_target(path, config.target_modules):
        what = f"an adapter on '{path.split('.')[-1]}' cannot train the rows of added tokens"
    elif getattr(head, "bias", None) is not None:
        what = f"the output head of {type(model).__name__} has a bias, which 'lora' does not train for added tokens"
    if what:
        hint = "remove model.add_tokens, add_special_tokens and pad_token, or train without this adapter"
        raise HarnessError(f"mitigations.{name}", what, hint)
    is_tied = head is None or head.weight is embedding.weight
    return {path: rows} if is_tied else {path: rows, paths[id(head)]: rows}
