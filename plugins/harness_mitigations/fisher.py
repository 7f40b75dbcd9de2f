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
from harness.training.loss import targets, trained_logits
from harness.types import Row
from harness_mitigations.adapted_weights import Moving
from harness_mitigations.base_model import batched

TOP = 0.001
"""The share of the weights whose share of the mass is told."""

BINS = 2**15
SLICE = 2**22
INFINITE = 0x7F80
"""The leading bits of infinity; those of what is no number lie above."""


def histogram(importances: Iterable[Tensor]) -> Tensor:
    """How many of the numbers, none of them negative, have each leading 16 bits. Returns (2^15,) int64, on the CPU."""
    counts = torch.zeros(BINS, dtype=torch.int64)
    for tensor in importances:
        for some in tensor.float().flatten().split(SLICE):
            counts += torch.bincount(some.view(torch.int32) >> 16, minlength=BINS).cpu()
    return counts


def middles() -> Tensor:
    """The number in the middle of each bin of a histogram; 0 for that of 0. Returns (2^15,) float64."""
    bits = (torch.arange(BINS, dtype=torch.int32) << 16) + 0x8000
    values = bits.view(torch.float32).double()
    values[0] = 0.0
    return values


def quantile(counts: Tensor, q: float) -> float:
    """The value that a share of q of the numbers does not exceed, within 0.4 %. counts: see `histogram`."""
    upto = counts.cumsum(0)
    index = int(torch.searchsorted(upto, torch.tensor(q * float(upto[-1])).ceil().long().clamp(min=1)))
    return float(middles()[index])


def is_finite(counts: Tensor) -> bool:
    """Whether every number is finite."""
    return not bool(counts[INFINITE:].any())


def describe(counts: Tensor) -> dict[str, float]:
    """The spread in numbers: median, 99.9th percentile and largest over the mean, and the share of the mass that the
    largest 0.1 % of the numbers hold. Empty when the mean is 0."""
    values = middles()
    values[INFINITE:] = 0.0
    masses = counts * values
    mean = float(masses.sum() / counts.sum())
    if mean == 0:
        return {}
    beyond = int((TOP * counts.sum()).ceil())
    above = counts.flip(0).cumsum(0)  # how many numbers lie in the highest bins
    whole = above <= beyond
    held = float(masses.flip(0)[whole].sum())
    partly = int(whole.sum())  # the bin that only some of the largest come from
    if partly < BINS:
        taken = beyond - (int(above[partly - 1]) if partly else 0)
        held += taken * float(values.flip(0)[partly])
    largest = float(values[counts.nonzero()[-1]])
    return {
        "fisher_median": quantile(counts, 0.5) / mean,
        "fisher_p99.9": quantile(counts, 0.999) / mean,
        "fisher_largest": largest / mean,
        "fisher_mass_of_top_0.1_percent": held / float(masses.sum()),
    }


Labels = Literal["sampled", "empirical", "exact"]

WHERE = "mitigations.ewc"

CLASSES = 1024
"""The largest vocabulary that `exact` enumerates: a row costs trained tokens times classes backward passes."""

DRAWN = 2**22
"""Probabilities that are summed up at once to draw labels: bounds their memory to 8 bytes a number of these."""


def fisher(
    model: nn.Module,
    moves: Moving,
    rows: Sequence[Row],
    *,
    labels: Labels,
    batch_size: int = 8,
    generator: torch.Generator | None = None,
    place: str | None = None,
) -> dict[str, Tensor]:
    """The diagonal Fisher information of what `moves`, averaged over rows.

    The model is in evaluation mode meanwhile; squares are summed in float32; prompts and padding take no part; tied
    weights stand once, frozen ones not at all. A layer with an adapter counts by its weight W + s B A.

    rows: each with at least one token that is trained. labels: what the likelihood is of: `sampled`, tokens drawn from
    the model's prediction at each trained position, without bias; `exact`, their expectation, by enumeration of the
    vocabulary; `empirical`, the row's own tokens, which gives the empirical Fisher, another quantity. batch_size: rows
    in one pass where labels are drawn, like with like in length; the others go row by row. generator: on the CPU; draws
    the labels. place: device of the result; None: that of each weight.
    Returns name -> float32 tensor of the weight's shape, in nats^2 per squared unit of the weight.
    Raises HarnessError when there is no row, or the vocabulary is too large to enumerate.
    """
    if not rows:
        raise HarnessError(WHERE, "there is no row to measure the Fisher on", "name a source that has rows")
    ordered = sorted(rows, key=lambda row: len(row.input_ids), reverse=True)
    together = batch_size if labels == "sampled" else 1
    was_training = model.training
    model.eval()
    try:
        with _squares(moves, place) as (total, weigh):
            for start in range(0, len(ordered), together):
                logits, chosen = _predict(model, ordered[start : start + together])
                if labels == "exact":
                    _enumerate(logits, weigh)
                    continue
                likelihoods = logits.detach().softmax(-1)
                if labels == "sampled":
                    chosen = draw(likelihoods, generator)
                logits.backward(_residuals(likelihoods, chosen))
    finally:
        model.train(was_training)
    for squares in total.values():
        squares.div_(len(rows))
    return total


