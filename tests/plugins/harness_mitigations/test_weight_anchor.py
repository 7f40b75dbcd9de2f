"""The three couplings as functions: against autograd, closed forms and their limits."""

from __future__ import annotations

import pytest
import torch
from harness_mitigations import weight_anchor
from harness_mitigations.weight_anchor import (
    add_lora_penalty_gradient,
    add_penalty_gradient,
    apply_proximal_step,
    low_rank_difference,
    penalty_value,
)

SHAPES = [(4, 3), (5,), (), (30, 7)]


@pytest.fixture
def small_chunks(monkeypatch):
    """Use chunks that contain several tensors, and tensors in several chunks."""
    monkeypatch.setitem(weight_anchor.CHUNK_SIZE, "cpu", 16)


def create_tensors(seed=3):
    torch.manual_seed(seed)
    weights = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in SHAPES]
    anchors = [torch.randn(shape, dtype=torch.float64) for shape in SHAPES]
    importances = [torch.rand(shape, dtype=torch.float64) for shape in SHAPES]
    return weights, anchors, importances


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("weighted", [True, False])
def test_penalty_gradient_equals_that_of_autograd(weighted):
    weights, anchors, importances = create_tensors()
    given = importances if weighted else None

    def penalty(*weights):
        terms = zip(weights, anchors, importances, strict=True)
        return sum(0.35 * ((f if weighted else 1) * (w - a) ** 2).sum() for w, a, f in terms)  # strength 0.7

    class Penalty(torch.autograd.Function):
        @staticmethod
        def forward(context, *weights):
            gradients = [torch.zeros_like(weight) for weight in weights]
            add_penalty_gradient(weights, gradients, anchors, given, 0.7)
            context.save_for_backward(*gradients)
            return penalty(*weights)

        @staticmethod
        def backward(context, outer):
            return tuple(outer * gradient for gradient in context.saved_tensors)

    assert torch.autograd.gradcheck(Penalty.apply, weights)
    expected = torch.autograd.grad(penalty(*weights), weights)
    gradients = [torch.ones_like(weight) for weight in weights]
    value = add_penalty_gradient(weights, gradients, anchors, given, 0.7)
    assert float(value) == pytest.approx(float(penalty(*weights).detach()), rel=1e-12)
    assert float(penalty_value(weights, anchors, given, 0.7)) == float(value)
    assert not value.requires_grad
    for gradient, expected_gradient in zip(gradients, expected, strict=True):
        assert torch.allclose(gradient, 1 + expected_gradient, rtol=1e-13)


@pytest.mark.usefixtures("small_chunks")
def test_a_transposed_gradient_is_changed_in_place():
    weights, anchors, importances = create_tensors()
    gradients = [torch.zeros_like(weight).t().contiguous().t() for weight in weights[3:]]
    add_penalty_gradient(weights[3:], gradients, anchors[3:], importances[3:], 2.0)
    expected_gradient = 2.0 * importances[3] * (weights[3] - anchors[3]).detach()
    assert torch.allclose(gradients[0], expected_gradient)


def test_importances_in_bfloat16_change_the_gradient_by_rounding_only():
    weights, anchors, importances = create_tensors()
    exact, rounded = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    add_penalty_gradient(weights, exact, anchors, importances, 1.0)
    add_penalty_gradient(weights, rounded, anchors, [f.bfloat16() for f in importances], 1.0)
    for one, other in zip(exact, rounded, strict=True):
        assert torch.allclose(one, other, rtol=2**-8, atol=0)  # 8 bits: half a unit of the last is 2^-9
    assert any(not torch.equal(one, other) for one, other in zip(exact, rounded, strict=True))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("weighted", [True, False])
def test_proximal_step_minimizes_its_objective(weighted):
    weights, anchors, importances = create_tensors()
    start = [weight.detach().clone() for weight in weights]
    apply_proximal_step(weights, anchors, importances if weighted else None, 0.6)
    for x, theta, a, f in zip(weights, start, anchors, importances, strict=True):
        f = f if weighted else torch.ones_like(f)
        x = x.detach().requires_grad_()
        ((x - theta).square().sum() / 2 + 0.3 * (f * (x - a).square()).sum()).backward()
        assert float(x.grad.abs().max()) < 1e-14


@pytest.mark.parametrize("weighted", [True, False])
def test_proximal_step_of_zero_changes_nothing_and_of_infinity_gives_the_anchor(weighted):
    weights, anchors, importances = create_tensors()
    start = [weight.detach().clone() for weight in weights]
    given = [f + 0.01 for f in importances] if weighted else None
    apply_proximal_step(weights, anchors, given, 0.0)
    assert all(torch.equal(weight, old) for weight, old in zip(weights, start, strict=True))
    for step in (1e300, float("inf")):
        apply_proximal_step(weights, anchors, given, step)
        assert all(torch.equal(weight, anchor) for weight, anchor in zip(weights, anchors, strict=True))


