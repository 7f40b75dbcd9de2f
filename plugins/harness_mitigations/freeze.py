"""Freezing: weights that cannot move cannot forget. The lowest layers and the embeddings are the usual ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from harness.errors import HarnessError
from harness.interfaces.mitigation import Mitigation
from harness_mitigations.adapter_common import ADAPTER_MITIGATIONS

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def first_layers(model: PreTrainedModel, layer_count: int) -> Iterator[nn.Parameter]:
    """The weights of the model's first `layer_count` layers. Raises HarnessError when it has fewer, or none found."""
    from torch import nn

    count = model.config.get_text_config().num_hidden_layers
    if layer_count > count:
        raise HarnessError("mitigations.freeze.layers", f"the model has {count} layers, not {layer_count}", "lower it")
    stacks = [part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == count]
    if not stacks:
        kind = model.config.model_type
        raise HarnessError(
            "mitigations.freeze.layers",
            f"where a {kind} model keeps its layers is not known",
            "set it to 0 and name the weights in mitigations.freeze.patterns",
        )
    for layer in stacks[0][:layer_count]:
        yield from layer.parameters()


def weights_matching(model: PreTrainedModel, pattern: str) -> list[nn.Parameter]:
    """The weights whose names a shell pattern matches. Raises HarnessError when there is none."""
    found = [weight for name, weight in model.named_parameters() if fnmatchcase(name, pattern)]
    if not found:
        some = ", ".join(name for name, _ in list(model.named_parameters())[:2])
        raise HarnessError(
            "mitigations.freeze.patterns",
            f"no weight's name matches '{pattern}'",
            f"patterns match whole names, such as {some}; '*' stands for anything",
        )
    return found


class Freeze(Mitigation):
    """Keep weights out of training. embeddings: those of the input, and with tied weights the head. layers: how many of
    the lowest. patterns: shell patterns of whole names."""

    def __init__(self, embeddings: bool, layers: int, patterns: Sequence[str]) -> None:
        self.embeddings, self.layers, self.patterns = embeddings, layers, tuple(patterns)

    def check_compatible(self, others: Mapping[str, Mitigation]) -> None:
        """Refuse an adapter, beside which all other weights are frozen anyway."""
        adapter = next((name for name in others if name in ADAPTER_MITIGATIONS), None)
        if adapter:
            raise HarnessError(
                "mitigations.freeze",
                f"with '{adapter}' no weight but the adapter's moves, so there is nothing to freeze",
                f"take freeze out; mitigations.{adapter}.target says which layers are adapted",
            )

    def prepare_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model with those weights frozen. Raises HarnessError when nothing matches, or none is left to train."""
        found: list[nn.Parameter] = []
        if self.embeddings:
            found += model.get_input_embeddings().parameters()
        if self.layers:
            found += first_layers(model, self.layers)
        for pattern in self.patterns:
            found += weights_matching(model, pattern)
        if not found:
            raise HarnessError(
                "mitigations.freeze", "it names nothing to freeze", "set embeddings, layers or patterns, or take it out"
            )
        for weight in found:
            weight.requires_grad_(False)
        if not any(weight.requires_grad for weight in model.parameters()):
            raise HarnessError("mitigations.freeze", "it leaves no weight to train", "freeze fewer layers")
        return model
