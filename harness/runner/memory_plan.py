"""The memory and the time that a run is estimated to need, by kind, and the keys with which it would fit on a device.

    weights       frozen ones as loaded, quantized ones with their scales; trained ones in float32, and under autocast
                  their 16-bit copies
    gradients     4 bytes a trained weight, or those of `train.weights`
    optimizer     `Optimizer.bytes_per_weight` for each trained weight
    activations   bytes a token, measured on the meta device, times the tokens of a step's passes that are alive at
                  once; and the dequantized experts of a layer
    logits        of one chunk, with softmax and gradient
    mitigations   `Mitigation.held_bytes`

The peak is not the sum: with one pass a step, gradients exist after the activations that they were computed from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.data.mixing import batch_order
from harness.data.mixing.packing import PackedSequences
from harness.model import accelerator
from harness.model.matrix_speed import matrix_operations_per_second
from harness.model.memory_limits import USABLE_SHARE
from harness.registry import Registry
from harness.runner.device_table import Device, find_device
from harness.runner.prepare import PreparedRun
from harness.runner.weight_counts import WeightCounts, count_weights
from harness.spec import plan as plan_module
from harness.spec.sharded_training import sharding_obstacles
from harness.training.memory_kinds import (
    MemoryEstimate,
    fitting_settings,
    logit_bytes,
    with_offloaded_shards,
    with_shards,
)
from harness.training.step_log import row_lengths
from harness.types import StageDataset

CONTEXT_BYTES = 600 * 2**20
"""What the driver and the libraries of CUDA take."""

UTILIZATION = 0.35
"""Share of a device's peak at which training is assumed to compute."""

CPU_UTILIZATION = 0.6
"""The same for a CPU, whose rate is measured. docs/performance.md has 0.54 for LoRA and 0.70 for all weights."""


@dataclass(frozen=True)
class StageMemory:
    """The memory of a stage, and the settings that it has on the device."""

    name: str
    settings: Mapping[str, Any]
    estimate: MemoryEstimate


def estimate_memory(
    prepared: PreparedRun, registry: Registry, device_name: str | None = None, processes: int = 1
) -> dict[str, Any] | None:
    """Estimate the memory of a run on this machine, or on each of several named devices.

    Args:
        prepared: The prepared run.
        registry: Creates mitigations and optimizers.
        device_name: See `DEVICES`; None: this machine.
        processes: Number of processes, with a device each.

    Returns:
        `device`; `processes`; `weights` and `trained` (numbers of weights); of a process: `bytes` of weights, gradients
        and optimizer, `batch_tokens` of the largest batch, and the bytes of its `activations`, also `checkpointed`,
        None if they are not known; `kinds`, see `MemoryEstimate.as_dict`, None likewise; `hours` of training, None on a
        GPU of this machine, and on its CPU in 16 bits. For a named device also `available` bytes, `fits` (None if
        activations are not known), `remedies` (lists of keys with which it would fit), and `note` on its number format.
        None if the model's config is not available.
    """
    counts = count_weights(prepared, registry)
    if counts is None:
        return None
    device = None if device_name is None else find_device(device_name)
    name, size = _device_and_weight_size(prepared.plan.train["precision"], device)
    name = device_name or name
    available = None if device is None else int(USABLE_SHARE * device.gigabytes * 2**30) - CONTEXT_BYTES
    estimator = _RunEstimator(registry, size, available, has_gpu=name != "cpu", processes=processes)
    stages = estimator.estimate(prepared, counts)
    estimate = max((stage.estimate for stage in stages), key=lambda each: each.peak)
    tokens = max(
        _largest_batch(data, {**data.stage.train, **stage.settings}["batch_size"])
        for data, stage in zip(prepared.data.stages, stages, strict=True)
    )
    operations = _training_flops(prepared, counts, stages)
    hours = None
    if device is not None:
        hours = operations / (UTILIZATION * device.teraflops * 1e12) / 3600 / processes
    elif name == "cpu" and size == 4:  # the rate of float32, which all processes share
        hours = operations / (CPU_UTILIZATION * matrix_operations_per_second()) / 3600
    result = {
        "device": name,
        "processes": processes,
        "batch_tokens": tokens,
        "activations": _activation_bytes(counts.activations, tokens, size),
        "checkpointed": _activation_bytes(counts.checkpointed, tokens, size),
        "weights": counts.weights,
        "trained": counts.trained,
        "bytes": estimate.weights + estimate.gradients + estimate.optimizer,
        "kinds": None if counts.activations is None else estimate.as_dict(),
        "hours": hours,
    }
    if device is None or available is None:
        return result
    fits = None if counts.activations is None else estimate.peak <= available
    return {
        **result,
        "available": available,
        "fits": fits,
        "settings": {stage.name: dict(stage.settings) for stage in stages if stage.settings},
        "remedies": [] if fits is not False else list(_remedies(prepared, estimator)),
        "note": None if device.has_bfloat16 else f"{name} has no bfloat16: set train.precision to float16 or float32",
    }


