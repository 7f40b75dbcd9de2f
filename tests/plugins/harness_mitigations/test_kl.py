"""KL: against torch.distributions, on general rows and on the task, whatever the accumulation."""

from __future__ import annotations

import copy

import pytest
import torch
from harness_mitigations import kl
from harness_mitigations.base_model import frozen_base_model, snapshot_base
from harness_mitigations.kl import build_kl_mitigation, token_kl
from harness_mitigations.lora import Lora
from torch.distributions import Categorical, kl_divergence

from harness.errors import HarnessError
from harness.interfaces.mitigation import Mitigation
from harness.model import chunked_logits, save


def create_kl(**options):
    defaults = {"on": "general", "source": "general", "rows": 4, "strength": 1.0, "direction": "forward"}
    more = {"temperature": 1.0, "drop_target": False, "answers": "data", "prompts": "data", "writing": {}}
    return build_kl_mitigation(**(defaults | more | options))


def create_lora(**options):
    defaults = {"rank": 4, "alpha": None, "dropout": 0.0, "target": "all-linear", "rslora": False, "dora": False}
    return Lora(
        **(defaults | {"start": "zero", "source": None, "samples": 8, "loraplus_ratio": 1, "parameters": ()} | options)
    )


@pytest.fixture
def logit_pair():
    torch.manual_seed(0)
    return 3 * torch.randn(5, 11), 3 * torch.randn(5, 11)


class GradientRecorder(Mitigation):
    """Record the gradients and the weights of each step."""

    priority = 1000

    def __init__(self):
        self.gradients, self.weights = [], []

    def add_weight_penalty(self, model):
        self.gradients.append({n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None})

    def on_step_end(self, model, learning_rate):
        self.weights.append({n: w.detach().clone() for n, w in model.named_parameters() if w.requires_grad})


def max_difference(one, two):
    assert one.keys() == two.keys()
    return max(float((one[name] - two[name]).detach().abs().max()) for name in one)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_token_kl_equals_the_divergence_of_torch_distributions(direction, logit_pair):
    ours, base = logit_pair
    p, q = Categorical(logits=base), Categorical(logits=ours)
    expected = kl_divergence(p, q) if direction == "forward" else kl_divergence(q, p)
    assert torch.allclose(token_kl(ours, base, direction), expected, rtol=1e-5)


def test_forward_and_reverse_differ_and_are_positive(logit_pair):
    forward, reverse = token_kl(*logit_pair, "forward"), token_kl(*logit_pair, "reverse")
    assert float((forward - reverse).abs().min()) > 0.01
    assert float(torch.minimum(forward, reverse).min()) > 0


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_equal_distributions_give_zero_and_no_gradient(direction, logit_pair):
    ours = logit_pair[0].clone().requires_grad_()
    value = token_kl(ours, logit_pair[0] + 2.5, direction)  # logits are the same up to a constant
    value.sum().backward()
    assert float(value.detach().abs().max()) < 1e-6
    assert float(ours.grad.abs().max()) < 1e-6


def test_gradient_of_the_forward_divergence_is_the_difference_of_the_distributions(logit_pair):
    ours = logit_pair[0].clone().requires_grad_()
    token_kl(ours, logit_pair[1], "forward").sum().backward()
    assert torch.allclose(ours.grad, ours.softmax(-1).detach() - logit_pair[1].softmax(-1), atol=1e-6)


def test_a_high_temperature_approaches_half_the_squared_distance_of_centered_logits(logit_pair):
    ours, base = (logits.double() - logits.double().mean(-1, keepdim=True) for logits in logit_pair)
    expected = (ours - base).square().mean(-1) / 2
    assert torch.allclose(token_kl(ours.float(), base.float(), "forward", 200.0).double(), expected, rtol=0.05)


@pytest.mark.parametrize("on", ["general", "task"])
@pytest.mark.parametrize("adapter", [True, False])
def test_divergence_is_zero_at_the_first_step_and_positive_at_the_second(
    on, adapter, run_stages, make_rows, tiny_model
):
    given = {"kl": create_kl(on=on)} | ({"lora": create_lora()} if adapter else {})
    _, (log,) = run_stages(tiny_model, given, [make_rows(8)], {"general": make_rows(6, 1)})
    assert abs(log[0]["penalty/kl"]) < 1e-6
    assert log[1]["penalty/kl"] > 1e-4