def draw(likelihoods: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """One class for each line of likelihoods, of shape (N, V) and each summing to 1, drawn with its probability: (N,).

    The random numbers come from the CPU, so that a seed draws the same classes on any device, up to rounding.
    """
    uniform = torch.rand(len(likelihoods), 1, generator=generator, dtype=torch.float64).to(likelihoods.device)
    lines = max(1, DRAWN // likelihoods.shape[1])
    found = []
    for some, at in zip(likelihoods.split(lines), uniform.split(lines), strict=True):
        upto = some.cumsum(-1, dtype=torch.float64)  # (lines, V)
        found.append(torch.searchsorted(upto, at * upto[:, -1:], right=True).squeeze(1))
    return torch.cat(found).clamp(max=likelihoods.shape[1] - 1)


def _residuals(likelihoods: Tensor, chosen: Tensor) -> Tensor:
    """The gradient of the summed negative log-likelihood of the classes `chosen`, (N,), by the logits, in place."""
    likelihoods[torch.arange(len(chosen), device=chosen.device), chosen] -= 1
    return likelihoods


def _predict(model: nn.Module, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Logits in float32 at least, with their graph, and labels at the trained positions: (N, V), (N,)."""
    batch = batched(model, rows)
    logits = trained_logits(model, batch)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits, targets(batch["labels"]).to(logits.device)


def _enumerate(logits: Tensor, weigh: Callable[[float], None]) -> None:
    """Every class at every position, each by its probability: given the inputs, positions are independent."""
    count, classes = logits.shape
    if classes > CLASSES:
        raise HarnessError(
            f"{WHERE}.labels",
            f"'exact' would take {count * classes:,} backward passes for a row of {count} trained tokens, "
            f"since the vocabulary has {classes:,}",
            f"use 'sampled', whose expectation is the same; 'exact' is for vocabularies of up to {CLASSES:,}",
        )
    likelihoods = logits.log_softmax(-1)
    for line in likelihoods:
        for likelihood in line:
            weigh(float(likelihood.detach().exp()))
            likelihood.backward(retain_graph=True)


@contextmanager
def _squares(moves: Moving, place: str | None) -> Iterator[tuple[dict[str, Tensor], Callable[[float], None]]]:
    """Within it each backward pass adds the squares of its gradients to the first that it gives, times a weight.

    The second sets that weight for the passes that come. No gradient stays on any parameter.
    """
    factor = 1.0
    handles: list[Any] = []
    layers = list(moves.layers.items())
    # Through an adapter's own weights the backward pass reaches every layer; their gradients are not looked at.
    passed = [w for _, layer in layers for w in layer.parameters() if w.requires_grad]
    parameters = [*moves.weights.values(), *passed]
    before = [(parameter, parameter.grad) for parameter in parameters]
    total = {name: _zeros(weight.shape, place or weight.device) for name, weight in moves.weights.items()}
    for name, layer in layers:
        total[name] = _zeros((layer.out_features, layer.in_features), place or layer.get_base_layer().weight.device)

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
        handles += [w.register_post_accumulate_grad_hook(take(name)) for name, w in moves.weights.items()]
        handles += [w.register_post_accumulate_grad_hook(drop) for w in passed if id(w) not in _ids(moves)]
        handles += [layer.register_forward_hook(watch(name)) for name, layer in layers]
        with torch.enable_grad():
            yield total, weigh
    finally:
        for handle in handles:
            handle.remove()
        for parameter, gradient in before:
            parameter.grad = gradient


def _ids(moves: Moving) -> set[int]:
    return {id(weight) for weight in moves.weights.values()}


def _zeros(shape: Any, device: torch.device | str) -> Tensor:
    return torch.zeros(shape, dtype=torch.float32, device=device)
