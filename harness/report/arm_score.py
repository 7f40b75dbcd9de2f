"""One score of one arm of an experiment, compared with the baseline's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.report.score_change import Verdict
from harness.statistics.intervals import Estimate
from harness.statistics.seeds import SeedSpread
from harness.types import Role


@dataclass(frozen=True)
class ArmScore:
    """One score of one arm; over several seeds, every number is the mean over seeds.

    Attributes:
        arm: Name of the arm.
        suite: Name of the suite.
        role: Role of the suite.
        score: Name of the score.
        higher_is_better: Direction of the score; None if neither is better.
        n: Number of items.
        before: The score of the base model.
        after: The score after the arm's last stage.
        change: after − before.
        against: arm − baseline over the same items and seeds; None for the baseline itself.
        p: p-value for "no difference from the baseline", by `test`.
        p_holm: The p-value, adjusted for every comparison of the experiment. Seeds do not count as comparisons.
        verdict: On `against`, by its interval and by `p_holm` at 5 %.
        test: The significance test: see `compare_scores` for one seed, `pool_over_seeds` for several.
        seeds: Number of seeds.
        after_spread: `after` of every seed; None for one seed.
        tested_as: The score that is tested: the NLL for a perplexity, else the score itself. "": by an earlier version.
    """

    arm: str
    suite: str
    role: Role
    score: str
    higher_is_better: bool | None
    n: int
    before: Estimate
    after: Estimate
    change: Estimate
    against: Estimate | None
    p: float | None
    p_holm: float | None
    verdict: Verdict | None
    test: str | None = None
    seeds: int = 1
    after_spread: SeedSpread | None = None
    tested_as: str = ""

    @property
    def hypothesis(self) -> tuple[str, str, str]:
        """What is tested; equal for a perplexity and its NLL."""
        return self.arm, self.suite, self.tested_as or self.score


def count_hypotheses(scores: Sequence[ArmScore]) -> int:
    """Return the number of different hypotheses that are tested, for which p-values are adjusted."""
    return len({score.hypothesis for score in scores if score.p is not None and not math.isnan(score.p)})