@dataclass(frozen=True)
class _RunEstimator:
    """Estimates the memory of the stages of a run on a device.

    Attributes:
        registry: Creates mitigations and optimizers.
        size: Bytes of a number in the computation.
        available: Bytes of the device, for the settings that a stage leaves to it; None: it is not known. Then
            `"gradient_checkpointing": "auto"` does not recompute activations, and the batch is as given.
        has_gpu: Whether the device has memory of its own; without it, main memory is not another place.
        processes: Number of processes, with a device each.
    """

    registry: Registry
    size: int
    available: int | None
    has_gpu: bool
    processes: int

    def estimate(self, prepared: PreparedRun, counts: WeightCounts) -> list[StageMemory]:
        """Estimate the memory of each stage.

        Args:
            prepared: The prepared run.
            counts: Its weights.
        """
        mitigations = plan_module.create_mitigations(prepared.plan.mitigations, self.registry)
        rows = prepared.data.tokenized_rows
        extra_tokens = sum(mitigation.extra_tokens(rows) for _, mitigation in mitigations)
        quantization = prepared.location.quantization or (prepared.location.base or prepared.location).quantization
        stages = []
        for stage_data in prepared.data.stages:
            train = stage_data.stage.train
            ((name, options),) = train["optimizer"].items()
            bytes_per_weight = self.registry.create("optimizers", name, options).bytes_per_weight
            estimator = _StageEstimator(
                counts,
                quantization,
                self.size,
                bytes_per_weight,
                stage_data,
                extra_tokens,
                has_gpu=self.has_gpu,
                processes=self.processes,
            )
            settings: dict[str, Any] = {}
            is_left_open = train.get("find_batch_size", False) or train["gradient_checkpointing"] == "auto"
            if is_left_open and self.available is not None and counts.activations is not None:
                settings = fitting_settings(train, estimator.peak, self.available)
            chosen = {**train, **settings}
            is_checkpointed = chosen["gradient_checkpointing"] is True
            estimate = estimator.estimate(chosen["batch_size"], chosen["accumulation"], is_checkpointed)
            stages.append(StageMemory(stage_data.stage.name, settings, estimate))
        return stages


