"""Count the weights of a model, and how many of them the mitigations train, without reading a weight.

The model is built from its config on the meta device, which needs torch. The counts depend on the model's files, the
mitigations and the code only, so they are cached: the second `harness plan` imports no torch.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.data.tokenization.fingerprints import NotFingerprintable, module_digests
from harness.registry import Registry
from harness.runner.prepare import PreparedRun
from harness.spec import plan
from harness.utils import cache_dir
from harness.utils.atomic_write import atomic_write
from harness.utils.json_depth import load_json

COUNTED_MODULES = (
    "harness.model.load",
    "harness.model.precision",
    "harness.model.quantized_experts",
    "harness.runner.weight_counts",
    "harness.training.memory_estimate",
)
LIBRARIES = ("harness-sft", "torch", "transformers", "peft")


@dataclass(frozen=True)
class WeightCounts:
    """Numbers of weights, tied weights counted once.

    Attributes:
        weights: Of the model, without an adapter.
        trained: That the mitigations train.
        frozen: That they do not train; an adapter adds to `trained` only.
        quantizable: Weights of linear layers without the output head, which `model.quantization` quantizes.
        experts: Stacked weights of experts, which `model.quantization.bitsandbytes.experts` quantizes too.
        largest_experts: Those of the layer that has most of them.
        trained_experts: Whether the mitigations add an adapter to experts.
        computed: Weights of the matrix products of a forward pass: all but the input embeddings, and a tied head.
        vocabulary: Rows of the output head.
        trained_float32: Trained norms and embeddings, which are float32 whatever `train.weights` is.
        trained_head: Trained weights of the output head.
        always_float32: Frozen weights that are float32 whatever the precision: norms and embeddings.
        gathered: Weights that a sharded model has on a device at once: of two layers, and all outside of the layers.
        activations: Bytes that a token of a batch takes in float32, see `ActivationSize`; None if it is not known.
        checkpointed: The same with gradient checkpointing.
        offloaded: The same with `train.offload_activations`.
        layer_inputs: Bytes that it has in main memory then.
        held_16: Mitigation -> `Mitigation.held_bytes` with a computation in 16 bits.
        held_32: The same in float32.
    """

    weights: int
    trained: int
    frozen: int
    quantizable: int
    experts: int
    largest_experts: int
    trained_experts: bool
    computed: int
    vocabulary: int
    trained_float32: int
    trained_head: int
    always_float32: int
    gathered: int
    activations: int | None
    checkpointed: int | None
    offloaded: int | None
    layer_inputs: int | None
    held_16: Mapping[str, int]
    held_32: Mapping[str, int]


def count_weights(prepared: PreparedRun, registry: Registry) -> WeightCounts | None:
    """Return the weight counts of a prepared run, from the cache if they are there.

    Returns:
        None if the model's config is not available.
    """
    file = _cache_file(prepared, registry)
    if file is not None:
        with suppress(OSError, ValueError, TypeError):
            return WeightCounts(**load_json(file.read_text()))
    counts = _count_on_meta_device(prepared, registry)
    if file is not None and counts is not None:
        _save(counts, file)
    return counts


def _count_on_meta_device(prepared: PreparedRun, registry: Registry) -> WeightCounts | None:
    from torch import nn

    from harness.model import load, precision, quantized_experts
    from harness.training.memory_estimate import activation_size

    model = load.load_on_meta(prepared.location, prepared.plan.model)  # shapes without weights
    if model is None:
        return None
    weights = load.parameter_count(model)
    embedding: Any = model.get_input_embeddings()
    head = model.get_output_embeddings()
    is_tied = head is not None and head.weight is embedding.weight
    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer is not head]
    quantizable = sum(layer.weight.numel() for layer in linear)
    experts = sum(weight.numel() for weight in quantized_experts.expert_weights(model).values())
    largest_experts = quantized_experts.largest_experts(model)
    mitigations = plan.create_mitigations(prepared.plan.mitigations, registry)
    for _, mitigation in mitigations:
        model = mitigation.prepare_model(model, seed=prepared.plan.seed)
    trained = load.parameter_count(model, trainable=True)
    size = activation_size(model.float())
    return WeightCounts(
        weights=weights,
        trained=trained,
        quantizable=quantizable,
        experts=experts,
        largest_experts=largest_experts,
        trained_experts=quantized_experts.has_adapted_experts(model),
        computed=weights - (0 if is_tied else embedding.weight.numel()),
        vocabulary=int(embedding.weight.shape[0]),
        trained_float32=sum(w.numel() for w in precision.norms_and_embeddings(model) if w.requires_grad),
        trained_head=head.weight.numel() if head is not None and head.weight.requires_grad else 0,
        held_16={name: mitigation.held_bytes(model, itemsize=2) for name, mitigation in mitigations},
        held_32={name: mitigation.held_bytes(model, itemsize=4) for name, mitigation in mitigations},
        frozen=load.parameter_count(model) - trained,
        always_float32=sum(w.numel() for w in precision.norms_and_embeddings(model) if not w.requires_grad),
        gathered=_gathered_weights(model),
        activations=None if size is None else size.stored,
        checkpointed=None if size is None else size.checkpointed,
        offloaded=None if size is None else size.offloaded,
        layer_inputs=None if size is None else size.layer_inputs,
    )


def _gathered_weights(model: Any) -> int:
    from harness.model import load
    from harness.model.decoder_layers import find_decoder_layers

    sizes = [sum(weight.numel() for weight in layer.parameters()) for layer in find_decoder_layers(model)]
    return load.parameter_count(model) - sum(sizes) + sum(sorted(sizes)[-2:])


def _cache_file(prepared: PreparedRun, registry: Registry) -> Path | None:
    """Return the file of a run's counts; None if something that they depend on has no digest."""
    location = prepared.location.base or prepared.location
    if location.kind == "hub" and "@" not in location.digest:
        return None
    mitigations = prepared.plan.mitigations
    factories = [registry.components["mitigations"][name].factory for name in mitigations]
    if not all(isinstance(factory, str) for factory in factories):
        return None
    modules = [*COUNTED_MODULES, *(str(factory).partition(":")[0] for factory in factories)]
    try:
        key = [
            [importlib.metadata.version(name) for name in LIBRARIES],
            location.digest,
            dict(prepared.plan.model),
            {name: dict(options) for name, options in mitigations.items()},
            prepared.plan.seed,
            sorted(set(module_digests(modules, within=("harness.model.", "harness_mitigations")))),
        ]
        text = json.dumps(key)
    except (NotFingerprintable, TypeError, importlib.metadata.PackageNotFoundError):
        return None
    return cache_dir.cache_root() / "weight-counts" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _save(counts: WeightCounts, file: Path) -> None:
    """Write the cache file atomically. A cache that cannot be written costs time and never ends the command."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as draft:
            draft.write_text(json.dumps(asdict(counts)))
