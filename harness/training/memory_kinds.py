"""The memory of a training step by kind, and the settings with which a stage fits into memory. Imports no torch.

`harness plan` and training itself use both: one from the config of a model, the other from the loaded one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from harness.model.memory_limits import MAX_LOGIT_BYTES


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that training takes, by kind.

    Attributes:
        weights: Frozen and trained weights, and the 16-bit copies that autocast keeps of trained ones.
        gradients: Of all trained weights.
        optimizer: The state of the optimizer.
        activations: What is stored for the backward pass.
        logits: Those of one chunk, with softmax and gradient.
        mitigations: What the mitigations hold.
        head_gradient: Of the output head, which exists before the backward pass of the layers; also counted
            in `gradients`.
        accumulates: Whether gradients of an earlier micro-batch exist during a forward pass.
        whole_weights: The weights before and after the stage, if a step has fewer of them on the device.
        main_memory: Bytes in main memory instead of the device, of all processes; not in the peak.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    mitigations: int
    head_gradient: int = 0
    accumulates: bool = False
    whole_weights: int = 0
    main_memory: int = 0

    @property
    def peak(self) -> int:
        """The largest memory of a step.

        With one pass a step, gradients replace the activations that they are computed from. The output head has its
        gradient before; if it shares its weight with the embeddings, theirs is added at the end.
        """
        forward = self.activations + self.logits + (self.gradients if self.accumulates else 0)
        step = self.weights + self.optimizer + self.mitigations + self.head_gradient + max(forward, self.gradients)
        return max(step, self.whole_weights)

    def as_dict(self) -> dict[str, int]:
        """Return the bytes by kind, and `peak`."""
        hidden = ("accumulates", "whole_weights")
        return {**{kind: size for kind, size in asdict(self).items() if kind not in hidden}, "peak": self.peak}


def with_shards(estimate: MemoryEstimate, gathered: float, processes: int) -> MemoryEstimate:
    """Return the estimate of one process with weights divided among several: `train.sharding`.

    Args:
        estimate: The estimate with whole weights, gradients and optimizer states.
        gathered: See `with_offloaded_shards`.
        processes: The number of processes.
    """
    share = min(1.0, 1 / processes + gathered)
    return replace(
        estimate,
        weights=int(share * estimate.weights),
        gradients=int(share * estimate.gradients),
        optimizer=estimate.optimizer // processes,
        whole_weights=estimate.weights,
    )


def with_offloaded_shards(estimate: MemoryEstimate, gathered: float) -> MemoryEstimate:
    """Return the estimate with weights, gradients and optimizer states in main memory: `train.offload_shards`.

    Args:
        estimate: The estimate with all of them on the device.
        gathered: Fraction of the weights on the device at once: two layers, embeddings, output head and last norm.
    """
    return replace(
        estimate,
        weights=int(gathered * estimate.weights),
        gradients=int(gathered * estimate.gradients),
        optimizer=0,
        accumulates=False,
        whole_weights=estimate.weights,
        main_memory=estimate.main_memory + estimate.weights + estimate.gradients + estimate.optimizer,
    )


def logit_bytes(tokens: int, vocabulary: int) -> int:
    """Return the bytes of the logits of a chunk, with softmax and gradient. tokens: those of the largest batch."""
    return 3 * min(MAX_LOGIT_BYTES, tokens * vocabulary * 4)


PeakOfSettings = Callable[[int, int, bool], int]
"""Takes the rows of a batch, the accumulation, and whether activations are recomputed; returns the peak in bytes."""


def fitting_settings(train: Mapping[str, Any], peak: PeakOfSettings, available: float) -> dict[str, Any]:
    """Return the settings of a stage on a device, where `train` leaves them to its memory.

    With `find_batch_size` the batch is the largest divisor of the rows of a step that fits, or 1. `"auto"` recomputes
    activations only if the stage does not fit otherwise.

    Args:
        train: The stage's `train`.
        peak: Returns the estimated peak for settings.
        available: Bytes that the stage may take.

    Returns:
        `batch_size`, `accumulation` and `gradient_checkpointing`.
    """
    batch_size, accumulation = train["batch_size"], train["accumulation"]
    checkpointing = train["gradient_checkpointing"]
    if train.get("find_batch_size", False):
        rows = batch_size * accumulation
        divisors = [size for size in range(rows, 0, -1) if rows % size == 0]
        fitting = (size for size in divisors if peak(size, rows // size, checkpointing is True) <= available)
        batch_size = next(fitting, 1)
        accumulation = rows // batch_size
    if checkpointing == "auto":
        checkpointing = peak(batch_size, accumulation, False) > available
    return {"batch_size": batch_size, "accumulation": accumulation, "gradient_checkpointing": checkpointing}
