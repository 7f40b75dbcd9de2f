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


def of(values: np.ndarray) -> list[tuple[float, float]]:
    return [(float(value), 1.0) for value in values]


def test_holm_multiplies_the_smallest_by_all_the_next_by_one_fewer() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_never_exceeds_one_and_leaves_out_what_is_no_number() -> None:
    adjusted = holm([0.9, NAN, 0.02])
    assert adjusted[0] == pytest.approx(0.9)
    assert math.isnan(adjusted[1])
    assert adjusted[2] == pytest.approx(0.04), "two tests, not three"
    assert holm([0.7, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_mcnemar_is_the_exact_binomial_test_of_the_items_that_changed() -> None:
    from scipy.stats import binomtest

    first = [True] * 5 + [False] * 14 + [True] * 20 + [False] * 9
    second = [False] * 5 + [True] * 14 + [True] * 20 + [False] * 9
    assert mcnemar(first, second) == pytest.approx(binomtest(5, 19, 0.5).pvalue)
    assert mcnemar(second, first) == mcnemar(first, second)


def test_mcnemar_of_items_that_did_not_change_is_one_and_thousands_of_changes_are_no_problem() -> None:
    assert mcnemar([True, False], [True, False]) == 1.0
    assert mcnemar([False] * 4000, [True] * 4000) == 0.0
    assert mcnemar([True, False] * 2000, [False, True] * 2000) == 1.0


def test_the_paired_bootstrap_agrees_with_the_paired_t_test_on_a_mean() -> None:
    from scipy.stats import ttest_rel

    random = np.random.default_rng(3)
    first = random.normal(0.5, 1.0, 200)
    second = first + random.normal(0.08, 0.5, 200)
    estimate, p = paired_bootstrap(of(first), of(second), mean, seed=0, resamples=4000)
    assert estimate.value == pytest.approx(float((second - first).mean()))
    assert p == pytest.approx(ttest_rel(second, first).pvalue, abs=0.015)


def test_without_a_difference_the_p_value_is_even() -> None:
    """Under chance alone a test at 5 % must not find much more than 5 %."""
    random = np.random.default_rng(0)
    found = []
    for trial in range(200):
        first = random.normal(size=60)
        second = first + random.normal(size=60)
        found.append(paired_bootstrap(of(first), of(second), mean, seed=trial, resamples=400)[1])
    assert 0.01 <= np.mean([p < 0.05 for p in found]) <= 0.10
    assert 0.4 <= np.mean([p < 0.5 for p in found]) <= 0.6


def test_equal_runs_differ_by_nothing_and_one_item_tells_nothing() -> None:
    values = of(np.random.default_rng(1).random(50))
    estimate, p = paired_bootstrap(values, values, mean, seed=0)
    assert (estimate.value, estimate.low, estimate.high, p) == (0.0, 0.0, 0.0, 1.0)
    assert math.isnan(paired_bootstrap(values[:1], values[:1], mean, seed=0)[1])


def test_a_certain_difference_has_the_smallest_p_that_the_resamples_allow() -> None:
    values = np.random.default_rng(1).random(50)
    estimate, p = paired_bootstrap(of(values), of(values + 1.0), mean, seed=0, resamples=999)
    assert estimate.low == pytest.approx(1.0)
    assert p == pytest.approx(1 / 1000)


# -- approximate randomisation ----------------------------------------------------------------------------------------


def systems(seed: int, items: int = 60) -> tuple[list[str], list[str], list[str]]:
    """References and two systems, of which the second has a little more of them right."""
    random = np.random.default_rng(seed)
    text = "the cat sat on a mat while two dogs barked at the old moon"
    words = np.array(text.split())
    references = [" ".join(random.choice(words, 9)) for _ in range(items)]

    def system(share: float) -> list[str]:
        return [
            " ".join(word if random.random() < share else str(random.choice(words)) for word in reference.split())
            for reference in references
        ]

    return references, system(0.60), system(0.66)


@pytest.mark.parametrize("name", ["bleu", "chrf", "ter"])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_p_value_of_a_corpus_metric_is_that_of_sacrebleus_own_paired_test(
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
    named = [("first", first), ("second", second)]
    _, scores = PairedTest(named, {name: theirs}, [references], "ar", n_samples=2000)()
    (expected,) = [values[1].p_value for key, values in scores.items() if key != "System"]
    ours = create_metric(discover_plugins(), name, {"lang": "en"} if name != "chrf" else {})
    statistics = [
        [
            ours.statistics(Item(str(number), "", reference, answer))[name]
            for number, (reference, answer) in enumerate(zip(references, answers, strict=True))
        ]
        for answers in (first, second)
    ]
    found = approximate_randomization(*statistics, lambda total: ours.aggregate(name, total), seed=12345, trials=2000)
    assert 0.0005 < expected < 0.9, "a test that decides nothing would agree with anything"
    stays = np.random.default_rng(12345).integers(2, size=(2000, len(references)), dtype=bool)
    before, after = map(np.array, statistics)
    one, other = ((stays @ x + ~stays @ y) for x, y in ((before, after), (after, before)))
    apart = [abs(ours.aggregate(name, x) - ours.aggregate(name, y)) for x, y in zip(one, other, strict=True)]
    difference = abs(ours.aggregate(name, before.sum(0)) - ours.aggregate(name, after.sum(0)))
    # sacrebleu does not count a trial with just the difference found, which with few edits happens often.
    ties = int(np.isclose(apart, difference, rtol=1e-12).sum())
    assert ties == 0 or name == "ter"
    assert found - ties / 2001 == pytest.approx(expected, abs=1e-12)


def test_drawing_in_blocks_gives_what_drawing_at_once_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(5)
    first = of(random.normal(size=37))
    second = of(random.normal(0.3, 1, size=37))
    whole = approximate_randomization(first, second, mean, seed=3, trials=1000)
    monkeypatch.setattr(significance, "_BOOLEANS_PER_BLOCK", 100)
    assert approximate_randomization(first, second, mean, seed=3, trials=1000) == whole


def test_randomisation_agrees_with_the_paired_t_test_and_finds_nothing_between_equals() -> None:
    from scipy.stats import ttest_rel

    random = np.random.default_rng(3)
    first = random.normal(0.5, 1.0, 200)
    second = first + random.normal(0.08, 0.5, 200)
    p = approximate_randomization(of(first), of(second), mean, seed=0, trials=5000)
    assert p == pytest.approx(ttest_rel(second, first).pvalue, abs=0.015)
    assert approximate_randomization(of(first), of(first), mean, seed=0, trials=100) == 1.0
    assert math.isnan(approximate_randomization(of(first[:1]), of(second[:1]), mean, seed=0))
    assert math.isnan(approximate_randomization([(NAN, 1.0)] * 9, of(first[:9]), mean, seed=0))
    with pytest.raises(ValueError, match="do not belong to the same items"):
        approximate_randomization(of(first[:5]), of(first[:6]), mean, seed=0)
