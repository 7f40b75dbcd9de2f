"""Tests of significance against closed forms, published examples, and their own promises."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.statistics import significance
from harness.statistics.significance import approximate_randomization, holm, mcnemar, paired_bootstrap

NAN = math.nan


def mean(total: list[float]) -> float:
    return total[0] / total[1]


def as_statistics(values: np.ndarray) -> list[tuple[float, float]]:
    return [(float(value), 1.0) for value in values]


def test_holm_multiplies_by_the_number_of_remaining_tests() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_stays_below_one_and_ignores_nan() -> None:
    adjusted = holm([0.9, NAN, 0.02])
    assert adjusted[0] == pytest.approx(0.9)
    assert math.isnan(adjusted[1])
    assert adjusted[2] == pytest.approx(0.04), "two tests, not three"
    assert holm([0.7, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_mcnemar_equals_binomial_test_of_changed_items() -> None:
    from scipy.stats import binomtest

    first = [True] * 5 + [False] * 14 + [True] * 20 + [False] * 9
    second = [False] * 5 + [True] * 14 + [True] * 20 + [False] * 9
    assert mcnemar(first, second) == pytest.approx(binomtest(5, 19, 0.5).pvalue)
    assert mcnemar(second, first) == mcnemar(first, second)


def test_mcnemar_handles_no_change_and_thousands_of_changes() -> None:
    assert mcnemar([True, False], [True, False]) == 1.0
    assert mcnemar([False] * 4000, [True] * 4000) == 0.0
    assert mcnemar([True, False] * 2000, [False, True] * 2000) == 1.0


def test_paired_bootstrap_agrees_with_paired_t_test() -> None:
    from scipy.stats import ttest_rel

    random = np.random.default_rng(3)
    first = random.normal(0.5, 1.0, 200)
    second = first + random.normal(0.08, 0.5, 200)
    estimate, p = paired_bootstrap(as_statistics(first), as_statistics(second), mean, seed=0, resamples=4000)
    assert estimate.value == pytest.approx(float((second - first).mean()))
    assert p == pytest.approx(ttest_rel(second, first).pvalue, abs=0.015)


def test_p_value_is_uniform_without_a_difference() -> None:
    """Without a difference a test at 5 % rejects in about 5 % of the trials."""
    random = np.random.default_rng(0)
    p_values = []
    for trial in range(200):
        first = random.normal(size=60)
        second = first + random.normal(size=60)
        p_values.append(
            paired_bootstrap(as_statistics(first), as_statistics(second), mean, seed=trial, resamples=400)[1]
        )
    assert 0.01 <= np.mean([p < 0.05 for p in p_values]) <= 0.10
    assert 0.4 <= np.mean([p < 0.5 for p in p_values]) <= 0.6


def test_equal_runs_have_p_one_and_one_item_has_none() -> None:
    values = as_statistics(np.random.default_rng(1).random(50))
    estimate, p = paired_bootstrap(values, values, mean, seed=0)
    assert (estimate.value, estimate.low, estimate.high, p) == (0.0, 0.0, 0.0, 1.0)
    assert math.isnan(paired_bootstrap(values[:1], values[:1], mean, seed=0)[1])


def test_certain_difference_has_the_smallest_possible_p() -> None:
    values = np.random.default_rng(1).random(50)
    estimate, p = paired_bootstrap(as_statistics(values), as_statistics(values + 1.0), mean, seed=0, resamples=999)
    assert estimate.low == pytest.approx(1.0)
    assert p == pytest.approx(1 / 1000)


# -- approximate randomization ----------------------------------------------------------------------------------------


def systems(seed: int, items: int = 60) -> tuple[list[str], list[str], list[str]]:
    """Return references and the outputs of two systems, of which the second is slightly better."""
    random = np.random.default_rng(seed)
    text = "the cat sat on a mat while two dogs barked at the old moon"
    words = np.array(text.split())
    references = [" ".join(random.choice(words, 9)) for _ in range(items)]

    def corrupted_references(probability: float) -> list[str]:
        return [
            " ".join(word if random.random() < probability else str(random.choice(words)) for word in reference.split())
            for reference in references
        ]

    return references, corrupted_references(0.60), corrupted_references(0.66)


@pytest.mark.parametrize("name", ["bleu", "chrf", "ter"])
@pytest.mark.parametrize("seed", [1, 2])
def test_corpus_metric_p_value_equals_sacrebleu_paired_test(
    name: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sacrebleu.metrics import BLEU, CHRF, TER
    from sacrebleu.significance import PairedTest

    from harness.evaluation.rescore import create_metric
    from harness.registry import discover_plugins
    from harness.types import Item

    monkeypatch.setenv("SACREBLEU_SEED", "12345")
    references, first, second = systems(seed)
    theirs = {"bleu": BLEU(), "chrf": CHRF(), "ter": TER()}[name]
    named_systems = [("first", first), ("second", second)]
    _, scores = PairedTest(named_systems, {name: theirs}, [references], "ar", n_samples=2000)()
    (expected,) = [values[1].p_value for key, values in scores.items() if key != "System"]
    ours = create_metric(discover_plugins(), name, {"lang": "en"} if name != "chrf" else {})
    statistics = [
        [
            ours.statistics(Item(str(number), "", reference, answer))[name]
            for number, (reference, answer) in enumerate(zip(references, answers, strict=True))
        ]
        for answers in (first, second)
    ]
    p = approximate_randomization(*statistics, lambda total: ours.aggregate(name, total), seed=12345, trials=2000)
    assert 0.0005 < expected < 0.9, "an extreme p-value would hide a difference"
    swapped = np.random.default_rng(12345).integers(2, size=(2000, len(references)), dtype=bool)
    before, after = map(np.array, statistics)
    totals, other_totals = ((swapped @ x + ~swapped @ y) for x, y in ((before, after), (after, before)))
    differences = [
        abs(ours.aggregate(name, x) - ours.aggregate(name, y)) for x, y in zip(totals, other_totals, strict=True)
    ]
    difference = abs(ours.aggregate(name, before.sum(0)) - ours.aggregate(name, after.sum(0)))
    # sacrebleu does not count a trial that equals the observed difference, which is frequent for few edits.
    ties = int(np.isclose(differences, difference, rtol=1e-12).sum())
    assert ties == 0 or name == "ter"
    assert p - ties / 2001 == pytest.approx(expected, abs=1e-12)


def test_drawing_in_blocks_does_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(5)
    first = as_statistics(random.normal(size=37))
    second = as_statistics(random.normal(0.3, 1, size=37))
    one_block = approximate_randomization(first, second, mean, seed=3, trials=1000)
    monkeypatch.setattr(significance, "_BOOLEANS_PER_BLOCK", 100)
    assert approximate_randomization(first, second, mean, seed=3, trials=1000) == one_block


def test_randomization_agrees_with_paired_t_test() -> None:
    from scipy.stats import ttest_rel

    random = np.random.default_rng(3)
    first = random.normal(0.5, 1.0, 200)
    second = first + random.normal(0.08, 0.5, 200)
    p = approximate_randomization(as_statistics(first), as_statistics(second), mean, seed=0, trials=5000)
    assert p == pytest.approx(ttest_rel(second, first).pvalue, abs=0.015)
    assert approximate_randomization(as_statistics(first), as_statistics(first), mean, seed=0, trials=100) == 1.0
    assert math.isnan(approximate_randomization(as_statistics(first[:1]), as_statistics(second[:1]), mean, seed=0))
    assert math.isnan(approximate_randomization([(NAN, 1.0)] * 9, as_statistics(first[:9]), mean, seed=0))
    with pytest.raises(ValueError, match="do not belong to the same items"):
        approximate_randomization(as_statistics(first[:5]), as_statistics(first[:6]), mean, seed=0)
