"""EWC: the Fisher against closed forms and enumeration, the pull against its written-out penalty."""

from __future__ import annotations

import copy
import itertools
from types import SimpleNamespace

import pytest
import torch
from harness_mitigations import ewc
from harness_mitigations.ewc import Ewc, fisher, pull
from torch import nn

from harness.contracts import Part, Row, Stage, StageData
from harness.errors import HarnessError
from harness.train import train

torch.set_num_threads(1)
STAGE = Stage("first", (Part("source", "domain"),), {})


def row(ids, start=1, name="row"):
    """A row that trains its tokens from `start` on."""
    return Row(name, "source", tuple(ids), (-100,) * start + tuple(ids[start:]))


class Softmax(nn.Module):
    """Softmax regression as a language model: the next token's logits are a linear map of this token's features."""

    def __init__(self, features):
        super().__init__()
        self.register_buffer("features", features)  # (V, D)
        self.linear = nn.Linear(features.shape[1], features.shape[0], bias=False)

    def forward(self, input_ids, use_cache, logits_to_keep):
        return SimpleNamespace(logits=self.linear(self.features[input_ids][:, logits_to_keep]))


@pytest.fixture
def softmax():
    torch.manual_seed(0)
    return Softmax(torch.randn(5, 3)).double()


def test_sampled_fisher_of_softmax_regression_is_its_closed_form(softmax):
    # One trained token a row: F[c, d] = mean over rows of p_c (1 - p_c) x_d^2, the Hessian's diagonal.
    contexts = [0, 1, 2, 3, 4]
    x = softmax.features[contexts]
    p = softmax.linear(x).softmax(-1).detach()
    expected = torch.einsum("nc,nd->cd", p * (1 - p), x**2) / len(contexts)
    rows = [row((context, 0)) for context in contexts] * 4000
    found = fisher(softmax, rows, labels="sampled", generator=torch.Generator().manual_seed(1))["linear.weight"]
    assert float((found / expected - 1).abs().max()) < 0.06
    assert float((found.sum() / expected.sum() - 1).abs()) < 0.015


def test_empirical_fisher_of_softmax_regression_is_its_closed_form(softmax):
    pairs = [(0, 1), (2, 2), (4, 0), (1, 3)]
    expected = torch.zeros(5, 3, dtype=torch.float64)
    for context, target in pairs:
        x = softmax.features[context]
        residual = nn.functional.one_hot(torch.tensor(target), 5) - softmax.linear(x).softmax(-1)
        expected += torch.outer(residual, x).detach() ** 2 / len(pairs)
    found = fisher(softmax, [row(pair) for pair in pairs], labels="empirical")["linear.weight"]
    assert torch.allclose(found.double(), expected, rtol=1e-5)


def test_sampled_fisher_averages_to_the_enumerated_one(softmax):
    # Two trained tokens: enumerate both, each with its probability; the sum is squared, not each term.
    example = row((3, 1, 0))
    expected = torch.zeros(5, 3, dtype=torch.float64)
    log_p = [softmax.linear(softmax.features[token]).log_softmax(-1) for token in (3, 1)]
    for one, two in itertools.product(range(5), repeat=2):
        likelihood = log_p[0][one] + log_p[1][two]
        (gradient,) = torch.autograd.grad(likelihood, softmax.linear.weight, retain_graph=True)
        expected += likelihood.exp().detach() * gradient**2
    found = fisher(softmax, [example] * 20000, labels="sampled", generator=torch.Generator().manual_seed(2))
    assert float((found["linear.weight"] / expected - 1).abs().max()) < 0.06


def manual_empirical(model, rows):
    model = copy.deepcopy(model).eval()
    total = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    for example in rows:
        model.zero_grad()
        labels = torch.tensor([example.labels])
        logits = model(torch.tensor([example.input_ids])).logits
        nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum").backward()
        for name, weight in model.named_parameters():
            total[name] += weight.grad**2 / len(rows)
    return total


ROWS = [row((7, 8, 9, 10, 11), 2), row((20, 21, 22), 1), row((30, 31, 32, 33), 3), row((40, 41, 42, 43), 2)]


