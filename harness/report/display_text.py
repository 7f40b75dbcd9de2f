"""Texts that the terminal tables and the HTML report share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from harness.report.flips import SuiteFlips
from harness.utils.formatting import decimal_places, format_number

SUMMARY_DESCRIPTIONS = {
    "average_accuracy": "mean over tasks after the last stage",
    "learning_accuracy": "mean over tasks, each right after its own stage",
    "backward_transfer": "change of earlier tasks since their own stage (BWT); below 0 is forgetting",
    "forward_transfer": "later tasks just before their own stage, relative to the base model (FWT)",
    "forgetting": "best value before the last stage minus the final value (Chaudhry); above 0 is forgetting",
    "forgetting_since_learned": "value right after the task's own stage minus the final value; above 0 is forgetting",
    "forgetting_from_best": "best value since the task's own stage minus the final value; never below 0",
    "general_ability_delta": "change of the general suites since the base model (TRACE)",
    "relative_forgetting": "mean loss of the general suites relative to the base model, in percent (Luo)",
}
"""Summary of a stage × suite matrix -> its meaning."""

INCOMPLETE_ENDINGS = {"length": "cut off", "empty": "empty"}
"""Reason why an answer ended -> the word for an answer that is not complete."""


class Interval(Protocol):
    """A number with a 95 % interval, such as an `Estimate` or a `Score`."""

    @property
    def value(self) -> float:
        """The number."""

    @property
    def low(self) -> float:
        """Lower bound."""

    @property
    def high(self) -> float:
        """Upper bound."""


def format_interval(interval: Interval, *, digits: int = 3, sign: bool = True) -> tuple[str, str]:
    """Format a number and its interval, e.g. `("+0.200", "[+0.150, +0.250]")`.

    Args:
        interval: The number and its bounds; all three get the same number of decimals.
        digits: Significant digits of the largest of the three.
        sign: Whether positive numbers get a plus sign, as differences do.
    """
    bounds = (interval.value, interval.low, interval.high)
    places = decimal_places(bounds, digits)
    value, low, high = (format_number(bound, places, sign=sign) for bound in bounds)
    return value, f"[{low}, {high}]"


def format_incomplete_answers(endings: Mapping[str, int]) -> str:
    """Format how many answers are not complete, e.g. `3 cut off, 1 empty`; empty when all are complete.

    Args:
        endings: Reason why an answer ended -> number of answers.
    """
    return ", ".join(f"{endings[key]:,} {word}" for key, word in INCOMPLETE_ENDINGS.items() if endings.get(key))


def describe_flips(flips: SuiteFlips) -> tuple[str, ...]:
    """Return what changed in a suite, as lines.

    For a score that is 0 or 1: right → wrong and wrong → right with Wilson's intervals, adjusted for chance in
    multiple choice. Otherwise one line that says which items are listed.
    """
    if flips.lost is None or flips.gained is None:
        return (f"the {len(flips.worse)} items that got worse most and the {len(flips.better)} that got better most",)
    return tuple(
        f"{direction}: {round(share.value * flips.n):,} of {flips.n:,}, {_format_percent(share)}"
        + ("" if flips.guessed is None else f"; {100 * max(share.value - flips.guessed, 0):.1f} % beyond guessing")
        for direction, share in (("right → wrong", flips.lost), ("wrong → right", flips.gained))
    )


def _format_percent(share: Interval) -> str:
    return f"{100 * share.value:.1f} % [{100 * share.low:.1f}, {100 * share.high:.1f}]"
