"""What the mitigations that put an adapter on the model have in common."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness import seeding
from harness.errors import HarnessError
from harness.interfaces.mitigation import Mitigation

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER_PRIORITY = -10
"""Adapters come first: others look at the weights that can move."""

ADAPTER_MITIGATIONS = ("lora", "orthogonal_lora", "osf", "oft")


def require_single_adapter(name: str, others: Mapping[str, Mitigation]) -> None:
    """Raise HarnessError when another mitigation adds an adapter too."""
    second = [other for other in others if other in ADAPTER_MITIGATIONS and other != name]
    if second:
        raise HarnessError(
            f"mitigations.{name}",
            f"'{name}' and '{second[0]}' each put an adapter on the same layers",
            "keep one of them",
        )


def to_target_modules(target: str | Sequence[str]) -> str | list[str]:
    """peft's `target_modules`: to it a string that is not "all-linear" is a regular expression; here it is a name."""
    return target if target == "all-linear" else [target] if isinstance(target, str) else list(target)


def add_adapter(name: str, model: PreTrainedModel, config: Any) -> PreTrainedModel:
    """The model within the adapter of a peft config, whose first weights depend on the seed alone.

    name: of the mitigation. Adapter weights are float32 also where the base is bfloat16.
    Raises HarnessError when the model has an adapter already, or no module of the names in `config.target_modules`.
    """
    import torch
    from peft import PeftModel, get_peft_model

    if isinstance(model, PeftModel):
        raise HarnessError(
            f"mitigations.{name}",
            "the model already carries an adapter",
            "take out one of the mitigations that add one, or merge the adapter of model.path into its base first",
        )
    if "lm_head" in config.target_modules:
        raise HarnessError(
            f"mitigations.{name}.target",
            "the head cannot be adapted",
            "take 'lm_head' out; 'all-linear' leaves it out",
        )
    # Not on how many random numbers were drawn before.
    with torch.random.fork_rng(), warnings.catch_warnings():
        # peft asks transformers for a name that transformers has deprecated
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        torch.manual_seed(seeding.derive_seed(torch.initial_seed(), name))
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            raise HarnessError(
                f"mitigations.{name}.target", str(error), "name modules of this model, or use 'all-linear'"
            ) from error