def test_empirical_fisher_is_the_mean_of_squared_row_gradients_over_all_rows(tiny_model):
    found, expected = fisher(tiny_model, ROWS, labels="empirical"), manual_empirical(tiny_model, ROWS)
    assert found.keys() == expected.keys()
    for name in found:
        assert torch.allclose(found[name], expected[name], rtol=1e-3, atol=1e-9), name


def test_fisher_of_rows_is_no_square_of_their_mean(tiny_model):
    alone = [fisher(tiny_model, [one], labels="empirical")["model.norm.weight"] for one in ROWS]
    together = fisher(tiny_model, ROWS, labels="empirical")["model.norm.weight"]
    assert torch.allclose(together, sum(alone) / len(ROWS), rtol=1e-4)


def test_tied_weights_stand_once_and_frozen_ones_not_at_all(tiny_model):
    tiny_model.model.layers[0].requires_grad_(False)
    found = fisher(tiny_model, ROWS, labels="empirical")
    assert "model.embed_tokens.weight" in found
    assert "lm_head.weight" not in found
    assert not any(name.startswith("model.layers.0.") for name in found)
    assert found.keys() == {name for name, weight in tiny_model.named_parameters() if weight.requires_grad}


def test_prompts_take_no_part(tiny_model):
    last = fisher(tiny_model, [row((7, 8, 9, 10), 3)], labels="empirical")["model.norm.weight"]
    masked = Row("masked", "source", (7, 8, 9, 10), (7, -100, -100, 10))  # a row's first token is never predicted
    assert torch.equal(last, fisher(tiny_model, [masked], labels="empirical")["model.norm.weight"])


