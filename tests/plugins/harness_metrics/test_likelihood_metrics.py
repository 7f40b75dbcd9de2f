"""Metrics of likelihoods: known numbers in, known numbers out."""

from __future__ import annotations

import math

import pytest

from harness import Item


def aggregate_all(metric, items):
    sums = {}
    for item in items:
        for name, vector in metric.statistics(item).items():
            sums[name] = [x + y for x, y in zip(sums.get(name, [0.0] * len(vector)), vector, strict=True)]
    return {name: metric.aggregate(name, vector) for name, vector in sums.items()}


def test_long_choices_are_normalized_by_length(metric):
    # The right one has 10 characters, 12 bytes; a character costs it less than the other, a byte more.
    item = Item("a", "q", "naïve café", choices=("no", "naïve café"), gold=1, choice_lls=(-2.2, -11.5))
    assert metric("multiple_choice").statistics(item) == {
        "acc": (0.0, 1.0),
        "acc_norm": (0.0, 1.0),
        "acc_bytes": (1.0, 1.0),
    }


def test_the_first_of_equal_choices_counts(metric):
    items = [Item("a", "q", "x", choices=("x", "y"), gold=gold, choice_lls=(-1.0, -1.0)) for gold in (0, 1)]
    assert aggregate_all(metric("multiple_choice"), items) == {"acc": 0.5, "acc_norm": 0.5, "acc_bytes": 0.5}


def test_bits_per_byte_and_perplexities_are_ratios_of_sums(metric):
    items = [Item("a", "", "é b\nc", text_nll=3.0), Item("b", "", "word", text_nll=5.0)]  # 6 + 4 bytes, 3 + 1 words
    scores = aggregate_all(metric("bits_per_byte"), items)
    assert scores["bits_per_byte"] == pytest.approx(8 / 10 / math.log(2))
    assert scores["byte_perplexity"] == pytest.approx(math.exp(8 / 10))
    assert scores["word_perplexity"] == pytest.approx(math.exp(8 / 4))
    assert aggregate_all(metric("bits_per_byte"), [Item("a", "", "x", text_nll=1e6)])["byte_perplexity"] == math.inf


def test_base_divergence_is_a_mean_over_tokens_not_items(metric):
    items = [Item("a", "", "r", kl=1.0, agreed=1, tokens=1), Item("b", "", "r", kl=1.0, agreed=3, tokens=9)]
    assert aggregate_all(metric("kl_to_base"), items) == {"kl_to_base": 2 / 10}
    assert aggregate_all(metric("agreement_with_base"), items) == {"agreement_with_base": 4 / 10}
    assert metric("kl_to_base").higher_is_better is None
