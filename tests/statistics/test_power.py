"""The number of items that a report asks for gives a verdict in about 80 % of samples of that size.

By the draws alone, .80 over 3,000 samples has a standard error of .007.
"""

from __future__ import annotations

import numpy as np
import pytest
from support.paired import difference

from harness.report.score_change import MIN_ITEMS, items_needed_for_verdict
from harness.statistics.intervals import paired_test
from harness.statistics.proportions import mcnemar_p

SAMPLES = 3000


def mean(total):
    return total[0] / total[1]


@pytest.mark.parametrize("shift", [0.15, 0.25, 0.35, 0.5])
def test_items_for_a_t_test(shift):
    random = np.random.default_rng(0)
    seen = random.normal(size=40)
    seen = (seen - seen.mean()) / seen.std(ddof=1)
    before = [(0.0, 1.0)] * 40
    measured = difference(before, [(value + shift, 1.0) for value in seen], mean, ratio=True)
    needed = items_needed_for_verdict(measured) if not measured.excludes_zero else None
    if needed is None:
        assert shift > 0.32  # 2.02 standard errors of 40 items: there is a verdict
        return
    found = 0
    for _ in range(SAMPLES // 5):
        values = random.normal(shift, 1, needed)
        test = paired_test([(0.0, 1.0)] * needed, np.column_stack([values, np.ones(needed)]), mean, ratio=True)
        found += test.p < 0.05
    assert 0.75 <= found / (SAMPLES // 5) <= 0.86


@pytest.mark.parametrize(("gained", "lost"), [(14, 7), (7, 3), (4, 2), (21, 14), (3, 0), (5, 0)])
def test_items_for_mcnemars_test(gained, lost):
    """The bounds are wider than for the t-test: an exact test of few changes does not reach every level."""
    n, random = 70, np.random.default_rng(gained)
    before = [(0.0, 1.0)] * gained + [(1.0, 1.0)] * (n - gained)
    after = [(1.0, 1.0)] * gained + [(0.0, 1.0)] * lost + [(1.0, 1.0)] * (n - gained - lost)
    needed = items_needed_for_verdict(difference(before, after, mean, ratio=True))
    assert needed > n
    counts = random.multinomial(needed, [gained / n, lost / n, 1 - (gained + lost) / n], SAMPLES).tolist()
    found = sum(mcnemar_p(improved, worsened) < 0.05 for improved, worsened, _ in counts) / SAMPLES
    assert 0.76 <= found <= 0.90


def test_items_are_groups_where_items_belong_together():
    """40 groups of 5 equal items need as many groups as 40 items need items."""
    random = np.random.default_rng(2)
    values = random.normal(0.2, 1, 40)
    single = difference([(0.0, 1.0)] * 40, [(value, 1.0) for value in values], mean, ratio=True)
    copies = [(value, 1.0) for value in values for _ in range(5)]
    grouped = difference([(0.0, 1.0)] * 200, copies, mean, ratio=True, groups=[index // 5 for index in range(200)])
    assert items_needed_for_verdict(single) == items_needed_for_verdict(grouped) > MIN_ITEMS