def test_fisher_is_measured_without_dropout_and_leaves_no_trace(tiny_model):
    for layer in tiny_model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    tiny_model.train()
    one, two = (fisher(tiny_model, ROWS, labels="empirical") for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert tiny_model.training
    assert all(weight.grad is None for weight in tiny_model.parameters())


def test_squares_are_summed_in_float32_for_a_bfloat16_model(tiny_model):
    found = fisher(tiny_model.bfloat16(), ROWS, labels="empirical")
    assert {importance.dtype for importance in found.values()} == {torch.float32}


def test_fisher_without_a_trainable_weight_or_without_a_row_is_an_error(tiny_model):
    with pytest.raises(HarnessError, match="no row"):
        fisher(tiny_model, [], labels="empirical")
    with pytest.raises(HarnessError, match="no weight of the model is trainable"):
        fisher(tiny_model.requires_grad_(False), ROWS, labels="empirical")


# -- the pull ---------------------------------------------------------------------------------------------------------


def test_pull_is_the_gradient_of_the_written_out_penalty():
    torch.manual_seed(3)
    shapes = [(4, 3), (5,), ()]
    weights = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    anchors = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    importances = [torch.rand(shape, dtype=torch.float64) for shape in shapes]

    def penalty(*weights):
        return sum(
            0.35 * (f * (w - a) ** 2).sum() for w, a, f in zip(weights, anchors, importances, strict=True)
        )  # strength 0.7

    class Pulled(torch.autograd.Function):
        @staticmethod
        def forward(context, *weights):
            gradients = [torch.zeros_like(weight) for weight in weights]
            value = pull(weights, gradients, anchors, importances, 0.7)
            context.save_for_backward(*gradients)
            return penalty(*weights), value

        @staticmethod
        def backward(context, outer, _):
            return tuple(outer * gradient for gradient in context.saved_tensors)

    assert torch.autograd.gradcheck(lambda *weights: Pulled.apply(*weights)[0], weights)
    expected = torch.autograd.grad(penalty(*weights), weights)
    gradients = [torch.ones_like(weight) for weight in weights]
    value = pull(weights, gradients, anchors, importances, 0.7)
    assert float(value) == pytest.approx(float(penalty(*weights).detach()), rel=1e-6)
    assert not value.requires_grad
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert torch.allclose(gradient, 1 + wanted)


def test_descent_on_a_quadratic_task_reaches_the_closed_form_optimum():
    # Task 1/2 (theta - theta1)' H (theta - theta1): the optimum is (H + lambda F)^-1 (H theta1 + lambda F theta0).
    torch.manual_seed(4)
    root = torch.randn(6, 6, dtype=torch.float64)
    h, f = root @ root.T / 6 + torch.eye(6, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    start, target, strength = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64), 3.0
    theta = start.clone()
    for _ in range(2000):
        gradient = h @ (theta - target)
        pull([theta], [gradient], [start], [f], strength)
        theta -= 0.1 * gradient
    expected = torch.linalg.solve(h + strength * torch.diag(f), h @ target + strength * f * start)
    assert torch.allclose(theta, expected, atol=1e-12)


# -- the mitigation ---------------------------------------------------------------------------------------------------


def make(**options):
    defaults = {"source": "kept", "strength": 1.0, "labels": "sampled", "samples": 64, "normalise": True, "decay": 1.0}
    return Ewc(**{**defaults, **options})


def begun(model, **options):
    made = make(**options)
    made.begin_stage(STAGE, model, {"kept": ROWS})
    return made


def test_the_base_is_protected_from_the_first_stage_on_and_kept_by_the_next(tiny_model):
    made = begun(tiny_model)
    assert torch.equal(made.anchor["model.norm.weight"], tiny_model.model.norm.weight)
    first = {name: importance.clone() for name, importance in made.importance.items()}
    made.begin_stage(Stage("second", ()), tiny_model, {})
    assert all(torch.equal(first[name], made.importance[name]) for name in first)


@pytest.mark.parametrize("labels", ["sampled", "empirical"])
def test_normalised_importances_have_mean_one(labels, tiny_model):
    made = begun(tiny_model, labels=labels)
    everything = torch.cat([importance.flatten() for importance in made.importance.values()])
    assert float(everything.mean()) == pytest.approx(1, rel=1e-4)
    raw = begun(tiny_model, labels="empirical", normalise=False).importance
    assert torch.allclose(raw["model.norm.weight"], fisher(tiny_model, ROWS, labels="empirical")["model.norm.weight"])


def test_importances_depend_on_the_seed_and_the_stage_alone(tiny_model):
    def importance(seed, draws=0):
        torch.manual_seed(seed)
        torch.rand(draws)
        return begun(tiny_model, samples=2).importance["model.norm.weight"]

    assert torch.equal(importance(1), importance(1, draws=9))
    assert not torch.equal(importance(1), importance(2))


def test_weight_pull_adds_to_the_gradients_and_returns_the_penalty(tiny_model, monkeypatch):
    monkeypatch.setattr(ewc, "GROUP", 3000)  # several groups, and weights larger than one
    made = begun(tiny_model, strength=0.5)
    expected = {}
    with torch.no_grad():
        for name, weight in tiny_model.named_parameters():
            weight.grad = torch.ones_like(weight)
            weight.add_(0.01 * torch.randn_like(weight))
            expected[name] = 1 + 0.5 * made.importance[name] * (weight - made.anchor[name])
    value = made.weight_pull(tiny_model)
    total = sum(
        0.25 * float((made.importance[name] * (weight.detach() - made.anchor[name]) ** 2).sum())
        for name, weight in tiny_model.named_parameters()
    )
    assert float(value) == pytest.approx(total, rel=1e-4)
    for name, weight in tiny_model.named_parameters():
        assert torch.allclose(weight.grad, expected[name], atol=1e-6), name


def test_a_weight_without_a_gradient_is_left_alone(tiny_model):
    made = begun(tiny_model)
    tiny_model.model.norm.weight.grad = torch.zeros(32)
    made.weight_pull(tiny_model)
    assert [name for name, weight in tiny_model.named_parameters() if weight.grad is not None] == ["model.norm.weight"]


def test_a_finished_stage_adds_its_importances_and_moves_the_anchor_for_the_next(tiny_model):
    made = begun(tiny_model, labels="empirical", normalise=False, decay=0.25)
    first = made.importance["model.norm.weight"].clone()
    with torch.no_grad():
        tiny_model.model.norm.weight.mul_(1.5)
    made.end_stage(STAGE, tiny_model, ROWS[:2])
    made.begin_stage(Stage("second", ()), tiny_model, {})
    second = fisher(tiny_model, ROWS[:2], labels="empirical")["model.norm.weight"]
    assert torch.allclose(made.importance["model.norm.weight"], 0.25 * first + second)
    assert torch.equal(made.anchor["model.norm.weight"], tiny_model.model.norm.weight)
    assert made.anchor["model.norm.weight"] is not tiny_model.model.norm.weight


def test_a_source_without_rows_is_an_error(tiny_model):
    with pytest.raises(HarnessError, match=r"mitigations\.ewc\.source: 'kept' has no row"):
        make().begin_stage(STAGE, tiny_model, {"other": ROWS})


def test_state_goes_round(tiny_model, tmp_path):
    made = begun(tiny_model)
    torch.save(made.state_dict(), tmp_path / "state.pt")
    again = make()
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    with torch.no_grad():
        tiny_model.model.norm.weight.add_(0.1)
    pulled = []
    for one in (made, again):
        tiny_model.model.norm.weight.grad = torch.zeros(32)
        one.weight_pull(tiny_model)
        pulled.append(tiny_model.model.norm.weight.grad)
    assert torch.equal(*pulled)
    assert float(pulled[0].abs().max()) > 0


# -- in training ------------------------------------------------------------------------------------------------------

SETTINGS = {
    "engine": "transformers",
    "epochs": 1,
    "steps": None,
    "learning_rate": 1e-3,
    "batch_size": 2,
    "accumulation": 1,
    "scheduler": "constant",
    "warmup_ratio": 0.0,
    "weight_decay": 0.1,
    "max_grad_norm": 1.0,
    "max_length": 64,
    "packing": False,
    "precision": "auto",
    "gradient_checkpointing": False,
    "log_steps": 1,
    "save_steps": None,
}


def trained(model, tokenizer, folder, mitigation, **settings):
    """A copy of the model after 10 rounds of one batch of four rows, and the log."""
    model = copy.deepcopy(model)
    rows = tuple(row((50 + i, 60 + i, 70 + i, 80 + i), 1) for i in range(4))
    order = tuple((i % 4,) for i in range(40))
    stage = Stage("s", (), {**SETTINGS, **settings})
    torch.manual_seed(0)
    if mitigation is not None:
        mitigation.begin_stage(stage, model, {"kept": ROWS})
    data = StageData(stage, rows, order, (40,), {}, 1.0)
    result = train(model, tokenizer, data, {"ewc": mitigation} if mitigation else {}, seed=0, folder=folder)
    return dict(model.named_parameters()), result.log


def distance(one, other):
    return float(sum(((one[name] - other[name]).detach() ** 2).sum() for name in one) ** 0.5)


def test_strength_zero_is_plain_training_bit_for_bit(tiny_model, tokenizer, tmp_path):
    plain, log = trained(tiny_model, tokenizer, tmp_path, None)
    idle, idle_log = trained(tiny_model, tokenizer, tmp_path, make(strength=0.0))
    assert all(torch.equal(plain[name], idle[name]) for name in plain)
    assert [entry["loss"] for entry in log] == [entry["loss"] for entry in idle_log]


def test_penalty_is_logged_and_a_stronger_pull_stays_nearer(tiny_model, tokenizer, tmp_path):
    made = make(strength=10.0)
    plain, _ = trained(tiny_model, tokenizer, tmp_path, None)
    held, log = trained(tiny_model, tokenizer, tmp_path, made)

    def drift(weights):
        return sum(float((made.importance[n] * (w - made.anchor[n]).detach() ** 2).sum()) for n, w in weights.items())

    assert log[0]["penalty/ewc"] == 0
    assert log[-1]["penalty/ewc"] > 0
    assert drift(held) < 0.1 * drift(plain)


def test_an_update_with_a_pull_does_not_depend_on_accumulation(tiny_model, tokenizer, tmp_path):
    runs = [
        trained(tiny_model, tokenizer, tmp_path, make(strength=2.0), batch_size=batch, accumulation=4 // batch)
        for batch in (4, 1)
    ]
    (one, its), (other, others) = runs
    assert [entry["penalty/ewc"] for entry in its] == pytest.approx(
        [entry["penalty/ewc"] for entry in others], rel=1e-3
    )
    assert distance(one, other) < 1e-4


def test_with_an_adapter_the_pull_acts_on_the_adapter(tiny_model, tokenizer, tmp_path):
    from harness_mitigations.lora import Lora

    torch.manual_seed(0)
    model = Lora(4, None, 0.0, "all-linear").model(tiny_model)
    made = make()
    _, log = trained(model, tokenizer, tmp_path, made, learning_rate=1e-2)
    assert made.importance
    assert all("lora_" in name for name in made.importance)
    assert log[-1]["penalty/ewc"] > 0
