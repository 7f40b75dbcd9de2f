"""The diagonal Fisher information of the trainable weights, with three kinds of labels (Kirkpatrick, arXiv:1612.00796).

F = mean over rows of E[(gradient of the summed log-likelihood of the row's trained tokens)^2], row by row: the square
of a batch's mean gradient is another, smaller quantity. On estimators see van de Ven, arXiv:2502.11756.

Where labels are sampled from the model itself, the gradients of different rows, and of different tokens, are
uncorrelated with mean 0. So the square of a batch's *summed* gradient has the same expectation as the sum of its rows'
squares, and a batch costs one backward pass. With the labels of the data that does not hold: each row costs one pass.

The gradient by a weight is squared as soon as it is computed and then freed. In addition to the Fisher itself, 4 bytes
an element, only the largest gradient takes memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.errors import HarnessError
from harness.training.loss import chunked_target_logits, target_logits, target_tokens
from harness.types import TokenizedExample
from harness_mitigations.adapted_weights import TrainableWeights
from harness_mitigations.base_model import collate_rows

TOP_SHARE = 0.001
"""The fraction of the weights whose part of the total importance is reported."""

HISTOGRAM_BINS = 2**15
HISTOGRAM_CHUNK = 2**22
INFINITY_BIN = 0x7F80
"""The leading bits of infinity; NaNs are in higher bins."""


def importance_histogram(importances: Iterable[Tensor]) -> Tensor:
    """Count the elements, none of them negative, by their leading 16 bits.

    Returns:
        (2^15,) int64, on the CPU.
    """
    counts = torch.zeros(HISTOGRAM_BINS, dtype=torch.int64)
    for tensor in importances:
        for chunk in tensor.float().flatten().split(HISTOGRAM_CHUNK):
            counts += torch.bincount(chunk.view(torch.int32) >> 16, minlength=HISTOGRAM_BINS).cpu()
    return counts


def bin_centers() -> Tensor:
    """Return the value in the middle of each bin of a histogram, (2^15,) float64; 0 for the bin of 0."""
    bits = (torch.arange(HISTOGRAM_BINS, dtype=torch.int32) << 16) + 0x8000
    values = bits.view(torch.float32).double()
    values[0] = 0.0
    return values


def histogram_quantile(counts: Tensor, q: float) -> float:
    """Return the value that a fraction of q of the elements does not exceed, within 0.4 %.

    Args:
        counts: see `importance_histogram`.
        q: in [0, 1].
    """
    cumulative = counts.cumsum(0)
    index = int(torch.searchsorted(cumulative, torch.tensor(q * float(cumulative[-1])).ceil().long().clamp(min=1)))
    return float(bin_centers()[index])


def histogram_is_finite(counts: Tensor) -> bool:
    """Return whether every element is finite."""
    return not bool(counts[INFINITY_BIN:].any())


def importance_stats(counts: Tensor) -> dict[str, float]:
    """Summarize the distribution of the importances.

    Args:
        counts: see `importance_histogram`.

    Returns:
        Root mean square, median, 99.9th percentile and maximum, each divided by the mean, and the fraction of the total
        importance in the largest 0.1 % of the elements. Empty when the mean is 0.
    """
    values = bin_centers()
    values[INFINITY_BIN:] = 0.0
    masses = counts * values
    mean = float(masses.sum() / counts.sum())
    if mean == 0:
        return {}
    top_count = int((TOP_SHARE * counts.sum()).ceil())
    counts_from_top = counts.flip(0).cumsum(0)  # number of elements in the highest bins
    full_bins = counts_from_top <= top_count
    top_mass = float(masses.flip(0)[full_bins].sum())
    partial_bin = int(full_bins.sum())  # only some of its elements are among the largest
    if partial_bin < HISTOGRAM_BINS:
        missing = top_count - (int(counts_from_top[partial_bin - 1]) if partial_bin else 0)
        top_mass += missing * float(values.flip(0)[partial_bin])
    largest = float(values[counts.nonzero()[-1]])
    return {
        "fisher_rms": float((masses * values).sum() / counts.sum()) ** 0.5 / mean,
        "fisher_median": histogram_quantile(counts, 0.5) / mean,
        "fisher_p99.9": histogram_quantile(counts, 0.999) / mean,
        "fisher_largest": largest / mean,
        "fisher_mass_of_top_0.1_percent": top_mass / float(masses.sum()),
    }


Labels = Literal["sampled", "empirical", "exact"]

SPEC_KEY = "mitigations.ewc"

MAX_EXACT_CLASSES = 1024
"""The largest vocabulary that `exact` enumerates: a row costs trained tokens times classes backward passes."""

SAMPLING_CHUNK = 2**22
"""Number of probabilities that are summed at once to sample labels: bounds the memory to 8 bytes times this."""


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
    """Compute the diagonal Fisher information of the trainable weights, averaged over rows.

    The model is in evaluation mode meanwhile. Squares are summed in float32. Prompts and padding are excluded, tied
    weights are counted once, frozen ones not at all. A layer with an adapter is counted by its weight W + s B A.

    Args:
        model: the model, whose gradients are restored afterwards.
        trainable: see `find_trainable_weights`.
        rows: each with at least one trained token.
        labels: the targets of the likelihood. `sampled`: tokens sampled from the model's prediction at each trained
            position, unbiased. `exact`: their expectation, by enumeration of the vocabulary. `empirical`: the row's own
            tokens, which gives the empirical Fisher, another quantity.
        batch_size: rows in one pass where labels are sampled, grouped by length; otherwise one row a pass.
        generator: on the CPU; samples the labels.
        device: device of the result; None: that of each weight.

    Returns:
        Name -> float32 tensor of the weight's shape, in nats^2 per squared unit of the weight.

    Raises:
        HarnessError: there is no row, or the vocabulary is too large to enumerate.
    """
    if not rows:
        raise HarnessError(SPEC_KEY, "there is no row to measure the Fisher on", "name a source that has rows")
    ordered = sorted(rows, key=lambda row: len(row.input_ids), reverse=True)
    rows_per_pass = batch_size if labels == "sampled" else 1
    was_training = model.training
    model.eval()
    try:
        with _accumulating_squared_gradients(trainable, device) as (squares_by_name, set_weight):
            for start in range(0, len(ordered), rows_per_pass):
                batch = collate_rows(model, ordered[start : start + rows_per_pass])
                if labels == "exact":
                    _backward_for_every_class(_at_least_float32(target_logits(model, batch)), set_weight)
                else:
                    count = len(target_tokens(batch["labels"]))
                    is_sampled = labels == "sampled"
                    uniform = torch.rand(count, 1, generator=generator, dtype=torch.float64) if is_sampled else None
                    _backward(model, batch, uniform)
    finally:
        model.train(was_training)
    for squares in squares_by_name.values():
        squares.div_(len(rows))
    return squares_by_name


def classes_at(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Return the classes (N,) at which the cumulative probabilities (N, V) exceed the numbers (N, 1) in [0, 1)."""
    uniform = uniform.to(probabilities.device)
    rows_per_chunk = max(1, SAMPLING_CHUNK // probabilities.shape[1])
    classes = []
    for chunk, thresholds in zip(probabilities.split(rows_per_chunk), uniform.split(rows_per_chunk), strict=True):
        cumulative = chunk.cumsum(-1, dtype=torch.float64)  # (rows_per_chunk, V)
        classes.append(torch.searchsorted(cumulative, thresholds * cumulative[:, -1:], right=True).squeeze(1))
    return torch.cat(classes).clamp(max=probabilities.shape[1] - 1)


def _backward(model: nn.Module, batch: dict[str, Tensor], uniform: Tensor | None) -> None:
    """Compute the gradient of the summed negative log-likelihood of a batch, in chunks of its logits.

    Args:
        model: the model.
        batch: see `collate_rows`.
        uniform: (N, 1), random numbers that sample the labels from the predictions; None: the labels of the data.
    """
    targets = target_tokens(batch["labels"])  # (N,)

    def chunk_nll(logits: Tensor, place: slice) -> Tensor:
        logits = _at_least_float32(logits)  # (n, V)
        classes = targets[place].to(logits.device)
        if uniform is not None:
            classes = classes_at(logits.detach().softmax(-1), uniform[place])
        return functional.cross_entropy(logits, classes, reduction="sum")

    chunked_target_logits(model, batch).sum(chunk_nll).backward()


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _backward_for_every_class(logits: Tensor, set_weight: Callable[[float], None]) -> None:
    """Run one backward pass for every class at every position, weighted with its probability.

    Given the inputs, positions are independent.
    """
    count, classes = logits.shape
    if classes > MAX_EXACT_CLASSES:
        raise HarnessError(
            f"{SPEC_KEY}.labels",
            f"'exact' would take {count * classes:,} backward passes for a row of {count} trained tokens, "
            f"since the vocabulary has {classes:,}",
            f"use 'sampled', whose expectation is the same; 'exact' is for vocabularies of up to {MAX_EXACT_CLASSES:,}",
        )
    for position in logits.log_softmax(-1):
        for log_probability in position:
            set_weight(float(log_probability.detach().exp()))
            log_probability.backward(retain_graph=True)


@contextmanager
def _accumulating_squared_gradients(
    trainable: TrainableWeights, device: str | None
) -> Iterator[tuple[dict[str, Tensor], Callable[[float], None]]]:
    """Within the context, add the squared gradients of each backward pass to the result, times a factor.

    No gradient stays on any parameter.

    Yields:
        Name -> sum of squares so far, and a function that sets the factor for the passes that follow.
    """
    factor = 1.0
    handles: list[Any] = []
    layers = list(trainable.lora_layers.items())
    # The backward pass reaches every layer through an adapter's own weights; their gradients are discarded.
    factor_weights = [w for _, layer in layers for w in layer.parameters() if w.requires_grad]
    saved_gradients = [(parameter, parameter.grad) for parameter in [*trainable.weights.values(), *factor_weights]]
    squares_by_name = {
        name: _zeros(weight.shape, device or weight.device) for name, weight in trainable.weights.items()
    }
    for name, layer in layers:
        shape = (layer.out_features, layer.in_features)
        squares_by_name[name] = _zeros(shape, device or layer.get_base_layer().weight.device)

    def set_factor(value: float) -> None:
        nonlocal factor
        factor = value

    def add_square(name: str, gradient: Tensor) -> None:
        squares = squares_by_name[name]
        gradient = gradient.to(squares.device, torch.float32)
        squares.addcmul_(gradient, gradient, value=factor)

    def add_and_free_gradient(name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            if parameter.grad is not None:
                add_square(name, parameter.grad)
            parameter.grad = None

        return hook

    def free_gradient(parameter: Tensor) -> None:
        parameter.grad = None

    def add_weight_gradient(name: str) -> Callable[..., None]:
        """Compute the gradient by W of an adapted layer, which is frozen and has none itself, from its inputs."""

        def forward_hook(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            layer_input = inputs[0].detach()

            def backward_hook(gradient: Tensor) -> None:
                with torch.autocast(gradient.device.type, enabled=False):
                    delta, x = (t.flatten(0, -2).float() for t in (gradient, layer_input))  # (tokens, d), (tokens, k)
                    add_square(name, delta.T @ x)

            output.register_hook(backward_hook)

        return forward_hook

    try:
        for parameter, _ in saved_gradients:
            parameter.grad = None
        weight_ids = {id(weight) for weight in trainable.weights.values()}
        handles += [
            weight.register_post_accumulate_grad_hook(add_and_free_gradient(name))
            for name, weight in trainable.weights.items()
        ]
        handles += [
            weight.register_post_accumulate_grad_hook(free_gradient)
            for weight in factor_weights
            if id(weight) not in weight_ids
        ]
        handles += [layer.register_forward_hook(add_weight_gradient(name)) for name, layer in layers]
        with torch.enable_grad():
            yield squares_by_name, set_factor
    finally:
        for handle in handles:
            handle.remove()
        for parameter, gradient in saved_gradients:
            parameter.grad = gradient


def _zeros(shape: Sequence[int], device: torch.device | str) -> Tensor:
    return torch.zeros(tuple(shape), dtype=torch.float32, device=device)
