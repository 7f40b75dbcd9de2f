"""Estimate, before a stage is trained, how much memory it needs, and choose settings with which that is available.

The kinds of memory are those of `memory_kinds.MemoryEstimate`. The activations of a token are measured on the model.
The state of mitigations is in memory already; their computation comes in addition.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, distributed

from harness.data.mixing.batch_order import largest_batch_tokens
from harness.data.mixing.packing import PackedSequences
from harness.distributed.launch import get_local_world_size
from harness.model import quantized_experts
from harness.model.device import is_out_of_memory
from harness.model.memory_limits import USABLE_SHARE
from harness.training.memory import storage_id
from harness.training.memory_kinds import MemoryEstimate, fitting_settings, logit_bytes
from harness.training.model_state import unwrap_peft_model
from harness.training.step_log import row_lengths
from harness.types import StageDataset
from harness.utils import allocator
from harness.utils.formatting import format_count

PROBE_TOKENS = (2, 6)
"""Tokens of the two rows whose activations are compared. They are few: some attentions store T² numbers."""

BYTES_OF_GRADIENT, BYTES_OF_AUTOCAST_COPY = 4, 2
"""Bytes for each trained weight: float32, and the 16-bit copy of autocast, kept for the backward pass."""

COPIED_INPUTS = 5
"""Inputs of layers that are on the device while they are copied to main memory, see TRL's `max_fwd_stash_size`."""

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class ActivationSize:
    """Bytes that one token of a batch takes until the backward pass.

    Attributes:
        stored: What all layers store.
        checkpointed: With gradient checkpointing: the input of each layer, and what one layer stores.
        offloaded: With `offload_activations` as well: what one layer stores, and the inputs that are being copied.
        layer_inputs: What is in main memory then.
    """

    stored: int
    checkpointed: int
    offloaded: int
    layer_inputs: int


def with_fitting_settings(
    model: Any, data: StageDataset, compute_dtype: torch.dtype | None, bytes_per_weight: float
) -> StageDataset:
    """Return the stage with the settings that it leaves to the memory: see `fitting_settings`.

    With `find_batch_size`, `batch_size` times `accumulation` stays equal: each step has the same rows and, up to
    rounding, the same gradient. Several processes take the smallest batch of them. A warning says what was chosen, and
    what cannot be decided.

    Args:
        model: The loaded model, before its trained weights are converted to float32.
        data: The stage.
        compute_dtype: See `autocast_dtype`.
        bytes_per_weight: Of the optimizer, see `Optimizer.bytes_per_weight`.
    """
    train = data.stage.train
    is_auto = train["gradient_checkpointing"] == "auto"
    if not is_auto and not train.get("find_batch_size", False):
        return data
    device = next(model.parameters()).device
    with nullcontext() if compute_dtype is None else torch.autocast(device.type, compute_dtype):
        size = activation_size(model)
    if size is None:
        _warn_of_unknown_activations(data)
        return _with_settings(data, {"gradient_checkpointing": train["gradient_checkpointing"] is True})
    if device.type == "cpu":
        allocator.return_freed_memory()  # which the estimate does not count
    processes = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
    available = available_bytes(device, get_local_world_size() if processes > 1 else 1)
    lengths = PackedSequences.from_sequences(data.order).sum_sizes(row_lengths(data.rows))

    is_offloaded = device.type == "cuda" and train.get("offload_activations", False)
    recomputed = size.offloaded if is_offloaded else size.checkpointed
    dequantized = quantized_experts.dequantized_bytes(model)

    def needed(batch_size: int, accumulation: int, checkpointing: bool) -> int:
        tokens = largest_batch_tokens(lengths, batch_size, is_padded=data.is_padded)
        activations = tokens * (recomputed if checkpointing else size.stored)
        activations += dequantized
        estimate = estimate_stage(
            model,
            tokens,
            activations,
            compute_dtype,
            bytes_per_weight,
            accumulation > 1,
            keeps_16_bits=train.get("weights") == "bfloat16",
        )
        if device.type == "cuda" and processes > 1 and train.get("offload_shards", False):
            estimate = replace(estimate, gradients=0, head_gradient=0, optimizer=0)
        return estimate.peak

    settings = fitting_settings(train, needed, USABLE_SHARE * available)
    if processes > 1:
        settings = _agree(settings, train, device)
    if settings["batch_size"] != train["batch_size"]:
        warnings.warn(
            f"stage '{data.stage.name}': train.find_batch_size chose batch_size {settings['batch_size']} and "
            f"accumulation {settings['accumulation']}",
            stacklevel=3,
        )
    if is_auto and settings["gradient_checkpointing"]:
        is_supported = bool(getattr(unwrap_peft_model(model), "supports_gradient_checkpointing", False))
        _warn_of_little_memory(
            data, needed(settings["batch_size"], settings["accumulation"], False), available, is_supported
        )
        settings["gradient_checkpointing"] = is_supported
    return _with_settings(data, settings)


