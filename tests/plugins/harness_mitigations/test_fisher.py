"""The Fisher against closed forms, enumeration, per-sample gradients, and Avalanche."""

from __future__ import annotations

import copy
import itertools
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from harness_mitigations import fisher as fisher_module
from harness_mitigations.adapted_weights import find_trainable_weights
from harness_mitigations.fisher import classes_at
from torch import nn

from harness.errors import HarnessError
from harness.types import TokenizedExample

sys.path.insert(0, str(Path(__file__).parent))
import avalanche_oracle


def create_row(ids, start=1, name="row"):
    """Return a row whose tokens from `start` on are trained."""
    return TokenizedExample(name, "source", tuple(ids), (-100,) * start + tuple(ids[start:]))


def seeded_generator(seed):
    return torch.Generator().manual_seed(seed)


def compute_fisher(model, rows, **options):
    return fisher_module.compute_diagonal_fisher(model, find_trainable_weights(model, "test"), rows, **options)


class Softmax(nn.Module):
    """Softmax regression as a language model: the next token's logits are a linear map of this token's features."""

    def __init__(self, features):
        super().__init__()
        self.register_buffer("features", features)  # (V, D)
        self.linear = nn.Linear(features.shape[1], features.shape[0], bias=False)

    def get_output_embeddings(self):
        return self.linear

    def forward(self, input_ids, attention_mask, use_cache):
        return SimpleNamespace(logits=self.linear(self.features[input_ids]))


@pytest.fixture
def softmax():
    torch.manual_seed(0)
    return Softmax(torch.randn(5, 3)).double()


def softmax_fisher(softmax, contexts):
    """Return the closed form for one trained token a row: mean over rows of p_c (1 - p_c) x_d^2."""
    x = softmax.features[contexts]
    p = softmax.linear(x).softmax(-1).detach()
    return torch.einsum("nc,nd->cd", p * (1 - p), x**2) / len(contexts)


CONTEXTS = [0, 1, 2, 3, 4, 2]


def test_exact_fisher_of_softmax_regression_is_its_closed_form(softmax):
    result = compute_fisher(softmax, [create_row((context, 0)) for context in CONTEXTS], labels="exact")[
        "linear.weight"
    ]
    assert torch.allclose(result.double(), softmax_fisher(softmax, CONTEXTS), rtol=1e-6, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "tolerance"), [(1, 0.1), (8, 0.15)])
def test_sampled_fisher_of_softmax_regression_averages_to_its_closed_form(batch_size, tolerance, softmax):
    rows = [create_row((context, 0)) for context in CONTEXTS] * 2000
    result = compute_fisher(softmax, rows, labels="sampled", batch_size=batch_size, generator=seeded_generator(1))[
        "linear.weight"
    ]
    expected = softmax_fisher(softmax, CONTEXTS)
    assert float((result / expected - 1).abs().max()) < tolerance
    assert float((result.sum() / expected.sum() - 1).abs()) < 0.02


def test_empirical_fisher_is_not_the_square_of_a_summed_batch(softmax):
    # Why `empirical` takes one pass a row: with the labels of the data the rows' gradients are correlated.
    rows = [create_row((2, 1))] * 8
    alone = compute_fisher(softmax, rows, labels="empirical", batch_size=8)["linear.weight"]
    x, y = softmax.features[[2] * 8], torch.tensor([1] * 8)
    (summed,) = torch.autograd.grad(
        nn.functional.cross_entropy(softmax.linear(x), y, reduction="sum"), softmax.linear.weight
    )
    assert torch.allclose(summed.square() / 8, 8 * alone.double(), rtol=1e-6)


def test_empirical_fisher_of_softmax_regression_is_its_closed_form(softmax):
    pairs = [(0, 1), (2, 2), (4, 0), (1, 3)]
    expected = torch.zeros(5, 3, dtype=torch.float64)
    for context, target in pairs:
        x = softmax.features[context]
        residual = nn.functional.one_hot(torch.tensor(target), 5) - softmax.linear(x).softmax(-1)
        expected += torch.outer(residual, x).detach() ** 2 / len(pairs)
    result = compute_fisher(softmax, [create_row(pair) for pair in pairs], labels="empirical")["linear.weight"]
    assert torch.allclose(result.double(), expected, rtol=1e-6)


