"""Mitigation `freeze`: weights that are not trained cannot change. Usual: the lowest layers and the embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar

from harness import Component
from harness.errors import HarnessError
from harness.interfaces.mitigation import Mitigation
from harness_mitigations.adapter_common import ADAPTER_MITIGATIONS

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

COMPONENTS: dict[str, Component] = {
    "freeze": Component(
        summary="Excludes the embeddings, the lowest layers or named weights from training.",
        factory="harness_mitigations.freeze:Freeze",
        options={
            "embeddings": {
                "type": "boolean",
                "default": True,
                "description": "Freeze the input embeddings; where the output head shares their weights, the head too.",
            },
            "layers": {
                "type": "integer",
                "minimum": 0,
                "default": 0,
                "description": "Number of layers to freeze, from the lowest.",
            },
            "patterns": {
                "type": "array",
                "items": {"type": "string"},
                "default": [],
                "description": 'Shell patterns of full names of weights, e.g. "*.mlp.*"; each must match one.',
            },
        },
    ),
}


def first_layers(model: PreTrainedModel, layer_count: int) -> Iterator[nn.Parameter]:
    """Yield the weights of the model's first `layer_count` layers.

    Raises:
        HarnessError: the model has fewer layers, or its list of layers was not found.
    """
    from harness.model.decoder_layers import find_decoder_layers

    available = model.config.get_text_config().num_hidden_layers
    if layer_count > available:
        what = f"the model has {available} layers, not {layer_count}"
        raise HarnessError("mitigations.freeze.layers", what, f"set it to {available} or less")
    layers = find_decoder_layers(model)
    if not layers:
        raise HarnessError(
            "mitigations.freeze.layers",
            f"the list of layers of a {model.config.model_type} model was not found",
            "set it to 0 and name the weights in mitigations.freeze.patterns",
        )
    for layer in layers[:layer_count]:
        yield from layer.parameters()


def weights_matching(model: PreTrainedModel, pattern: str) -> list[nn.Parameter]:
    """Return the weights whose full names match a shell pattern.

    Raises:
        HarnessError: no name matches.
    """
    weights = [weight for name, weight in model.named_parameters() if fnmatchcase(name, pattern)]
    if not weights:
        examples = ", ".join(name for name, _ in list(model.named_parameters())[:2])
        raise HarnessError(
            "mitigations.freeze.patterns",
            f"no weight's name matches '{pattern}'",
            f"patterns match full names, such as {examples}; '*' matches anything",
        )
    return weights


class Freeze(Mitigation):
    """Exclude weights from training.

    Args:
        embeddings: whether to freeze the input embeddings, and with tied weights the output head.
        layers: number of layers to freeze, from the lowest.
        patterns: shell patterns of full names of weights.
    """

    works_on_shards: ClassVar[bool] = True

    def __init__(self, embeddings: bool, layers: int, patterns: Sequence[str]) -> None:
        self.embeddings, self.layers, self.patterns = embeddings, layers, tuple(patterns)

    def check_compatible(self, others: Mapping[str, Mitigation]) -> None:
        """Reject an adapter: all other weights are frozen with it anyway."""
        adapter = next((name for name in others if name in ADAPTER_MITIGATIONS), None)
        if adapter:
            raise HarnessError(
                "mitigations.freeze",
                f"with '{adapter}' only the adapter is trained, so there is nothing to freeze",
                f"remove freeze; mitigations.{adapter}.target chooses the layers that are adapted",
            )

    def prepare_model(self, model: PreTrainedModel, *, seed: int) -> PreTrainedModel:
        """Freeze the weights.

        Raises:
            HarnessError: nothing matches, or no weight is left to train.
        """
        weights: list[nn.Parameter] = []
        if self.embeddings:
            weights += model.get_input_embeddings().parameters()
        if self.layers:
            weights += first_layers(model, self.layers)
        for pattern in self.patterns:
            weights += weights_matching(model, pattern)
        if not weights:
            hint = "set embeddings, layers or patterns, or remove freeze"
            raise HarnessError("mitigations.freeze", "it names nothing to freeze", hint)
        for weight in weights:
            weight.requires_grad_(False)
        if not any(weight.requires_grad for weight in model.parameters()):
            raise HarnessError("mitigations.freeze", "it leaves no weight to train", "freeze fewer layers")
        return model
