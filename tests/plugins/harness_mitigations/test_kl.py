"""KL: against torch.distributions, and held on general rows or on the task whatever the cut of the update."""

from __future__ import annotations

import copy

import pytest
import torch
from harness_mitigations.kl import build_kl_mitigation, token_kl
from harness_mitigations.lora import Lora
from torch.distributions import Categorical, kl_divergence

from harness.errors import HarnessError
from harness.interfaces.mitigation import Mitigation
from harness.model import save


def made(**options):
    defaults = {"on": "general", "source": "general", "rows": 4, "strength": 1.0, "direction": "forward"}
    return build_kl_mitigation(**(defaults | {"temperature": 1.0} | options))


def lora(**options):
    defaults = {"rank": 4, "alpha": None, "dropout": 0.0, "target": "all-linear", "rslora": False, "dora": False}
    return Lora(**(defaults | {"start": "zero", "source": None, "samples": 8} | options))


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return 3 * torch.randn(5, 11), 3 * torch.randn(5, 11)


class Spy(Mitigation):
    """Keeps the gradients before the pull, and the weights after each update."""

    priority = 1000

    def __init__(self):
        self.gradients, self.weights = [], []

    def add_weight_penalty(self, model):
        self.gradients.append({n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None})

    def on_step_end(self, model, learning_rate):
        self.weights.append({n: w.detach().clone() for n, w in model.named_parameters() if w.requires_grad})


def apart(one, two):
    assert one.keys() == two.keys()
    return max(float((one[name] - two[name]).detach().abs().max()) for name in one)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_token_kl_equals_the_divergence_of_torch_distributions(direction, pair):
    ours, base = pair
    p, q = Categorical(logits=base), Categorical(logits=ours)
    expected = kl_divergence(p, q) if direction == "forward" else kl_divergence(q, p)
    assert torch.allclose(token_kl(ours, base, direction), expected, rtol=1e-5)


def test_forward_and_reverse_differ_and_are_positive(pair):
    forward, reverse = token_kl(*pair, "forward"), token_kl(*pair, "reverse")
    assert float((forward - reverse).abs().min()) > 0.01
    assert float(torch.minimum(forward, reverse).min()) > 0


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_equal_distributions_give_zero_and_no_gradient(direction, pair):
    ours = pair[0].clone().requires_grad_()
    value = token_kl(ours, pair[0] + 2.5, direction)  # logits are the same up to a constant
    value.sum().backward()
    assert float(value.detach().abs().max()) < 1e-6
    assert float(ours.grad.abs().max()) < 1e-6


def test_gradient_of_the_forward_divergence_is_the_difference_of_the_distributions(pair):
    ours = pair[0].clone().requires_grad_()
    token_kl(ours, pair[1], "forward").sum().backward()
    assert torch.allclose(ours.grad, ours.softmax(-1).detach() - pair[1].softmax(-1), atol=1e-6)


def test_a_high_temperature_approaches_half_the_squared_distance_of_centered_logits(pair):
    ours, base = (logits.double() - logits.double().mean(-1, keepdim=True) for logits in pair)
    expected = (ours - base).square().mean(-1) / 2
    assert torch.allclose(token_kl(ours.float(), base.float(), "forward", 200.0).double(), expected, rtol=0.05)


@pytest.mark.parametrize("on", ["general", "task"])
@pytest.mark.parametrize("adapter", [True, False])
def test_divergence_is_zero_at_the_first_step_and_positive_at_the_second(
    on, adapter, run_stages, make_rows, tiny_model
):
    given = {"kl": made(on=on)} | ({"lora": lora()} if adapter else {})
    _, (log,) = run_stages(tiny_model, given, [make_rows(8)], {"general": make_rows(6, 1)})
    assert abs(log[0]["penalty/kl"]) < 1e-6
    assert log[1]["penalty/kl"] > 1e-4