def _with_settings(data: StageDataset, settings: Mapping[str, Any]) -> StageDataset:
    return replace(data, stage=replace(data.stage, train={**data.stage.train, **settings}))


def _agree(settings: Mapping[str, Any], train: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the settings that fit in all processes."""
    smallest = torch.tensor([settings["batch_size"], int(not settings["gradient_checkpointing"])], device=device)
    distributed.all_reduce(smallest, distributed.ReduceOp.MIN)
    batch_size, is_stored = smallest.tolist()
    accumulation = train["batch_size"] * train["accumulation"] // batch_size
    return {"batch_size": batch_size, "accumulation": accumulation, "gradient_checkpointing": not is_stored}


def _warn_of_unknown_activations(data: StageDataset) -> None:
    train, consequences = data.stage.train, []
    if train.get("find_batch_size", False):
        consequences.append(f"train.batch_size stays {train['batch_size']}")
    if train["gradient_checkpointing"] == "auto":
        consequences.append("train.gradient_checkpointing is off")
    warnings.warn(
        f"stage '{data.stage.name}': the memory of this model's activations cannot be measured, so "
        f"{' and '.join(consequences)}; set it to true or lower train.batch_size if the stage runs out of memory",
        stacklevel=4,
    )


def _warn_of_little_memory(data: StageDataset, needed: int, available: int, is_supported: bool) -> None:
    consequence = (
        "train.gradient_checkpointing is on, which takes about a third more time; a smaller train.batch_size with more "
        "train.accumulation may avoid it"
        if is_supported
        else "this model has no gradient checkpointing; lower train.batch_size and raise train.accumulation"
    )
    warnings.warn(
        f"stage '{data.stage.name}' would need about {format_count(needed, 'B')} more memory, and "
        f"{format_count(available, 'B')} are available: {consequence}",
        stacklevel=4,
    )


def activation_size(model: Any) -> ActivationSize | None:
    """Measure the activations of a token: what autograd stores in a forward pass. It works on the meta device too.

    Returns:
        None if the model cannot compute the probe rows.
    """
    was_training = model.training
    model.train()
    try:
        with torch.random.fork_rng(), torch.enable_grad(), _experts_on_meta_device(model):
            few, more = (_stored_bytes(model, tokens) for tokens in PROBE_TOKENS)
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError, NotImplementedError) as error:
        if is_out_of_memory(error):
            raise
        return None
    finally:
        model.train(was_training)
    stored = (more - few) // (PROBE_TOKENS[1] - PROBE_TOKENS[0])
    config = model.config.get_text_config()
    layers, width = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
    if not (isinstance(layers, int) and isinstance(width, int) and layers > 0):
        return ActivationSize(stored, stored, stored, 0)
    one_layer, one_input = stored // layers, width * 4
    return ActivationSize(
        stored=stored,
        checkpointed=one_layer + layers * one_input,
        offloaded=one_layer + min(layers, COPIED_INPUTS) * one_input,
        layer_inputs=layers * one_input,
    )


def estimate_stage(
    model: Any,
    tokens: int,
    activations: int,
    compute_dtype: torch.dtype | None,
    bytes_per_weight: float,
    accumulates: bool,
    *,
    keeps_16_bits: bool = False,
) -> MemoryEstimate:
    """Estimate what training allocates in addition to the loaded model and the state of mitigations.

    Args:
        model: The model, before its trained weights are converted to float32.
        tokens: Tokens of the largest batch.
        activations: Bytes of its activations.
        compute_dtype: See `autocast_dtype`.
        bytes_per_weight: Of the optimizer.
        accumulates: Whether a step has several micro-batches.
        keeps_16_bits: Whether trained weights keep their dtype, see `rounded_optimizer`.
    """
    weights: list[Tensor] = list(model.parameters())
    trained = [weight for weight in weights if weight.requires_grad]
    narrow = sum(w.numel() for w in trained if w.element_size() == 2) if keeps_16_bits else 0
    upcast = weights if compute_dtype is None else [] if keeps_16_bits else trained
    count = sum(weight.numel() for weight in trained)
    head = model.get_output_embeddings()
    return MemoryEstimate(
        weights=sum((4 - weight.element_size()) * weight.numel() for weight in upcast if weight.element_size() == 2)
        + (0 if compute_dtype is None else BYTES_OF_AUTOCAST_COPY * (count - narrow)),
        gradients=BYTES_OF_GRADIENT * count - 2 * narrow,
        optimizer=int(bytes_per_weight * count),
        activations=activations,
        logits=logit_bytes(tokens, model.config.get_text_config().vocab_size),
        mitigations=0,
        head_gradient=(head.weight.element_size() if keeps_16_bits else BYTES_OF_GRADIENT) * head.weight.numel()
        if head is not None and head.weight.requires_grad
        else 0,
        accumulates=accumulates,
    )


def available_bytes(device: torch.device, processes: int = 1) -> int:
    """Return the free memory of a CUDA device, or this process's part of what the machine or container has left.

    Args:
        device: The device.
        processes: Processes of this run on the machine, which share the memory of a CPU.
    """
    if device.type == "cuda":
        reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + reusable
    available = int(psutil.virtual_memory().available)
    limit = _read_number(_CGROUP / "memory.max")
    used = _read_number(_CGROUP / "memory.current")
    if limit is not None and used is not None:
        available = min(available, max(limit - used + _reclaimable_bytes(), 0))
    return available // processes


def _reclaimable_bytes() -> int:
    """Return the bytes of a container's page cache, which count as used and are freed when memory is needed."""
    try:
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    except (OSError, StopIteration, ValueError):
        return 0


def _read_number(path: Path) -> int | None:
    """Return the number in a file; None for a missing file and for `max`, no limit."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _stored_bytes(model: Any, tokens: int) -> int:
    """Return the bytes that autograd stores for the backward pass of one row, without weights."""
    device = next(model.parameters()).device
    weights = {storage_id(weight) for weight in [*model.parameters(), *model.buffers()]}
    mask = torch.ones((1, 1, tokens, tokens), dtype=torch.bool, device=device).tril()
    ids = torch.zeros((1, tokens), dtype=torch.long, device=device)
    with _recording_saved_tensors() as saved:
        output = unwrap_peft_model(model)(input_ids=ids, attention_mask=mask, use_cache=False)
        sizes = {storage_id(tensor): tensor.untyped_storage().nbytes() for tensor in saved}
        del output
    return sum(size for storage, size in sizes.items() if storage not in weights)


@contextmanager
def _experts_on_meta_device(model: Any) -> Iterator[None]:
    """Within the context, stacked experts compute on the meta device too.

    There torch's grouped matrix product takes bfloat16 only. Transformers' own, which stores the same, takes any dtype.
    """
    if next(model.parameters()).device.type != "meta":
        yield
        return
    from transformers.integrations import moe

    name = "_can_use_grouped_mm"  # private to transformers: without it only experts have no estimate
    kernel_check = getattr(moe, name, None)
    setattr(moe, name, lambda *arguments: False)
    try:
        yield
    finally:
        setattr(moe, name, kernel_check)


@contextmanager
def _recording_saved_tensors() -> Iterator[list[Tensor]]:
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved
