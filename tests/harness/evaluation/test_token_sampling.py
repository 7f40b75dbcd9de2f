"""Drawing the next token: the right chances, by the item's own seed alone."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from harness.evaluation.generation import TopPSampler, greedy

LOGITS = torch.log(torch.tensor([[0.5, 0.1, 0.3, 0.1]]))


def shares(temperature, top_p, n=4000):
    draw = TopPSampler(temperature, top_p, {7: 1})
    counts = Counter(int(draw(LOGITS, [7])) for _ in range(n))
    return [counts[token] / n for token in range(4)]


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, [0.5, 0.1, 0.3, 0.1]),
        (0.5, 1.0, [0.25 / 0.36, 0.01 / 0.36, 0.09 / 0.36, 0.01 / 0.36]),
        (1.0, 0.6, [0.5 / 0.8, 0.0, 0.3 / 0.8, 0.0]),
        (1.0, 0.01, [1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_tokens_are_drawn_with_their_chances(temperature, top_p, expected):
    assert shares(temperature, top_p) == pytest.approx(expected, abs=0.03)


def test_a_row_draws_alike_whatever_stands_beside_it():
    rows = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    seeds = {1: 11, 2: 22, 3: 33}
    together, alone = TopPSampler(1.0, 0.9, seeds), TopPSampler(1.0, 0.9, seeds)
    for _ in range(20):
        assert together(rows, [1, 2, 3])[1] == alone(rows[1:2], [2])[0]
    assert greedy(rows, [1, 2, 3]).tolist() == rows.argmax(-1).tolist()


@pytest.fixture
def go(kit, tokenizer, tiny_model):
    rows = [kit.example(said, "r") for said in ("yes", "a much longer question", "no")]

    def run(seed=0, size=4, **settings):
        suite = kit.suite(batch_size=size, max_new_tokens=8, **settings)
        result = kit.evaluate(tiny_model.eval(), suite, rows, {"same": kit.same}, seed=seed, max_length=100)
        return [item.answer for item in result.items]

    return run


def test_drawn_answers_depend_on_the_seed_and_not_on_the_batch(go):
    drawn = go(temperature=1.0)
    assert drawn == go(temperature=1.0) == go(temperature=1.0, size=1)
    assert drawn != go(temperature=1.0, seed=1)
    assert drawn != go()
    assert len(set(drawn)) == 3


def test_no_seed_matters_to_the_likeliest_answers(go):
    assert go() == go(seed=1)


def test_drawing_leaves_the_random_state_as_it_was(go):
    state = torch.get_rng_state()
    go(temperature=1.0)
    assert torch.equal(torch.get_rng_state(), state)
