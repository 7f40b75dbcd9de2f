"""The diagonal of the Fisher information of what can move, by three kinds of labels (Kirkpatrick, arXiv:1612.00796).

F = mean over rows of E[(gradient of the summed log-likelihood of the row's trained tokens)^2]: row by row, since the
square of a batch's mean gradient is another, smaller quantity; on estimators see van de Ven, arXiv:2502.11756.

Where labels are drawn from the model itself the gradients of different rows, and of different tokens, are uncorrelated
and have mean 0, so that the square of a batch's *summed* gradient has the same expectation as the sum of its rows'
squares, and a batch costs one backward pass. With the labels of the data that does not hold, and each row costs one.

The gradient by a weight is squared as soon as it is there and then let go: beside the Fisher itself, 4 bytes a number,
only the largest gradient takes memory. Knows nothing of what the Fisher is used for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness.errors import HarnessError
from harness.training.loss import target_logits, target_tokens
from harness.types import TokenizedExample
from harness_mitigations.adapted_weights import TrainableWeights
from harness_mitigations.base_model import collate_rows

TOP_SHARE = 0.001
"""The share of the weights whose share of the mass is told."""

HISTOGRAM_BINS = 2**15
HISTOGRAM_CHUNK = 2**22
INFINITY_BIN = 0x7F80
"""The leading bits of infinity; those of what is no number lie above."""


def importance_histogram(importances: Iterable[Tensor]) -> Tensor:
    """How many of the numbers, none of them negative, have each leading 16 bits. Returns (2^15,) int64, on the CPU."""
    counts = torch.zeros(HISTOGRAM_BINS, dtype=torch.int64)
    for tensor in importances:
        for some in tensor.float().flatten().split(HISTOGRAM_CHUNK):
            counts += torch.bincount(some.view(torch.int32) >> 16, minlength=HISTOGRAM_BINS).cpu()
    return counts


def bin_centers() -> Tensor:
    """The number in the middle of each bin of a histogram; 0 for that of 0. Returns (2^15,) float64."""
    bits = (torch.arange(HISTOGRAM_BINS, dtype=torch.int32) << 16) + 0x8000
    values = bits.view(torch.float32).double()
    values[0] = 0.0
    return values


def histogram_quantile(counts: Tensor, q: float) -> float:
    """The value that a share of q of the numbers does not exceed, within 0.4 %. counts: see `importance_histogram`."""
    upto = counts.cumsum(0)
    index = int(torch.searchsorted(upto, torch.tensor(q * float(upto[-1])).ceil().long().clamp(min=1)))
    return float(bin_centers()[index])


def histogram_is_finite(counts: Tensor) -> bool:
    """Whether every number is finite."""
    return not bool(counts[INFINITY_BIN:].any())


def importance_stats(counts: Tensor) -> dict[str, float]:
    """The spread in numbers: median, 99.9th percentile and largest over the mean, and the share of the mass that the
    largest 0.1 % of the numbers hold. Empty when the mean is 0."""
    values = bin_centers()
    values[INFINITY_BIN:] = 0.0
    masses = counts * values
    mean = float(masses.sum() / counts.sum())
    if mean == 0:
        return {}
    beyond = int((TOP_SHARE * counts.sum()).ceil())
    above = counts.flip(0).cumsum(0)  # how many numbers lie in the highest bins
    whole = above <= beyond
    held = float(masses.flip(0)[whole].sum())
    partly = int(whole.sum())  # the bin that only some of the largest come from
    if partly < HISTOGRAM_BINS:
        taken = beyond - (int(above[partly - 1]) if partly else 0)
        held += taken * float(values.flip(0)[partly])
    largest = float(values[counts.nonzero()[-1]])
    return {
        "fisher_median": histogram_quantile(counts, 0.5) / mean,
        "fisher_p99.9": histogram_quantile(counts, 0.999) / mean,
        "fisher_largest": largest / mean,
        "fisher_mass_of_top_0.1_percent": held / float(masses.sum()),
    }


Labels = Literal["sampled", "empirical", "exact"]

SPEC_KEY = "mitigations.ewc"

MAX_EXACT_CLASSES = 1024
"""The largest vocabulary that `exact` enumerates: a row costs trained tokens times classes backward passes."""

SAMPLING_CHUNK = 2**22
"""Probabilities that are summed up at once to draw labels: bounds their memory to 8 bytes a number of these."""


def compute_diagonal_fisher(
    model: nn.Module,
    trainable: TrainableWeights,
    rows: Sequence[TokenizedExample],
    *,
    labels: Labels,
    batch_size: int = 8,
    generator: torch.Generator | None = None,
    device: str | None = None,
) -> dict[str, Tensor]:
    """The diagonal Fisher information of what is `trainable`, averaged over rows.

    The model is in evaluation mode meanwhile; squares are summed in float32; prompts and padding take no part; tied
    weights stand once, frozen ones not at all. A layer with an adapter counts by its weight W + s B A.

    rows: each with at least one token that is trained. labels: what the likelihood is of: `sampled`, tokens drawn from
    the model's prediction at each trained position, without bias; `exact`, their expectation, by enumeration of the
    vocabulary; `empirical`, the row's own tokens, which gives the empirical Fisher, another quantity. batch_size: rows
    in one pass where labels are drawn, like with like in length; the others go row by row. generator: on the CPU; draws
    the labels. device: of the result; None: that of each weight.
    Returns name -> float32 tensor of the weight's shape, in nats^2 per squared unit of the weight.
    Raises HarnessError when there is no row, or the vocabulary is too large to enumerate.
    """
    if not rows:
        raise HarnessError(SPEC_KEY, "there is no row to measure the Fisher on", "name a source that has rows")
    ordered = sorted(rows, key=lambda row: len(row.input_ids), reverse=True)
    together = batch_size if labels == "sampled" else 1
    was_training = model.training
    model.eval()
    try:
        with _accumulating_squared_gradients(trainable, device) as (total, weigh):
            for start in range(0, len(ordered), together):
                logits, chosen = _target_logits_and_labels(model, ordered[start : start + together])
                if labels == "exact":
                    _backward_for_every_class(logits, weigh)
                    continue
                likelihoods = logits.detach().softmax(-1)
                if labels == "sampled":
                    chosen = sample_classes(likelihoods, generator)
                logits.backward(_logit_gradients_inplace(likelihoods, chosen))
    finally:
        model.train(was_training)
    for squares in total.values():
        squares.div_(len(rows))
    return total


def sample_classes(probabilities: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One class for each line of likelihoods, of shape (N, V) and each summing to 1, drawn with its probability: (N,).

    The random numbers come from the CPU, so that a seed draws the same classes on any device, up to rounding.
    """
    uniform = torch.rand(len(probabilities), 1, generator=generator, dtype=torch.float64).to(probabilities.device)
    lines = max(1, SAMPLING_CHUNK // probabilities.shape[1])
    found = []
    for some, at in zip(probabilities.split(lines), uniform.split(lines), strict=True):
        upto = some.cumsum(-1, dtype=torch.float64)  # (lines, V)
        found.append(torch.searchsorted(upto, at * upto[:, -1:], right=True).squeeze(1))
    return torch.cat(found).clamp(max=probabilities.shape[1] - 1)


def _logit_gradients_inplace(probabilities: Tensor, classes: Tensor) -> Tensor:
    """The gradient of the summed negative log-likelihood of `classes`, (N,), by the logits, in place."""
    probabilities[torch.arange(len(classes), device=classes.device), classes] -= 1
    return probabilities


def _target_logits_and_labels(model: nn.Module, rows: Sequence[TokenizedExample]) -> tuple[Tensor, Tensor]:
    """Logits in float32 at least, with their graph, and labels at the trained positions: (N, V), (N,)."""
    batch = collate_rows(model, rows)
    logits = target_logits(model, batch)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits, target_tokens(batch["labels"]).to(logits.device)


def _backward_for_every_class(logits: Tensor, set_weight: Callable[[float], None]) -> None:
    """Every class at every position, each by its probability: given the inputs, positions are independent."""
    count, classes = logits.shape
    if classes > MAX_EXACT_CLASSES:
        raise HarnessError(
            f"{SPEC_KEY}.labels",
            f"'exact' would take {count * classes:,} backward passes for a row of {count} trained tokens, "
            f"since the vocabulary has {classes:,}",
            f"use 'sampled', whose expectation is the same; 'exact' is for vocabularies of up to {MAX_EXACT_CLASSES:,}",
        )
    likelihoods = logits.log_softmax(-1)
    for line in likelihoods:
        for likelihood in line:
            set_weight(float(likelihood.detach().exp()))
            likelihood.backward(retain_graph=True)


@contextmanager
def _accumulating_squared_gradients(
    trainable: TrainableWeights, device: str | None
) -> Iterator[tuple[dict[str, Tensor], Callable[[float], None]]]:
    """Within it each backward pass adds the squares of its gradients to the first that it gives, times a weight.

    The second sets that weight for the passes that come. No gradient stays on any parameter.
    """
    factor = 1.0
    handles: list[Any] = []
    layers = list(trainable.lora_layers.items())
    # Through an adapter's own weights the backward pass reaches every layer; their gradients are not looked at.
    passed = [w for _, layer in layers for w in layer.parameters() if w.requires_grad]
    parameters = [*trainable.weights.values(), *passed]
    before = [(parameter, parameter.grad) for parameter in parameters]
    total = {name: _zeros(weight.shape, device or weight.device) for name, weight in trainable.weights.items()}
    for name, layer in layers:
        total[name] = _zeros((layer.out_features, layer.in_features), device or layer.get_base_layer().weight.device)

    def weigh(weight: float) -> None:
        nonlocal factor
        factor = weight

    def add(name: str, gradient: Tensor) -> None:
        squares = total[name]
        gradient = gradient.to(squares.device, torch.float32)
        squares.addcmul_(gradient, gradient, value=factor)

    def take(name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            if parameter.grad is not None:
                add(name, parameter.grad)
            parameter.grad = None

        return hook

    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    def watch(name: str) -> Callable[..., None]:
        def forward(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            seen = inputs[0].detach()

            def backward(gradient: Tensor) -> None:
                with torch.autocast(gradient.device.type, enabled=False):
                    delta, x = (t.flatten(0, -2).float() for t in (gradient, seen))  # (tokens, d), (tokens, k)
                    add(name, delta.T @ x)

            output.register_hook(backward)

        return forward

    try:
        for parameter, _ in before:
            parameter.grad = None
        handles += [w.register_post_accumulate_grad_hook(take(name)) for name, w in trainable.weights.items()]
        handles += [
            w.register_post_accumulate_grad_hook(drop) for w in passed if id(w) not in _trainable_weight_ids(trainable)
        ]
        handles += [layer.register_forward_hook(watch(name)) for name, layer in layers]
        with torch.enable_grad():
            yield total, weigh
    finally:
        for handle in handles:
            handle.remove()
        for parameter, gradient in before:
            parameter.grad = gradient


def _trainable_weight_ids(trainable: TrainableWeights) -> set[int]:
    return {id(weight) for weight in trainable.weights.values()}


def _zeros(shape: Any, device: torch.device | str) -> Tensor:
    return torch.zeros(shape, dtype=torch.float32, device=device)
