"""How a stage learns: its optimizer, the settings of single weights, and the learning rate of each step."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from harness.errors import HarnessError
from harness.interfaces.guard import identify
from harness.interfaces.mitigation import Mitigation
from harness.interfaces.optimizer import Optimizer
from harness.interfaces.scheduler import Scheduler
from harness.model.decoder_layers import find_decoder_layers
from harness.registry import Registry
from harness.training.rounded_optimizer import RoundedOptimizer
from harness.utils.rounding import round_up_count


@dataclass(frozen=True)
class Learning:
    """The optimizer and the schedule of a stage.

    Attributes:
        optimizer: Builds the torch optimizer.
        scheduler: The factor of the learning rate at each step.
        settings: The stage's `train`.
        steps: The stage's number of steps.
    """

    optimizer: Optimizer
    scheduler: Scheduler
    settings: Mapping[str, Any]
    steps: int

    @classmethod
    def create(cls, settings: Mapping[str, Any], steps: int, registry: Registry) -> Learning:
        """Create the components that the settings name. steps: the stage's number of steps."""
        ((optimizer, optimizer_options),) = settings["optimizer"].items()
        ((scheduler, scheduler_options),) = settings["scheduler"].items()
        return cls(
            registry.create("optimizers", optimizer, optimizer_options),
            registry.create("schedulers", scheduler, scheduler_options),
            settings,
            steps,
        )

    @property
    def factor(self) -> partial[float]:
        """The function of a step's index that returns the factor of the learning rate."""
        given = self.settings.get("warmup_steps")
        warmup = warmup_steps(self.settings["warmup_ratio"], self.steps) if given is None else min(given, self.steps)
        return partial(self.scheduler.factor, steps=self.steps, warmup_steps=warmup)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, of weights without a scale of their own. step: its index, from 0."""
        return float(self.settings["learning_rate"] * self.factor(step))

    def build_optimizer(
        self, model: PreTrainedModel, decayed: Collection[str], mitigations: Mapping[str, Mitigation], *, seed: int = 0
    ) -> torch.optim.Optimizer:
        """Build the optimizer of the trainable weights.

        Args:
            model: The model, whose weights have their own names.
            decayed: Names of the weights to which `weight_decay` applies.
            mitigations: The mitigations by name, in their order.
            seed: Of what the optimizer draws at random.

        Raises:
            HarnessError: Two components set the same key of one weight to different values.
        """
        overrides = weight_settings(model, (self.optimizer, *mitigations.values()))
        for weight, scale in layer_scales(model, self.settings.get("layer_decay", 1.0)).items():
            own = overrides.setdefault(weight, {})
            own["lr_scale"] = own.get("lr_scale", 1.0) * scale
        groups = build_param_groups(model, self.settings, set(decayed), overrides)
        if self.settings.get("weights") == "bfloat16":
            return RoundedOptimizer(lambda own: self.optimizer.build(own, self.settings), groups, seed)
        return self.optimizer.build(groups, self.settings)


def warmup_steps(ratio: float, steps: int) -> int:
    """Return the steps over which the learning rate rises, rounded up; see `Scheduler.factor`."""
    return round_up_count(ratio, steps)


def layer_scales(model: PreTrainedModel, decay: float) -> dict[nn.Parameter, float]:
    """Return the factors of the learning rate for `layer_decay`: decay^n with n layers above a weight's own.

    The output head counts as the highest layer, the embeddings as the lowest; tied weights are embeddings. What is
    outside of the layers otherwise, such as the last norm, counts as the head.

    Args:
        model: The model, with or without an adapter.
        decay: In (0, 1]; 1: no factors.

    Raises:
        HarnessError: The model's list of layers was not found.
    """
    if decay == 1:
        return {}
    layers = find_decoder_layers(model)
    if not layers:
        what = f"the list of layers of a {model.config.model_type} model was not found"
        raise HarnessError("train.layer_decay", what, "set it to 1")
    count = len(layers)
    scales = {weight: decay ** (count - index) for index, layer in enumerate(layers) for weight in layer.parameters()}
    return scales | dict.fromkeys(model.get_input_embeddings().parameters(), decay ** (count + 1))


def weight_settings(
    model: PreTrainedModel, components: Iterable[Optimizer | Mitigation]
) -> dict[nn.Parameter, dict[str, Any]]:
    """Return the settings of single weights, see `Mitigation.param_groups`. Scales of the learning rate multiply.

    Raises:
        HarnessError: Two components set the same key of one weight to different values.
    """
    names = {weight: name for name, weight in model.named_parameters()}
    result: dict[nn.Parameter, dict[str, Any]] = {}
    for component in components:
        for group in component.param_groups(model):
            for weight in group["params"]:
                if weight not in names:
                    hint = "return parameters of the model itself, e.g. of model.named_parameters()"
                    raise HarnessError(identify(component), "param_groups names a weight that the model lacks", hint)
                known = result.setdefault(weight, {})
                for key, value in group.items():
                    if key == "lr_scale":
                        known[key] = known.get(key, 1.0) * value
                    elif key != "params" and known.setdefault(key, value) != value:
                        what = f"sets {key} of {names[weight]} to {value!r}, but another component to {known[key]!r}"
                        raise HarnessError(identify(component), what, "use one of the two components")
    return result


def build_param_groups(
    model: PreTrainedModel,
    settings: Mapping[str, Any],
    decayed: Collection[str],
    overrides: Mapping[nn.Parameter, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Return groups of trainable weights with equal settings.

    The first two are the weights without settings of their own, with and without weight decay.

    Args:
        model: The model.
        settings: The stage's `train`.
        decayed: Names of the weights to which `weight_decay` applies.
        overrides: Weight -> its own settings; `lr_scale` is a factor of the learning rate.
    """
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": settings["weight_decay"], "lr": settings["learning_rate"]},
        {"params": [], "weight_decay": 0.0, "lr": settings["learning_rate"]},
    ]
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        common = groups[0 if name in decayed else 1]
        own = dict(overrides.get(weight, {}))
        if not own:
            common["params"].append(weight)
            continue
        scaled = {"lr": common["lr"] * own.pop("lr_scale", 1.0)}
        wanted = {"weight_decay": common["weight_decay"], **own, **scaled}
        for group in groups[2:]:
            if {key: value for key, value in group.items() if key != "params"} == wanted:
                group["params"].append(weight)
                break
        else:
            groups.append({"params": [weight], **wanted})
    return groups
