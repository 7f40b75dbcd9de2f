"""Tests of significance against closed forms, published examples, and their own promises."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.statistics import significance
from harness.statistics.significance import approximate_randomization, holm

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


def test_equal_hypotheses_count_once() -> None:
    adjusted = holm([0.01, 0.03, 0.01, NAN], ["nll", "rouge", "nll", "nll"])
    assert adjusted[:3] == pytest.approx([0.02, 0.03, 0.02])
    assert math.isnan(adjusted[3])


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


@pytest.mark.slow
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


def test_randomization_swaps_the_items_of_a_group_together() -> None:
    random = np.random.default_rng(3)
    first, shift = random.normal(size=(12, 1)), random.normal(0.5, 1, size=(12, 1))
    once = [as_statistics(values.ravel()) for values in (first, first + shift)]
    copies = [as_statistics(np.repeat(values, 5)) for values in (first, first + shift)]
    groups = [index // 5 for index in range(60)]
    p = approximate_randomization(*once, mean, seed=0, trials=2000)
    assert approximate_randomization(*copies, mean, seed=0, trials=2000, groups=groups) == p
    assert approximate_randomization(*copies, mean, seed=0, trials=2000) < p / 2
