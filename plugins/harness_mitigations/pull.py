"""Being held near an anchor: gradient, proximal step and value of lambda / 2 * sum of F (theta - theta0)^2.

Pure functions of lists of tensors, without autograd graphs. Large tensors are walked in slices, so that what lies
between weight and gradient stays in the cache: an update costs about one read of weight, anchor and importance, and one
read and write of the gradient. Knows nothing of models, training or where importances come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SLICE = {"cpu": 2**20}
"""Numbers that are worked on at once on a kind of device: on a CPU as many as its cache holds."""

WIDE = 2**25
"""And elsewhere, where each step costs a launch. Bounds the memory of what lies between to 8 bytes times this."""

LIMIT = 1e30
"""A proximal step with more than this goes all the way: it keeps infinities out."""

Factors = Sequence[tuple["Tensor", "Tensor"]]
"""Pairs of A, of shape (r, k), and B, of shape (d, r), the scale within B: the change of a weight is the sum of B A."""


def pull(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    anchors: Sequence[Tensor],
    importances: Sequence[Tensor] | None,
    strength: float,
) -> Tensor:
    """Add strength * F (theta - theta0) to the gradients, in place; return strength / 2 * sum of F (theta - theta0)^2.

    All are equally long; weight, gradient, anchor theta0 and importance F of one index have one shape. None: F is 1.
    Anchors and importances may lie on another device, or in a shorter format.
    """
    import torch

    values = []
    with torch.no_grad():
        for theta, gradient, start, importance in _sliced(weights, gradients, anchors, importances):
            drift = torch._foreach_sub(theta, start)
            force = torch._foreach_mul(drift, importance) if importance else drift
            torch._foreach_add_(gradient, force, alpha=strength)
            values += _dots(drift, force)
        return _half(values, strength)


def value(
    weights: Sequence[Tensor], anchors: Sequence[Tensor], importances: Sequence[Tensor] | None, strength: float
) -> Tensor:
    """strength / 2 * sum of F (theta - theta0)^2 alone. Arguments as in `pull`."""
    import torch

    values = []
    with torch.no_grad():
        for theta, _, start, importance in _sliced(weights, weights, anchors, importances):
            drift = torch._foreach_sub(theta, start)
            values += _dots(drift, torch._foreach_mul(drift, importance) if importance else drift)
        return _half(values, strength)


def proximal(
    weights: Sequence[Tensor], anchors: Sequence[Tensor], importances: Sequence[Tensor] | None, step: float
) -> None:
    """Move each weight to theta0 + (theta - theta0) / (1 + step * F), in place.

    That is the minimiser of |x - theta|^2 / 2 + step / 2 * F (x - theta0)^2 over x, stable at any step >= 0: at 0
    theta stays bit for bit, at infinity it is theta0. step: learning rate * strength. Arguments as in `pull`.
    """
    import torch

    with torch.no_grad():
        for theta, _, start, importance in _sliced(weights, weights, anchors, importances):
            if not importance:
                part = 1.0 if step > LIMIT else step / (1 + step)
                torch._foreach_lerp_(theta, start, part)
                continue
            share = torch._foreach_mul(importance, step)
            torch._foreach_clamp_max_(share, LIMIT)
            torch._foreach_div_(share, torch._foreach_add(share, 1.0))
            torch._foreach_lerp_(theta, start, share)


def difference(now: Factors, then: Factors) -> Tensor:
    """The sum of B A over `now` less that over `then`, as a matrix of shape (d, k), formed by one product."""
    import torch

    left = torch.cat([*(b for _, b in now), *(-b for _, b in then)], dim=1)
    right = torch.cat([*(a for a, _ in now), *(a for a, _ in then)])
    return left @ right


def pull_factors(
    trained: Factors,
    gradients: Factors,
    scales: Sequence[float],
    drift: Tensor,
    importance: Tensor | None,
    strength: float,
) -> Tensor:
    """`pull` in the space of a weight W that moves by s B A alone; return the value.

    With G = strength * F * drift, the gradient by W, adds s B^T G to the gradient of A and s G A^T to that of B.
    trained: the pairs (A, B), B without its scale s. gradients: theirs. drift: of W since the anchor, (d, k), see
    `difference`. importance: F, (d, k); None: 1.
    """
    import torch

    with torch.no_grad():
        force = drift if importance is None else drift * importance.to(drift.device, drift.dtype)
        for (a, b), (to_a, to_b), scale in zip(trained, gradients, scales, strict=True):
            to_a.addmm_(b.T, force, alpha=strength * scale)
            to_b.addmm_(force, a.T, alpha=strength * scale)
        return _half([torch.dot(drift.flatten(), force.flatten())], strength)


def _dots(one: Sequence[Tensor], other: Sequence[Tensor]) -> list[Tensor]:
    import torch

    return [torch.dot(a.flatten(), b.flatten()) for a, b in zip(one, other, strict=True)]


def _half(values: Sequence[Tensor], strength: float) -> Tensor:
    import torch

    return strength / 2 * torch.stack(list(values)).double().sum() if values else torch.zeros(())


def _sliced(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    anchors: Sequence[Tensor],
    importances: Sequence[Tensor] | None,
) -> Iterator[tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]]:
    """The same tensors in groups of a slice's size: whole small ones together, pieces of large ones. The pieces of
    weights and gradients are views; anchors and importances come in the weight's format and on its device."""
    group: tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]] = ([], [], [], [])
    size = 0
    for index, weight in enumerate(weights):
        weight = weight.detach()
        four = [
            weight,
            gradients[index].detach(),
            anchors[index],
            *(importances[index : index + 1] if importances else ()),
        ]
        limit = SLICE.get(weight.device.type, WIDE)
        if weight.numel() > limit and all(tensor.is_contiguous() for tensor in four):
            pieces = list(zip(*(tensor.view(-1).split(limit) for tensor in four), strict=True))
        else:
            pieces = [tuple(four)]
        for piece in pieces:
            if size and size + piece[0].numel() > limit:
                yield group
                group, size = ([], [], [], []), 0
            for number, tensor in enumerate(piece):
                group[number].append(tensor if number < 2 else tensor.to(weight.device, weight.dtype))
            size += piece[0].numel()
    if size:
        yield group