class Regression(nn.Module):
    """Linear regression as a language model: -(y - w x)^2 / (2 s^2) as the logit of each of many levels y.

    On a fine and wide grid of levels the softmax over them is the Gaussian around w x with deviation s.
    """

    def __init__(self, features, levels, deviation):
        super().__init__()
        self.register_buffer("features", features)  # (V, D)
        self.register_buffer("levels", levels)  # (V,)
        self.linear = nn.Linear(features.shape[1], 1, bias=False)
        self.deviation = deviation

    def get_output_embeddings(self):
        return self.linear

    def forward(self, input_ids, attention_mask, use_cache):
        mean = self.linear(self.features[input_ids])  # (B, T, 1)
        return SimpleNamespace(logits=-((self.levels - mean) ** 2) / (2 * self.deviation**2))


def test_fisher_of_linear_regression_is_its_closed_form():
    torch.manual_seed(6)
    model = Regression(torch.randn(401, 3), torch.linspace(-20, 20, 401), 0.7).double()
    contexts = [0, 5, 11, 17]
    expected = (model.features[contexts] ** 2).mean(0) / 0.7**2  # diagonal of X'X / (N s^2)
    result = compute_fisher(model, [create_row((context, 0)) for context in contexts], labels="exact")["linear.weight"][
        0
    ]
    assert torch.allclose(result.double(), expected, rtol=1e-5)


@pytest.mark.slow
def test_fisher_of_two_tokens_equals_the_enumerated_one_of_their_sum(softmax):
    # Two trained tokens: enumerate both, each with its probability; the sum is squared, not each term.
    example = create_row((3, 1, 0))
    expected = torch.zeros(5, 3, dtype=torch.float64)
    log_p = [softmax.linear(softmax.features[token]).log_softmax(-1) for token in (3, 1)]
    for one, two in itertools.product(range(5), repeat=2):
        likelihood = log_p[0][one] + log_p[1][two]
        (gradient,) = torch.autograd.grad(likelihood, softmax.linear.weight, retain_graph=True)
        expected += likelihood.exp().detach() * gradient**2
    exact = compute_fisher(softmax, [example], labels="exact")["linear.weight"]
    assert torch.allclose(exact.double(), expected, rtol=1e-6)
    result = compute_fisher(softmax, [example] * 16000, labels="sampled", batch_size=4, generator=seeded_generator(2))[
        "linear.weight"
    ]
    assert float((result / expected - 1).abs().max()) < 0.1


# -- a language model -------------------------------------------------------------------------------------------------

ROWS = [
    create_row((7, 8, 9, 10, 11), 2),
    create_row((20, 21, 22), 1),
    create_row((30, 31, 32, 33), 3),
    create_row((40, 41, 42, 43), 2),
]