@dataclass(frozen=True)
class _StageEstimator:
    """Estimates the memory of a stage with some settings.

    Attributes:
        counts: The weights of the run.
        quantization: `model.quantization`; None for a model that is not quantized.
        size: Bytes of a number in the computation.
        bytes_per_weight: Of the optimizer.
        stage_data: The stage.
        extra_tokens: See `Mitigation.extra_tokens`, of all mitigations.
        has_gpu: Whether the device has memory of its own.
        processes: Number of processes, with a device each.
    """

    counts: WeightCounts
    quantization: Mapping[str, Any] | None
    size: int
    bytes_per_weight: float
    stage_data: StageDataset
    extra_tokens: int
    has_gpu: bool
    processes: int

    def estimate(self, batch_size: int, accumulation: int, checkpointing: bool) -> MemoryEstimate:
        """Return the estimate for these settings; see `PeakOfSettings`."""
        counts, size = self.counts, self.size
        options = (self.quantization or {}).get("bitsandbytes", {})
        has_experts = options.get("experts", False)
        quantizable = counts.quantizable + (counts.experts if has_experts else 0)
        quantized = quantizable if self.quantization and counts.trained < counts.frozen else 0
        # An adapter on experts needs their gradient too.
        dequantized = counts.largest_experts * size * (2 if counts.trained_experts else 1) if has_experts else 0
        frozen = (counts.frozen - counts.always_float32 - quantized) * size + counts.always_float32 * 4
        train = self.stage_data.stage.train
        narrow = counts.trained - counts.trained_float32 if train.get("weights") == "bfloat16" else 0
        copies = (counts.trained - narrow) * 2 if size == 2 else 0  # autocast's, kept for the backward pass
        quantized_bytes = int(quantized * _bytes_of_quantized_weight(self.quantization))
        tokens = _largest_batch(self.stage_data, batch_size)
        is_offloaded = self.has_gpu and checkpointing and train.get("offload_activations", False)
        recomputed = counts.offloaded if is_offloaded else counts.checkpointed
        per_token = recomputed if checkpointing else counts.activations
        layer_inputs = _activation_bytes(counts.layer_inputs, tokens + self.extra_tokens, size) or 0
        estimate = MemoryEstimate(
            weights=frozen + quantized_bytes + counts.trained * 4 - 2 * narrow + copies,
            gradients=counts.trained * 4 - 2 * narrow,
            optimizer=int(counts.trained * self.bytes_per_weight),
            activations=(_activation_bytes(per_token, tokens + self.extra_tokens, size) or 0) + dequantized,
            logits=logit_bytes(tokens, counts.vocabulary),
            mitigations=sum((counts.held_16 if size == 2 else counts.held_32).values()),
            head_gradient=counts.trained_head * 4,
            accumulates=accumulation > 1,
            main_memory=layer_inputs if is_offloaded else 0,
        )
        gathered = counts.gathered / (counts.trained + counts.frozen)
        if self.has_gpu and train.get("offload_shards", False):
            return with_offloaded_shards(estimate, gathered)
        if self.processes > 1 and train["sharding"] is not None:
            return with_shards(estimate, gathered, self.processes)
        return estimate

    def peak(self, batch_size: int, accumulation: int, checkpointing: bool) -> int:
        """Return the peak for these settings."""
        return self.estimate(batch_size, accumulation, checkpointing).peak


def _activation_bytes(per_token: int | None, tokens: int, size: int) -> int | None:
    """Return the bytes of activations; 16-bit computation stores half as much of a float32 model's, about."""
    return None if per_token is None else tokens * per_token * size // 4


def _bytes_of_quantized_weight(quantization: Mapping[str, Any] | None) -> float:
    """Return the bytes of a weight with its scales: blocks of 64 weights in 4 bits, of 256 scales if double."""
    options = (quantization or {}).get("bitsandbytes", {"bits": 8})
    if options["bits"] == 8:
        return 1.0
    return 0.5 + (1 / 64 + 4 / (64 * 256) if options["double"] else 4 / 64)


def _training_flops(prepared: PreparedRun, counts: WeightCounts, stages: Sequence[StageMemory]) -> float:
    """Return the operations of the matrix products of all stages: 2 a weight and token forward, and twice that back.

    With an adapter the gradients of the frozen weights are not computed; checkpointing computes forward twice.
    """
    backward = 4 if counts.trained > 0.5 * counts.weights else 2
    total = 0.0
    for stage_data, stage in zip(prepared.data.stages, stages, strict=True):
        lengths = PackedSequences.from_sequences(stage_data.order).sum_sizes(row_lengths(stage_data.rows))
        settings = {**stage_data.stage.train, **stage.settings}
        passes = 2 + backward + (2 if settings["gradient_checkpointing"] is True else 0)
        total += float(lengths.sum()) * counts.computed * passes
    return total


