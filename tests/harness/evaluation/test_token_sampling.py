"""Token sampling: correct probabilities, dependent on the seed of the item only."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from harness.evaluation.generation import TopPSampler, greedy

LOGITS = torch.log(torch.tensor([[0.5, 0.1, 0.3, 0.1]]))


def token_frequencies(temperature, top_p, n=4000):
    draw = TopPSampler(temperature, top_p, {7: 1})
    counts = Counter(int(draw(LOGITS, [7])) for _ in range(n))
    return [counts[token] / n for token in range(4)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, [0.5, 0.1, 0.3, 0.1]),
        (0.5, 1.0, [0.25 / 0.36, 0.01 / 0.36, 0.09 / 0.36, 0.01 / 0.36]),
        (1.0, 0.6, [0.5 / 0.8, 0.0, 0.3 / 0.8, 0.0]),
        (1.0, 0.01, [1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_tokens_are_sampled_with_their_probabilities(temperature, top_p, expected):
    assert token_frequencies(temperature, top_p) == pytest.approx(expected, abs=0.03)


def test_sample_of_a_row_does_not_depend_on_the_batch():
    rows = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    seeds = {1: 11, 2: 22, 3: 33}
    together, alone = TopPSampler(1.0, 0.9, seeds), TopPSampler(1.0, 0.9, seeds)
    for _ in range(20):
        assert together(rows, [1, 2, 3])[1] == alone(rows[1:2], [2])[0]
    assert greedy(rows, [1, 2, 3]).tolist() == rows.argmax(-1).tolist()


def sample_by_definition(logits, uniform, top_p):
    """Return the sample of each row by its definition: all tokens sorted, the most likely first, ties by id."""
    sampled = []
    for row, draw in zip(logits.double().softmax(-1).tolist(), uniform, strict=True):
        order = sorted(range(len(row)), key=lambda token: (-row[token], token))
        mass, nucleus = 0.0, []
        for token in order:
            if mass >= top_p:
                break
            mass += row[token]
            nucleus.append(token)
        target, cumulative = draw * mass, 0.0
        for token in nucleus:
            cumulative += row[token]
            if cumulative > target:
                break
        sampled.append(token)
    return sampled


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["peaked", "flat", "mixed", "ties", "equal"])
def test_a_nucleus_of_few_tokens_is_sampled_as_if_all_tokens_were_sorted(kind, top_p):
    logits = torch.randn(6, 3000, generator=torch.Generator().manual_seed(1))
    peaked, flat = logits * 6, logits * 0.1
    mixed = torch.cat([peaked[:3], flat[3:]])
    kinds = {"peaked": peaked, "flat": flat, "mixed": mixed, "ties": (logits * 2).round(), "equal": logits * 0}
    logits = kinds[kind]
    seeds = {key: key for key in range(6)}
    draw = TopPSampler(1.0, top_p, seeds)
    uniform = [torch.rand((), generator=torch.Generator().manual_seed(key), dtype=torch.float64) for key in range(6)]
    assert draw(logits, list(range(6))).tolist() == sample_by_definition(logits, map(float, uniform), top_p)


def test_without_a_nucleus_every_token_can_be_sampled_and_no_impossible_one():
    logits = torch.full((64, 3000), -torch.inf)
    logits[:, [7, 2998]] = 0.0
    draw = TopPSampler(1.0, 1.0, {key: key for key in range(64)})
    assert set(draw(logits, list(range(64))).tolist()) == {7, 2998}


@pytest.fixture
def sample_answers(kit, tokenizer, tiny_model):
    rows = [kit.example(said, "r") for said in ("yes", "a much longer question", "no")]

    def run(seed=0, size=4, **settings):
        suite = kit.suite(batch_size=size, max_new_tokens=8, **settings)
        result = kit.evaluate(tiny_model.eval(), suite, rows, {"same": kit.same}, seed=seed, max_length=100)
        return [item.answer for item in result.items]

    return run


def test_answers_answers_depend_on_the_seed_and_not_on_the_batch(sample_answers):
    answers = sample_answers(temperature=1.0)
    assert answers == sample_answers(temperature=1.0) == sample_answers(temperature=1.0, size=1)
    assert answers != sample_answers(temperature=1.0, seed=1)
    assert answers != sample_answers()
    assert len(set(answers)) == 3


def test_greedy_answers_do_not_depend_on_the_seed(sample_answers):
    assert sample_answers() == sample_answers(seed=1)


def test_sampling_keeps_the_global_random_state(sample_answers):
    state = torch.get_rng_state()
    sample_answers(temperature=1.0)
    assert torch.equal(torch.get_rng_state(), state)