def quadratic():
    """Task 1/2 (theta - theta1)' H (theta - theta1) with EWC: the optimum is (H + lF)^-1 (H theta1 + lF theta0)."""
    torch.manual_seed(4)
    root = torch.randn(6, 6, dtype=torch.float64)
    h, f = root @ root.T / 6 + torch.eye(6, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    start, target, strength = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64), 3.0
    optimum = torch.linalg.solve(h + strength * torch.diag(f), h @ target + strength * f * start)
    return h, f, start, target, strength, optimum


def test_gradient_descent_reaches_the_closed_form_optimum():
    h, f, start, target, strength, optimum = quadratic()
    theta = start.clone()
    for _ in range(2000):
        gradient = h @ (theta - target)
        add_penalty_gradient([theta], [gradient], [start], [f], strength)
        theta -= 0.1 * gradient
    assert torch.allclose(theta, optimum, atol=1e-12)


@pytest.mark.parametrize("factor", [1.0, 1e6])
def test_proximal_descent_reaches_the_closed_form_optimum_at_any_strength(factor):
    h, f, start, target, strength, _ = quadratic()
    strength *= factor
    optimum = torch.linalg.solve(h + strength * torch.diag(f), h @ target + strength * f * start)
    theta = start.clone()
    for _ in range(2000):
        theta -= 0.1 * (h @ (theta - target))
        apply_proximal_step([theta], [start], [f], 0.1 * strength)
    assert torch.allclose(theta, optimum, atol=1e-10)


def test_two_gaussian_tasks_give_the_posterior_mean():
    # Means of two batches of observations: after the first, F = n / s^2 at its mean; with it the second task's optimum
    # is the mean of all observations, as if both had been seen at once.
    torch.manual_seed(5)
    one, two = torch.randn(30, dtype=torch.float64) + 1, torch.randn(50, dtype=torch.float64) - 2
    theta, anchor, importance = one.mean()[None].clone(), one.mean()[None], torch.tensor([30.0], dtype=torch.float64)
    for _ in range(500):
        gradient = (50 * theta - two.sum()).clone()
        add_penalty_gradient([theta], [gradient], [anchor], [importance], 1.0)
        theta -= 0.01 * gradient
    assert float(theta) == pytest.approx(float(torch.cat([one, two]).mean()), abs=1e-12)


# -- a weight that changes by s B A -----------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [True, False])
def test_gradient_of_factors_equals_that_through_the_merged_weight(weighted):
    torch.manual_seed(6)
    options = {"dtype": torch.float64, "requires_grad": True}
    a, b = torch.randn(2, 7, **options), torch.randn(5, 2, **options)
    frozen = (torch.randn(3, 7, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64))
    anchor_factors = (torch.randn(4, 7, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64))
    base, importance = torch.randn(5, 7, dtype=torch.float64), torch.rand(5, 7, dtype=torch.float64)
    merged = base + 1.5 * b @ a + frozen[1] @ frozen[0]
    anchor = base + anchor_factors[1] @ anchor_factors[0]
    penalty = 0.35 * ((importance if weighted else 1) * (merged - anchor) ** 2).sum()
    expected = torch.autograd.grad(penalty, (a, b))
    drift = low_rank_difference([(a.detach(), 1.5 * b.detach()), frozen], [anchor_factors])
    assert torch.allclose(drift, (merged - anchor).detach(), atol=1e-13)
    gradients = (torch.ones_like(a), torch.ones_like(b))
    value = add_lora_penalty_gradient([(a, b)], [gradients], [1.5], drift, importance if weighted else None, 0.7)
    assert float(value) == pytest.approx(float(penalty.detach()), rel=1e-12)
    for gradient, expected_gradient in zip(gradients, expected, strict=True):
        assert torch.allclose(gradient, 1 + expected_gradient, rtol=1e-12)


def test_difference_depends_on_the_change_and_not_on_its_factors():
    torch.manual_seed(7)
    a, b, m = torch.randn(2, 7), torch.randn(5, 2), torch.tensor([[2.0, 1.0], [0.0, 0.5]])
    same = low_rank_difference([(m @ a, b @ m.inverse())], [(a, b)])
    assert float(same.abs().max()) < 1e-5
    # Adding the factors is another change: (B + B')(A + A') is not B A + B' A'.
    other_a, other_b = torch.randn(2, 7), torch.randn(5, 2)
    assert float(low_rank_difference([(a + other_a, b + other_b)], [(a, b), (other_a, other_b)]).abs().max()) > 1