@pytest.mark.parametrize("on", ["general", "task"])
@pytest.mark.parametrize("adapter", [True, False])
def test_base_model_is_the_one_before_the_first_stage_in_every_stage(on, adapter, run_stages, make_rows, tiny_model):
    base = copy.deepcopy(tiny_model).eval()
    given = {"kl": create_kl(on=on, rows=100)} | ({"lora": create_lora()} if adapter else {})
    rows, general = make_rows(4), make_rows(6, 1)
    seen = {}

    def watch(number, model):
        if number == 2:
            seen["expected"] = divergence(model.eval(), base, rows if on == "task" else general)

    _, (_, log) = run_stages(tiny_model, given, [make_rows(12, 5), rows], {"general": general}, watch=watch)
    assert seen["expected"] > 1e-4
    assert log[0]["penalty/kl"] == pytest.approx(seen["expected"], rel=1e-4)


def divergence(model, base, rows):
    """Return the mean over the trained tokens of all rows, row by row, from full logits."""
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row.input_ids])
            at = [i - 1 for i, label in enumerate(row.labels) if i and label != -100]
            total += float(token_kl(model(ids).logits[0, at], base(ids).logits[0, at], "forward").sum())
            count += len(at)
    return total / count


@pytest.mark.slow
@pytest.mark.parametrize("on", ["general", "task"])
@pytest.mark.parametrize("accumulation", [4, 8])
def test_a_step_does_not_depend_on_accumulation(on, accumulation, run_stages, make_rows, tiny_model):
    model = model_with_trained_adapter(tiny_model)
    recorders = []
    for batch, steps in ((8, 1), (8 // accumulation, accumulation)):
        recorder = GradientRecorder()
        given = {"kl": create_kl(on=on, strength=3.0), "spy": recorder}
        sources = {"general": make_rows(9, 1)}
        run_stages(
            copy.deepcopy(model),
            given,
            [make_rows(8)],
            sources,
            batch_size=batch,
            accumulation=steps,
            max_grad_norm=1e9,
        )
        recorders.append(recorder)
    assert len(recorders[0].gradients) == len(recorders[1].gradients) == 1
    assert max_difference(recorders[0].gradients[0], recorders[1].gradients[0]) < 1e-6


def remove_tokens(logits, tokens):
    """Return logits (N, V - 1) without the token of each position."""
    others = torch.arange(logits.shape[1]) != tokens[:, None]
    return logits[others].view(len(logits), -1)


def model_with_trained_adapter(tiny_model):
    """Return the tiny model with an adapter that changes it."""
    torch.manual_seed(4)
    model = create_lora().prepare_model(tiny_model, seed=0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    return model


@pytest.mark.parametrize("tokens_per_chunk", [3, 10_000])
@pytest.mark.parametrize(("on", "drop_target"), [("general", False), ("task", False), ("task", True)])
def test_gradient_equals_that_of_the_mean_computed_row_by_row(
    on, drop_target, tokens_per_chunk, run_stages, make_rows, tiny_model, monkeypatch
):
    sizes = []

    def recording_token_kl(logits, *arguments):
        sizes.append(len(logits))
        return token_kl(logits, *arguments)

    monkeypatch.setattr(chunked_logits, "MAX_LOGIT_BYTES", tokens_per_chunk * 4 * tiny_model.config.vocab_size)
    monkeypatch.setattr(kl, "token_kl", recording_token_kl)
    base, model = copy.deepcopy(tiny_model).eval(), model_with_trained_adapter(tiny_model)
    rows, general = make_rows(4), make_rows(4, 1)
    recorders = {}
    for strength in (0.0, 2.0):
        recorders[strength] = GradientRecorder()
        mitigation = create_kl(on=on, strength=strength, rows=4, drop_target=drop_target)
        given = {"kl": mitigation, "spy": recorders[strength]}
        run_stages(copy.deepcopy(model), given, [rows], {"general": general}, max_grad_norm=1e9)
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    total, count = 0.0, 0
    for row in rows if on == "task" else general:
        ids = torch.tensor([row.input_ids])
        at = [i - 1 for i, label in enumerate(row.labels) if i and label != -100]
        ours, theirs = model(ids).logits[0, at], base(ids).logits[0, at].detach()
        if drop_target:
            ours, theirs = (remove_tokens(logits, ids[0, at[0] + 1 :]) for logits in (ours, theirs))
        total = total + token_kl(ours, theirs, "forward").sum()
        count += len(at)
    expected = torch.autograd.grad(2.0 * total / count, list(weights.values()))
    for (name, gradient), plain in zip(
        zip(weights, expected, strict=True), recorders[0.0].gradients[0].values(), strict=True
    ):
        assert torch.allclose(recorders[2.0].gradients[0][name] - plain, gradient, atol=1e-6), name
    assert max(sizes) == min(tokens_per_chunk, count)


def test_strength_zero_equals_plain_training_bit_for_bit(run_stages, make_rows, tiny_model):
    plain, _ = run_stages(copy.deepcopy(tiny_model), {}, [make_rows(8)])
    idle, _ = run_stages(
        copy.deepcopy(tiny_model), {"kl": create_kl(strength=0.0)}, [make_rows(8)], {"general": make_rows(3)}
    )
    assert max_difference(dict(plain.named_parameters()), dict(idle.named_parameters())) == 0


def test_the_penalty_reduces_the_divergence_on_its_rows(run_stages, make_rows, tiny_model):
    base, general = copy.deepcopy(tiny_model).eval(), make_rows(8, 1)
    models = [
        run_stages(copy.deepcopy(tiny_model), given, [make_rows(24)], {"general": general}, learning_rate=3e-3)[
            0
        ].eval()
        for given in ({}, {"kl": create_kl(rows=8, strength=5.0)})
    ]
    unpenalized, penalized = (divergence(model, base, general) for model in models)
    assert penalized < unpenalized / 2


def test_each_step_draws_other_rows_and_a_resumed_step_the_same(make_rows, tiny_model):
    def row_ids(mitigation):
        return [row.id for row in mitigation._sample_rows()]

    first, restored = create_kl(rows=3), create_kl(rows=3)
    rows = {"general": make_rows(40, 1)}
    from harness.types import Stage

    first.on_stage_start(Stage("one", ()), tiny_model, rows, seed=1)
    before = row_ids(first)
    first.on_step_end(tiny_model, 1e-3)
    after = row_ids(first)
    assert before != after
    restored.on_stage_start(Stage("one", ()), tiny_model, rows, seed=2)
    restored.load_state_dict(first.state_dict())
    assert row_ids(restored) == after


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
    model = create_lora().prepare_model(tiny_model, seed=0)
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
        create_kl(source=None).check_compatible({})
    create_kl(on="task", source=None).check_compatible({})
    with pytest.raises(HarnessError, match=r"'general' has no row"):
        create_kl().on_stage_start(Stage("one", ()), tiny_model, {"general": ()}, seed=0)


@pytest.mark.parametrize("on", ["general", "task"])
def test_gradient_checkpointing_gives_the_same_gradient(on, run_stages, make_rows, tiny_model):
    model, recorders = model_with_trained_adapter(tiny_model), []
    for checkpointing in (False, True):
        recorder = GradientRecorder()
        given = {"kl": create_kl(on=on, strength=3.0), "spy": recorder}
        sources = {"general": make_rows(5, 1)}
        run_stages(copy.deepcopy(model), given, [make_rows(4)], sources, gradient_checkpointing=checkpointing)
        recorders.append(recorder.gradients[0])
    assert max_difference(*recorders) < 1e-6


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_terms_of_several_processes_sum_to_that_of_one(processes, make_rows, tiny_model, monkeypatch):
    from harness_mitigations import kl as kl_module

    from harness.types import Stage

    model, rows = model_with_trained_adapter(tiny_model), {"general": make_rows(9, 1)}

    def term(rank, world_size):
        monkeypatch.setattr(kl_module, "_rank_and_world_size", lambda: (rank, world_size))
        mitigation = create_kl(rows=5)
        mitigation.on_stage_start(Stage("one", ()), model, rows, seed=1)
        value = mitigation.extra_loss(model, 0.5)
        assert mitigation.extra_loss(model, 0.5) is None  # once a step, with its first micro-batch
        return 0.0 if value is None else float(value.detach())

    assert sum(term(rank, processes) for rank in range(processes)) == pytest.approx(term(0, 1), rel=1e-5)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_copy_of_an_untrained_model_has_its_outputs(tiny_model, bfloat16):
    with torch.no_grad():
        for weight in tiny_model.parameters():
            weight.mul_(4).copy_(weight.bfloat16())
    inputs = torch.arange(5, 35)[None]
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16), torch.no_grad():
        snapshot_base(tiny_model)
        with frozen_base_model(tiny_model) as base:
            assert base is not tiny_model
            assert torch.equal(base(inputs).logits, tiny_model(inputs).logits)
    assert (base.model.layers[0].mlp.up_proj.weight.dtype is torch.bfloat16) == bfloat16


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_value_and_gradient_equal_those_of_autograd(direction, temperature, logit_pair):
    ours, base = (logits.double() for logits in logit_pair)
    ours.requires_grad_()
    log_p, log_q = ((logits / temperature).log_softmax(-1) for logits in (ours, base))
    terms = log_q.exp() * (log_q - log_p) if direction == "forward" else log_p.exp() * (log_p - log_q)
    expected = terms.sum(-1) * temperature**2
    weights = torch.linspace(0.5, 2.0, len(expected), dtype=torch.float64)
    (expected_gradient,) = torch.autograd.grad((weights * expected).sum(), ours)
    single = logit_pair[0].clone().requires_grad_()
    value = token_kl(single, logit_pair[1], direction, temperature)
    (gradient,) = torch.autograd.grad((weights.float() * value).sum(), single)
    assert torch.allclose(value.double(), expected, rtol=1e-5)
    assert torch.allclose(gradient.double(), expected_gradient, atol=1e-6)


def test_gradient_has_the_dtype_of_the_logits(logit_pair):
    ours = logit_pair[0].bfloat16().requires_grad_()
    value = token_kl(ours, logit_pair[1].bfloat16(), "forward")
    value.sum().backward()
    assert (value.dtype, ours.grad.dtype) == (torch.float32, torch.bfloat16)


TARGETS = torch.tensor([0, 10, 4, 4, 7])


@pytest.mark.parametrize("block_size", [1, 2 * 11, 10_000])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_without_its_target_value_and_gradient_equal_those_of_the_other_tokens(
    direction, temperature, block_size, logit_pair, monkeypatch
):
    monkeypatch.setattr("harness_mitigations.kl_divergence.CPU_BLOCK_SIZE", block_size)
    ours, base = (logits.double() for logits in logit_pair)
    ours.requires_grad_()
    log_p, log_q = ((remove_tokens(logits, TARGETS) / temperature).log_softmax(-1) for logits in (ours, base))
    terms = log_q.exp() * (log_q - log_p) if direction == "forward" else log_p.exp() * (log_p - log_q)
    expected = terms.sum(-1) * temperature**2
    weights = torch.linspace(0.5, 2.0, len(expected), dtype=torch.float64)
    (expected_gradient,) = torch.autograd.grad((weights * expected).sum(), ours)
    single = logit_pair[0].clone().requires_grad_()
    value = token_kl(single, logit_pair[1], direction, temperature, TARGETS)
    (gradient,) = torch.autograd.grad((weights.float() * value).sum(), single)
    assert torch.allclose(value.double(), expected, rtol=1e-5)
    assert torch.allclose(gradient.double(), expected_gradient, atol=1e-6)
    assert not gradient.gather(1, TARGETS[:, None]).any(), "the target's logit is left to the task"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("target_logits", [(90.0, 90.0), (1e4, 0.0), (-1e4, 1e4), (0.0, -torch.inf)])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_without_its_target_nothing_depends_on_how_likely_the_target_is(direction, target_logits, dtype, logit_pair):
    def compute(ours, base):
        ours = ours.clone().requires_grad_()
        value = token_kl(ours, base, direction, 1.0, TARGETS)
        return value.detach(), torch.autograd.grad(value.sum(), ours)[0]

    pair = [logits.to(dtype) for logits in logit_pair]
    moved = [logits.scatter(1, TARGETS[:, None], target) for logits, target in zip(pair, target_logits, strict=True)]
    assert float(moved[0].float().softmax(-1).gather(1, TARGETS[:, None]).min()) == 1 or target_logits[0] <= 0
    (value, gradient), (expected, expected_gradient) = compute(*moved), compute(*pair)
    assert torch.equal(value, expected)
    assert torch.equal(gradient, expected_gradient)
    assert value.isfinite().all()
    assert float(value.min()) > 0


def test_without_its_target_a_model_that_only_raised_the_target_has_no_divergence(logit_pair):
    base = logit_pair[0]
    ours = (base - 0.5).scatter_add(1, TARGETS[:, None], torch.full((5, 1), 6.0)).requires_grad_()
    assert float(token_kl(ours, base, "forward").detach().min()) > 0.01
    value = token_kl(ours, base, "forward", 1.0, TARGETS)
    value.sum().backward()
    assert float(value.detach().abs().max()) < 1e-6
    assert float(ours.grad.abs().max()) < 1e-6


def test_dropping_targets_of_general_rows_is_rejected():
    with pytest.raises(HarnessError, match=r"mitigations\.kl\.drop_target: the task does not train") as error:
        create_kl(on="general", drop_target=True).check_compatible({})
    create_kl(on="task", source=None, drop_target=True).check_compatible({})
    assert error.value.hint == 'set mitigations.kl.on to "task", or remove drop_target'


def test_memory_of_rows_that_are_not_written_yet_has_room_for_the_longest_answers(make_rows):
    writing = {"prompts": 7, "max_new_tokens": 90, "temperature": 1.0, "top_p": 1.0, "max_repetition": 0.2}
    rows = {"general": make_rows(9, 1)}
    of_data, of_model = create_kl(rows=3), create_kl(rows=3, answers="model", writing=writing)
    assert of_model.extra_tokens(rows) == of_data.extra_tokens(rows) + 3 * 90
    assert (of_model.unmixed_sources, of_model.unmixed_limit) == (("general",), 7)
    assert of_data.unmixed_sources == ()