@pytest.mark.parametrize("on", ["general", "task"])
@pytest.mark.parametrize("adapter", [True, False])
def test_base_model_is_the_one_before_the_first_stage_in_every_stage(on, adapter, run_stages, make_rows, tiny_model):
    base = copy.deepcopy(tiny_model).eval()
    given = {"kl": made(on=on, rows=100)} | ({"lora": lora()} if adapter else {})
    rows, general = make_rows(4), make_rows(6, 1)
    seen = {}

    def watch(number, model):
        if number == 2:
            seen["expected"] = divergence(model.eval(), base, rows if on == "task" else general)

    _, (_, log) = run_stages(tiny_model, given, [make_rows(12, 5), rows], {"general": general}, watch=watch)
    assert seen["expected"] > 1e-4
    assert log[0]["penalty/kl"] == pytest.approx(seen["expected"], rel=1e-4)


def divergence(model, base, rows):
    """The mean over the trained tokens of all rows, one by one, from full logits."""
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row.input_ids])
            at = [i - 1 for i, label in enumerate(row.labels) if i and label != -100]
            total += float(token_kl(model(ids).logits[0, at], base(ids).logits[0, at], "forward").sum())
            count += len(at)
    return total / count


@pytest.mark.parametrize("on", ["general", "task"])
@pytest.mark.parametrize("accumulation", [4, 8])
def test_a_step_does_not_depend_on_accumulation(on, accumulation, run_stages, make_rows, tiny_model):
    moved = moved_adapter(tiny_model)
    spies = []
    for batch, cuts in ((8, 1), (8 // accumulation, accumulation)):
        spy = Spy()
        given = {"kl": made(on=on, strength=3.0), "spy": spy}
        sources = {"general": make_rows(9, 1)}
        run_stages(
            copy.deepcopy(moved), given, [make_rows(8)], sources, batch_size=batch, accumulation=cuts, max_grad_norm=1e9
        )
        spies.append(spy)
    assert len(spies[0].gradients) == len(spies[1].gradients) == 1
    assert apart(spies[0].gradients[0], spies[1].gradients[0]) < 1e-6


def moved_adapter(tiny_model):
    """The tiny model within an adapter that has learned something."""
    torch.manual_seed(4)
    model = lora().prepare_model(tiny_model, seed=0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    return model


@pytest.mark.parametrize("on", ["general", "task"])
def test_gradient_equals_that_of_the_mean_computed_row_by_row(on, run_stages, make_rows, tiny_model):
    base, model = copy.deepcopy(tiny_model).eval(), moved_adapter(tiny_model)
    rows, general = make_rows(4), make_rows(4, 1)
    spies = {}
    for strength in (0.0, 2.0):
        spies[strength] = Spy()
        given = {"kl": made(on=on, strength=strength, rows=4), "spy": spies[strength]}
        run_stages(copy.deepcopy(model), given, [rows], {"general": general}, max_grad_norm=1e9)
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    total, count = 0.0, 0
    for row in rows if on == "task" else general:
        ids = torch.tensor([row.input_ids])
        at = [i - 1 for i, label in enumerate(row.labels) if i and label != -100]
        total = total + token_kl(model(ids).logits[0, at], base(ids).logits[0, at].detach(), "forward").sum()
        count += len(at)
    expected = torch.autograd.grad(2.0 * total / count, list(weights.values()))
    for (name, gradient), plain in zip(
        zip(weights, expected, strict=True), spies[0.0].gradients[0].values(), strict=True
    ):
        assert torch.allclose(spies[2.0].gradients[0][name] - plain, gradient, atol=1e-6), name


def test_strength_zero_equals_plain_training_bit_for_bit(run_stages, make_rows, tiny_model):
    plain, _ = run_stages(copy.deepcopy(tiny_model), {}, [make_rows(8)])
    held, _ = run_stages(
        copy.deepcopy(tiny_model), {"kl": made(strength=0.0)}, [make_rows(8)], {"general": make_rows(3)}
    )
    assert apart(dict(plain.named_parameters()), dict(held.named_parameters())) == 0


def test_the_penalty_reduces_the_divergence_on_its_rows(run_stages, make_rows, tiny_model):
    base, general = copy.deepcopy(tiny_model).eval(), make_rows(8, 1)
    ends = [
        run_stages(copy.deepcopy(tiny_model), given, [make_rows(24)], {"general": general}, learning_rate=3e-3)[
            0
        ].eval()
        for given in ({}, {"kl": made(rows=8, strength=5.0)})
    ]
    free, held = (divergence(model, base, general) for model in ends)
    assert held < free / 2


def test_each_step_draws_other_rows_and_a_resumed_step_the_same(make_rows, tiny_model):
    def drawn(mitigation):
        return [row.id for row in mitigation._sample_rows()]

    first, other = made(rows=3), made(rows=3)
    rows = {"general": make_rows(40, 1)}
    from harness.types import Stage

    first.on_stage_start(Stage("one", ()), tiny_model, rows, seed=1)
    before = drawn(first)
    first.on_step_end(tiny_model, 1e-3)
    after = drawn(first)
    assert before != after
    other.on_stage_start(Stage("one", ()), tiny_model, rows, seed=2)
    other.load_state_dict(first.state_dict())
    assert drawn(other) == after


def test_base_copy_shares_frozen_weights_and_is_created_once(tiny_model):
    from harness_mitigations import base_model

    tiny_model.model.embed_tokens.weight.requires_grad_(False)
    base_model.snapshot_base(tiny_model)
    base_model.snapshot_base(tiny_model)
    with base_model.frozen_base_model(tiny_model) as one, base_model.frozen_base_model(tiny_model) as two:
        assert one is two
        assert one.model.embed_tokens.weight is tiny_model.model.embed_tokens.weight
        assert one.model.norm.weight is not tiny_model.model.norm.weight
        assert not any(weight.requires_grad for weight in one.parameters())
    assert tiny_model.model.norm.weight.requires_grad


def test_disabling_the_adapter_does_not_change_requires_grad(tiny_model):
    model = lora().prepare_model(tiny_model, seed=0)
    first = next(weight for weight in model.parameters() if weight.requires_grad)
    first.requires_grad_(False)
    with save.adapter_disabled(model):
        pass
    assert not first.requires_grad


def test_a_missing_base_copy_is_an_error(tiny_model):
    from harness_mitigations import base_model

    with pytest.raises(HarnessError, match="the base model was not copied"), base_model.frozen_base_model(tiny_model):
        pass


def test_general_without_a_source_or_rows_is_rejected(tiny_model):
    from harness.types import Stage

    with pytest.raises(HarnessError, match=r"mitigations\.kl\.source: no source is given"):
        made(source=None).check_compatible({})
    made(on="task", source=None).check_compatible({})
    with pytest.raises(HarnessError, match=r"'general' has no row"):
        made().on_stage_start(Stage("one", ()), tiny_model, {"general": ()}, seed=0)


@pytest.mark.parametrize("on", ["general", "task"])
def test_gradient_checkpointing_gives_the_same_gradient(on, run_stages, make_rows, tiny_model):
    moved, spies = moved_adapter(tiny_model), []
    for again in (False, True):
        spy = Spy()
        given = {"kl": made(on=on, strength=3.0), "spy": spy}
        sources = {"general": make_rows(5, 1)}
        run_stages(copy.deepcopy(moved), given, [make_rows(4)], sources, gradient_checkpointing=again)
        spies.append(spy.gradients[0])
    assert apart(*spies) < 1e-6


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_terms_of_several_processes_sum_to_that_of_one(processes, make_rows, tiny_model, monkeypatch):
    from harness_mitigations import kl as module

    from harness.types import Stage

    moved, rows = moved_adapter(tiny_model), {"general": make_rows(9, 1)}

    def added(rank, of):
        monkeypatch.setattr(module, "_rank_and_world_size", lambda: (rank, of))
        mitigation = made(rows=5)
        mitigation.on_stage_start(Stage("one", ()), moved, rows, seed=1)
        value = mitigation.extra_loss(moved, 0.5)
        assert mitigation.extra_loss(moved, 0.5) is None  # once an update, with its first micro-batch
        return 0.0 if value is None else float(value.detach())

    assert sum(added(rank, processes) for rank in range(processes)) == pytest.approx(added(0, 1), rel=1e-5)
