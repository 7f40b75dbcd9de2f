"""Mitigation `freeze`: weights that are not trained cannot change. Usual: the lowest layers and the embeddings.

`share` freezes a random part of the weights of every layer, drawn again for each stage (HFT, arXiv:2404.18466). The
draw depends on the seed of the stage alone, so a resumed run repeats it.

`columns` freezes the columns of linear layers that matter most for the rows of `source` (SSU, arXiv:2512.04844). They
are part of trained weights, so their gradient is set to 0 and their values are restored after each step.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar

from harness import Component, seeding
from harness.errors import HarnessError
from harness.interfaces.mitigation import Mitigation
from harness.types import Stage, TokenizedExample
from harness_mitigations.adapter_common import ADAPTER_MITIGATIONS

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
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
            "trainable": {
                "type": "array",
                "items": {"type": "string", "minLength": 1},
                "default": [],
                "description": "Regular expressions: only weights whose full name one matches from its beginning "
                "are trained; each must match one. []: all that the other options do not freeze.",
            },
            "share": {
                "type": "number",
                "minimum": 0,
                "exclusiveMaximum": 1,
                "default": 0.0,
                "description": "Fraction of the weights of each layer, by kind, that is frozen at random, drawn again "
                "for each stage. 0.5: HFT. 0: none.",
            },
            "columns": {
                "type": "number",
                "minimum": 0,
                "exclusiveMaximum": 1,
                "default": 0.0,
                "description": "Fraction of the columns of each linear layer that is frozen: those that matter most "
                "for the rows of `source`, measured once. 0.5: SSU. 0: none.",
            },
            "source": {
                "type": ["string", "null"],
                "format": "source",
                "default": None,
                "description": "For columns: the source on whose rows their importance is measured.",
            },
            "samples": {
                "type": "integer",
                "minimum": 1,
                "default": 128,
                "description": "For columns: number of rows of `source`, chosen by the seed.",
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


def weights_not_matching(model: PreTrainedModel, expressions: Sequence[re.Pattern[str]]) -> list[nn.Parameter]:
    """Return the weights whose full names no regular expression matches from its beginning.

    A weight with several names, such as that of a tied output head, has each of them.

    Raises:
        HarnessError: an expression matches no name.
    """
    named = list(model.named_parameters(remove_duplicate=False))
    matching: set[int] = set()
    for expression in expressions:
        matched = {id(weight) for name, weight in named if expression.match(name)}
        if not matched:
            examples = ", ".join(name for name, _ in named[:2])
            what = f"no weight's name begins with a match of {expression.pattern!r}"
            hint = f"correct it, or remove it; full names are such as {examples}"
            raise HarnessError("mitigations.freeze.trainable", what, hint)
        matching |= matched
    return [weight for weight in model.parameters() if id(weight) not in matching]


def _compile_expression(expression: str) -> re.Pattern[str]:
    try:
        return re.compile(expression)
    except re.error as error:
        what = f"{expression!r} is not a regular expression: {error}"
        raise HarnessError("mitigations.freeze.trainable", what, "correct it") from None


def weights_by_kind(model: PreTrainedModel, excluded: Sequence[nn.Parameter]) -> dict[str, list[list[nn.Parameter]]]:
    """Return the floating-point weights of the layers by kind, and for each kind by layer.

    The kind of a matrix is the part of the layer that has it, e.g. `self_attn` or `mlp`. Norms and biases are of the
    kind `vectors`.

    Args:
        model: a model without an adapter.
        excluded: weights to leave out.

    Raises:
        HarnessError: the model's list of layers was not found.
    """
    from harness.model.decoder_layers import find_decoder_layers

    layers = find_decoder_layers(model)
    if not layers:
        what = f"the list of layers of a {model.config.model_type} model was not found"
        raise HarnessError("mitigations.freeze.share", what, "set it to 0")
    excluded_ids = {id(weight) for weight in excluded}
    kinds: dict[str, list[list[nn.Parameter]]] = {}
    for index, layer in enumerate(layers):
        for name, weight in layer.named_parameters():
            if id(weight) in excluded_ids or not weight.is_floating_point():
                continue
            kind = name.partition(".")[0] if weight.dim() > 1 else "vectors"
            kinds.setdefault(kind, [[] for _ in layers])[index].append(weight)
    return kinds


def draw_share(counts: Sequence[int], share: float, *, seed: int, kind: str) -> list[list[int]]:
    """Draw which weights of one kind are frozen, balanced over the layers.

    Of n weights, a layer freezes floor(share n) or one more. Which layers freeze one more is random, and so many do
    that round(share N) of all N weights are frozen.

    Args:
        counts: n of each layer.
        share: fraction to freeze, in [0, 1).
        seed: the stage's seed.
        kind: the kind of the weights; each has its own random numbers.

    Returns:
        For each layer the indices of its frozen weights, ascending.
    """
    generator = seeding.create_generator(seed, "freeze", kind)
    frozen_counts = [math.floor(share * count) for count in counts]
    more = [index for index, count in enumerate(counts) if frozen_counts[index] < share * count]
    missing = round(share * sum(counts)) - sum(frozen_counts)
    for index in generator.sample(more, min(missing, len(more))):
        frozen_counts[index] += 1
    return [sorted(generator.sample(range(n), frozen)) for n, frozen in zip(counts, frozen_counts, strict=True)]


class Freeze(Mitigation):
    """Exclude weights from training.

    Args:
        embeddings: whether to freeze the input embeddings, and with tied weights the output head.
        layers: number of layers to freeze, from the lowest.
        patterns: shell patterns of full names of weights.
        trainable: regular expressions of the full names of all weights that are trained, from their beginning.
        share: fraction of the weights of each layer to freeze in addition, in [0, 1), drawn for each stage.
        columns: fraction of the columns of each linear layer to freeze in addition, in [0, 1).
        source: for `columns`, the source of the rows that they are to be important for.
        samples: for `columns`, maximum number of these rows.
    """

    priority: ClassVar[int] = -5
    """Before the mitigations that read the trainable weights when a stage begins."""

    def __init__(  # noqa: PLR0913 (one argument for each option)
        self,
        embeddings: bool,
        layers: int,
        patterns: Sequence[str],
        trainable: Sequence[str],
        share: float,
        columns: float,
        source: str | None,
        samples: int,
    ) -> None:
        self.embeddings, self.layers, self.patterns, self.share = embeddings, layers, tuple(patterns), share
        self.trainable = [_compile_expression(expression) for expression in trainable]
        self.columns, self.source, self.samples = columns, source, samples
        self.frozen_columns: dict[str, Tensor] = {}
        self.values_before_step: dict[str, Tensor] = {}
        self.works_on_shards = not columns
        if columns:
            self.penalty_timing = "before_clip"  # so that the norm of the gradient is that of what is trained

    def check_compatible(self, others: Mapping[str, Mitigation]) -> None:
        """Reject an adapter, with which all other weights are frozen anyway, and an anchor with `share`.

        Require a source for `columns`, and `columns` for a source.
        """
        if self.columns and self.source is None:
            hint = "name a source of general rows, or set mitigations.freeze.columns to 0"
            raise HarnessError("mitigations.freeze.source", "columns is given, but no source to measure them on", hint)
        if self.source is not None and not self.columns:
            hint = "set mitigations.freeze.columns, e.g. to 0.5, or remove source"
            raise HarnessError("mitigations.freeze.source", "a source is given, but no column is to be frozen", hint)
        adapter = next((name for name in others if name in ADAPTER_MITIGATIONS), None)
        if adapter:
            raise HarnessError(
                "mitigations.freeze",
                f"with '{adapter}' only the adapter is trained, so there is nothing to freeze",
                f"remove freeze; mitigations.{adapter}.target chooses the layers that are adapted",
            )
        anchored = [
            name for name in ("ewc", "l2sp") if name in others and getattr(others[name], "anchor_at", "") != "stage"
        ]
        if self.share and anchored:
            raise HarnessError(
                "mitigations.freeze.share",
                f"'{anchored[0]}' anchors the weights that the first stage trains, and a later stage trains others",
                f"remove {anchored[0]}, or set share to 0",
            )

    def prepare_model(self, model: PreTrainedModel, *, seed: int) -> PreTrainedModel:
        """Freeze the weights.

        Raises:
            HarnessError: nothing matches, or no weight is left to train.
        """
        weights = self._fixed_weights(model)
        if not weights and not self.share and not self.columns:
            hint = "set embeddings, layers, patterns, trainable, share or columns, or remove freeze"
            raise HarnessError("mitigations.freeze", "it names nothing to freeze", hint)
        for weight in weights:
            weight.requires_grad_(False)
        if not any(weight.requires_grad for weight in model.parameters()):
            raise HarnessError("mitigations.freeze", "it leaves no weight to train", "freeze fewer layers")
        if self.share:
            from harness_mitigations import base_model

            base_model.exclude_from_sharing(model, self._freeze_share(model, seed))
        return model

    def on_stage_start(
        self, stage: Stage, model: PreTrainedModel, rows: Mapping[str, Sequence[TokenizedExample]], *, seed: int
    ) -> None:
        """Draw the weights that this stage does not train, and measure the columns before the first stage.

        In the first stage the draw is that of `prepare_model`.

        Raises:
            HarnessError: `source` has no row.
        """
        if self.columns and not self.frozen_columns:
            self.frozen_columns = self._find_columns(model, rows.get(self.source or "", ()), seed)
        if self.share:
            from harness.model.precision import upcast_trainable

            self._freeze_share(model, seed)
            if stage.train.get("weights") != "bfloat16":
                upcast_trainable(model)

    def held_bytes(self, model: PreTrainedModel, *, itemsize: int) -> int:
        """Return the bytes of the frozen columns, which are copied before each step."""
        if not self.columns:
            return 0
        from harness_mitigations.linear_layers import find_linear_layers

        weights = [layer.weight for layer in find_linear_layers(model).values() if layer.weight.requires_grad]
        count: int = sum(weight.numel() for weight in weights)
        return math.ceil(4 * self.columns * count)

    def add_weight_penalty(self, model: PreTrainedModel) -> torch.Tensor | None:
        """Set the gradient of the frozen columns to 0. There is no penalty to log."""
        for _, weight, dimension, columns in self._trained_weights_with_columns(model):
            if weight.grad is not None:
                weight.grad.index_fill_(dimension, columns, 0.0)
        return None

    def on_before_step(self, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> None:
        """Copy the frozen columns: weight decay would change them."""
        self.values_before_step = {
            name: weight.detach().index_select(dimension, columns)
            for name, weight, dimension, columns in self._trained_weights_with_columns(model)
        }

    def on_step_end(self, model: PreTrainedModel, learning_rate: float) -> None:
        """Restore the frozen columns."""
        for name, weight, dimension, columns in self._trained_weights_with_columns(model):
            if name in self.values_before_step:
                weight.data.index_copy_(dimension, columns, self.values_before_step[name])
        self.values_before_step = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the indices of the frozen columns, by name of the weight."""
        return {"columns": self.frozen_columns}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state."""
        self.frozen_columns = dict(state["columns"])

    def _find_columns(self, model: PreTrainedModel, rows: Sequence[TokenizedExample], seed: int) -> dict[str, Tensor]:
        from harness_mitigations.important_columns import find_important_columns

        if not rows:
            what = f"'{self.source}' has no row to measure the columns on"
            raise HarnessError("mitigations.freeze.source", what, "name a source that has rows to train on")
        generator = seeding.create_generator(seed, "freeze", "columns")
        sample = [rows[index] for index in generator.sample(range(len(rows)), min(self.samples, len(rows)))]
        return find_important_columns(model, sample, self.columns, self._fixed_weights(model))

    def _trained_weights_with_columns(self, model: PreTrainedModel) -> Iterator[tuple[str, nn.Parameter, int, Tensor]]:
        """Yield name, weight, dimension of the inputs and frozen columns of the weights that the stage trains."""
        if not self.frozen_columns:
            return
        from harness_mitigations.important_columns import input_dimension

        for name, columns in self.frozen_columns.items():
            layer: Any = model.get_submodule(name.rpartition(".")[0])
            weight = layer.weight
            if weight.requires_grad:
                yield name, weight, input_dimension(layer), columns.to(weight.device)

    def _fixed_weights(self, model: PreTrainedModel) -> list[nn.Parameter]:
        """Return the weights that are frozen in every stage."""
        weights: list[nn.Parameter] = []
        if self.embeddings:
            weights += model.get_input_embeddings().parameters()
        if self.layers:
            weights += first_layers(model, self.layers)
        for pattern in self.patterns:
            weights += weights_matching(model, pattern)
        if self.trainable:
            weights += weights_not_matching(model, self.trainable)
        return weights

    def _freeze_share(self, model: PreTrainedModel, seed: int) -> list[nn.Parameter]:
        """Freeze the share that the seed draws, and return all weights that it was drawn from."""
        drawn_from = []
        for kind, layers in weights_by_kind(model, self._fixed_weights(model)).items():
            frozen = draw_share([len(layer) for layer in layers], self.share, seed=seed, kind=kind)
            for weights, frozen_indices in zip(layers, frozen, strict=True):
                for index, weight in enumerate(weights):
                    weight.requires_grad_(index not in frozen_indices)
                drawn_from += weights
        return drawn_from