@pytest.fixture
def micro_model():
    """A one-layer Llama over 61 tokens, in float64: small enough to enumerate."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=61, tie_word_embeddings=True, pad_token_id=0, **config))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4)  # far from uniform predictions
    return model.double()


@pytest.mark.slow
def test_exact_fisher_of_a_language_model_equals_enumeration_and_the_sampled_one_averages_to_it(micro_model):
    rows = [create_row((7, 8, 9, 10), 2), create_row((20, 21, 22), 1)]
    expected = {name: torch.zeros_like(weight) for name, weight in micro_model.named_parameters()}
    for one in rows:
        log_p = micro_model(torch.tensor([one.input_ids])).logits[0].log_softmax(-1)
        for position in range(len(one.input_ids) - 1):
            if one.labels[position + 1] == -100:
                continue
            for token in range(61):
                gradients = torch.autograd.grad(
                    log_p[position, token], micro_model.parameters(), retain_graph=True, allow_unused=True
                )
                for name, gradient in zip(expected, gradients, strict=True):
                    expected[name] += log_p[position, token].detach().exp() * gradient**2 / len(rows)
    result = compute_fisher(micro_model, rows, labels="exact")
    assert result.keys() == expected.keys()
    for name in result:
        assert torch.allclose(result[name].double(), expected[name], rtol=1e-5, atol=1e-12), name
    sampled = compute_fisher(micro_model, rows * 600, labels="sampled", batch_size=6, generator=seeded_generator(3))
    trace, wanted = (sum(float(f.sum()) for f in some.values()) for some in (sampled, expected))
    assert trace == pytest.approx(wanted, rel=0.1)


@pytest.mark.slow
def test_batches_with_sampled_labels_estimate_the_same_as_single_rows(tiny_model):
    rows = ROWS * 60
    traces = {}
    for batch_size in (1, 4, 16):
        result = compute_fisher(
            tiny_model, rows, labels="sampled", batch_size=batch_size, generator=seeded_generator(4)
        )
        traces[batch_size] = sum(float(f.sum()) for f in result.values())
    assert traces[4] == pytest.approx(traces[1], rel=0.1)
    assert traces[16] == pytest.approx(traces[1], rel=0.2)


def test_a_large_vocabulary_is_rejected_with_its_cost(tiny_model, monkeypatch):
    monkeypatch.setattr(fisher_module, "MAX_EXACT_CLASSES", 100)
    with pytest.raises(HarnessError, match=r"labels: 'exact' would take 783 backward passes .* of 3 trained .*sampled"):
        compute_fisher(tiny_model, ROWS[:1], labels="exact")


def fisher_by_torch_func(model, rows):
    """Return the Fisher from per-sample gradients by vmap over padded rows, labels selected by one-hot vectors."""
    from torch.func import functional_call, grad, vmap

    width = max(len(one.input_ids) for one in rows)
    ids = torch.tensor([[*one.input_ids, *[0] * (width - len(one.input_ids))] for one in rows])
    mask = torch.tensor([[1] * len(one.input_ids) + [0] * (width - len(one.input_ids)) for one in rows])
    labels = torch.tensor([[*one.labels, *[-100] * (width - len(one.labels))] for one in rows])
    picked = nn.functional.one_hot(labels.clamp(min=0), model.config.vocab_size) * (labels != -100)[..., None]

    def likelihood(weights, ids, mask, picked):
        given = {"input_ids": ids[None], "attention_mask": mask[None], "use_cache": False}
        logits = functional_call(model, weights, (), given).logits[0]
        return (logits[:-1].log_softmax(-1) * picked[1:]).sum()

    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    gradients = vmap(grad(likelihood), in_dims=(None, 0, 0, 0))(weights, ids, mask, picked)
    return {name: gradient.square().mean(0) for name, gradient in gradients.items()}


def test_empirical_fisher_agrees_with_per_sample_gradients_of_torch_func(micro_model):
    rows = [create_row((7, 8, 9, 10, 11), 2), create_row((20, 21, 22), 1), create_row((30, 31, 32, 33), 3)]
    micro_model.set_attn_implementation("eager")  # the only one that vmap supports; its softmax is in float32
    result, expected = (
        compute_fisher(micro_model, rows, labels="empirical"),
        fisher_by_torch_func(copy.deepcopy(micro_model), rows),
    )
    assert result.keys() == expected.keys()
    for name in result:
        assert torch.allclose(result[name].double(), expected[name], rtol=1e-5, atol=1e-12), name


def test_padding_is_excluded(tiny_model):
    # One long and one short row in a batch, and the same labels sampled for each as alone.
    rows = [create_row(range(5, 25), 15), create_row((7, 8, 9), 1)]
    batched = compute_fisher(tiny_model.double(), rows, labels="sampled", batch_size=2, generator=seeded_generator(5))
    generator = seeded_generator(5)
    uniform = torch.rand(7, 1, generator=generator, dtype=torch.float64)
    total = {name: torch.zeros_like(weight) for name, weight in tiny_model.named_parameters()}
    position = 0
    for example in rows:
        log_p = tiny_model(torch.tensor([example.input_ids])).logits[0].log_softmax(-1)
        log_p = log_p[[i for i, label in enumerate(example.labels[1:]) if label != -100]]
        sampled_classes = torch.searchsorted(
            log_p.float().exp().double().cumsum(-1), uniform[position : position + len(log_p)]
        )
        position += len(log_p)
        gradients = torch.autograd.grad(log_p.gather(-1, sampled_classes).sum(), tiny_model.parameters())
        for name, gradient in zip(total, gradients, strict=True):
            total[name] += gradient
    for name, gradient in total.items():
        assert torch.allclose(batched[name].double(), gradient**2 / 2, rtol=1e-4, atol=1e-12), name


def test_tied_weights_are_counted_once_and_frozen_ones_not_at_all(tiny_model):
    tiny_model.model.layers[0].requires_grad_(False)
    result = compute_fisher(tiny_model, ROWS, labels="empirical")
    assert "model.embed_tokens.weight" in result
    assert "lm_head.weight" not in result
    assert not any(name.startswith("model.layers.0.") for name in result)
    assert result.keys() == {name for name, weight in tiny_model.named_parameters() if weight.requires_grad}


def test_prompts_are_excluded(tiny_model):
    last = compute_fisher(tiny_model, [create_row((7, 8, 9, 10), 3)], labels="empirical")["model.norm.weight"]
    masked = TokenizedExample(
        "masked", "source", (7, 8, 9, 10), (7, -100, -100, 10)
    )  # a row's first token is never predicted
    assert torch.equal(last, compute_fisher(tiny_model, [masked], labels="empirical")["model.norm.weight"])


@pytest.mark.parametrize("labels", ["sampled", "empirical"])
def test_fisher_is_measured_without_dropout_and_restores_the_model(labels, tiny_model):
    for layer in tiny_model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    tiny_model.train()
    tiny_model.model.norm.weight.grad = torch.full((32,), 7.0)
    one, two = (compute_fisher(tiny_model, ROWS, labels=labels, generator=seeded_generator(0)) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert tiny_model.training
    assert torch.equal(tiny_model.model.norm.weight.grad, torch.full((32,), 7.0))
    assert all(w.grad is None for n, w in tiny_model.named_parameters() if n != "model.norm.weight")
    assert not any(weight._post_accumulate_grad_hooks for weight in tiny_model.parameters())


def test_squares_are_summed_in_float32_for_a_bfloat16_model(tiny_model):
    result = compute_fisher(tiny_model.bfloat16(), ROWS, labels="empirical")
    assert {importance.dtype for importance in result.values()} == {torch.float32}


def test_fisher_without_a_row_is_an_error(tiny_model):
    with pytest.raises(HarnessError, match="no row"):
        compute_fisher(tiny_model, [], labels="empirical")


def test_classes_are_sampled_with_their_probabilities(monkeypatch):
    monkeypatch.setattr(fisher_module, "SAMPLING_CHUNK", 50)  # many chunks
    p = torch.tensor([0.0, 0.5, 0.2, 0.0, 0.3, 0.0])
    uniform = torch.rand(40000, 1, generator=seeded_generator(0), dtype=torch.float64)
    sampled_classes = classes_at(p.expand(40000, -1), uniform)
    assert torch.allclose(torch.bincount(sampled_classes, minlength=6) / 40000, p, atol=0.01)
    assert set(sampled_classes.unique().tolist()) == {1, 2, 4}, "classes of probability 0 are never sampled"


# -- Avalanche --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.skipif(not avalanche_oracle.is_there(), reason="Avalanche is not installed; `make oracle` runs this")
def test_empirical_fisher_equals_that_of_avalanche_at_batch_size_one_only():
    # Avalanche squares the gradient of a batch's mean loss: at batch size 8 that is about an eighth of the Fisher.
    compute = avalanche_oracle.compute_importances()
    torch.manual_seed(7)
    model = Softmax(torch.randn(40, 6))
    contexts, targets = torch.randint(0, 40, (400,)), torch.randint(0, 40, (400,))
    data = torch.utils.data.TensorDataset(model.features[contexts], targets, torch.zeros(400))
    plain = nn.Linear(6, 40, bias=False)
    plain.load_state_dict(model.linear.state_dict())
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.0)
    theirs = {
        size: compute(plain, nn.CrossEntropyLoss(), optimizer, data, "cpu", size)["weight"].data for size in (1, 8)
    }
    rows = [create_row(pair) for pair in zip(contexts.tolist(), targets.tolist(), strict=True)]
    ours = compute_fisher(model, rows, labels="empirical")["linear.weight"]
    assert torch.allclose(ours, theirs[1], rtol=1e-4, atol=1e-8)
    assert 0.1 < float(theirs[8].sum() / ours.sum()) < 0.2