def _remedies(prepared: PreparedRun, estimator: _RunEstimator) -> Iterator[list[str]]:
    """Yield lists of keys to set with which the run would fit, from the smallest change to the largest."""
    train, registry = prepared.plan.train, estimator.registry
    smaller = _with_batch_of_one(train)
    has_adapter = any(m.adds_adapter for _, m in plan_module.create_mitigations(prepared.plan.mitigations, registry))
    checkpointing = {} if train["gradient_checkpointing"] is True else {"gradient_checkpointing": True}
    lora: dict[str, Any] = {} if has_adapter else {"mitigations.lora": {}}
    whole = count_weights(prepared, registry)
    experts = {"experts": True} if whole is not None and whole.experts else {}
    quantization: dict[str, Any] = {"model.quantization": {"bitsandbytes": experts}}
    has_obstacle = any(any(sharding_obstacles(prepared.plan, stage, registry)) for stage in prepared.plan.stages)
    sharding = {} if estimator.processes == 1 or train["sharding"] or has_obstacle else {"sharding": "fsdp2"}
    changes: list[tuple[dict[str, Any], bool, bool]] = [
        (smaller, False, False),
        (checkpointing, False, False),
        ({**smaller, **checkpointing}, False, False),
        ({**checkpointing, **sharding}, False, False),
        ({**smaller, **checkpointing, **sharding}, False, False),
        ({**smaller, **checkpointing}, bool(lora), False),
        ({**smaller, **checkpointing}, bool(lora), not prepared.plan.model.get("quantization")),
    ]
    available, seen = estimator.available or 0, list[list[str]]()
    for settings, adds_lora, quantizes in changes:
        keys = [f"train.{key}={_json(value)}" for key, value in settings.items()]
        keys += [f"{key}={_json(value)}" for key, value in (lora if adds_lora else {}).items()]
        keys += [f"{key}={_json(value)}" for key, value in (quantization if quantizes else {}).items()]
        if not keys or keys in seen:
            continue
        seen.append(keys)
        options = {"bits": 4, "type": "nf4", "double": True, **experts} if quantizes else None
        changed = _changed(prepared, registry, settings, adds_lora=adds_lora, bitsandbytes=options)
        counts = count_weights(changed, registry)
        if (
            counts is not None
            and counts.activations is not None
            and all(stage.estimate.peak <= available for stage in estimator.estimate(changed, counts))
        ):
            yield keys
            return


def _with_batch_of_one(train: Mapping[str, Any]) -> dict[str, Any]:
    if train["batch_size"] == 1:
        return {}
    return {"batch_size": 1, "accumulation": train["batch_size"] * train["accumulation"]}


def _changed(
    prepared: PreparedRun,
    registry: Registry,
    settings: Mapping[str, Any],
    *,
    adds_lora: bool,
    bitsandbytes: Mapping[str, Any] | None,
) -> PreparedRun:
    """Return the prepared run with other settings, with LoRA, or with weights that bitsandbytes quantizes."""
    from harness.spec.component_options import fill_component_options

    plan, location = prepared.plan, prepared.location
    if adds_lora:
        lora = fill_component_options(registry, "mitigations", "lora", {})
        plan = replace(plan, mitigations={**plan.mitigations, "lora": lora})
    if bitsandbytes:
        location = replace(location, quantization={"bitsandbytes": bitsandbytes})
    stages = tuple(
        replace(data, stage=replace(data.stage, train={**data.stage.train, **settings}))
        for data in prepared.data.stages
    )
    return replace(prepared, plan=plan, location=location, data=replace(prepared.data, stages=stages))


def _json(value: Any) -> str:
    import json

    return json.dumps(value, separators=(",", ":"))


def _largest_batch(stage_data: StageDataset, batch_size: int) -> int:
    lengths = PackedSequences.from_sequences(stage_data.order).sum_sizes(row_lengths(stage_data.rows))
    return batch_order.largest_batch_tokens(lengths, batch_size, is_padded=stage_data.is_padded) if len(lengths) else 0


def _device_and_weight_size(precision: str, device: Device | None) -> tuple[str, int]:
    """Return the device of a run, and the bytes of a frozen weight. Without a GPU `auto` needs no torch to be known."""
    if device is not None:
        is_narrow = precision in ("bfloat16", "float16") or (precision == "auto" and device.has_bfloat16)
        return "", 2 if is_narrow else 4
    if precision in ("auto", "float32") and not accelerator.may_have_cuda():
        return "cpu", 4
    from harness.model import device as device_module

    selected = device_module.select_device()
    return str(selected), device_module.resolve_dtype(precision, selected).itemsize
