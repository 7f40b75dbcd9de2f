"""The primary score of a suite, by which the run's verdict judges it, and the two scores by which arms are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.interfaces.metric import Metric
from harness.types import Role, Suite


@dataclass(frozen=True)
class ScoredSuite:
    """A suite with the metrics that produce its scores.

    Attributes:
        name: The name of the suite.
        role: Its role.
        primary: Its key `primary`.
        metrics: Metric name -> metric.
    """

    name: str
    role: Role
    primary: str | None
    metrics: Mapping[str, Metric]

    @property
    def primary_score(self) -> str | None:
        """The primary score as `suite/score`; None if there is none."""
        chosen = choose_primary_score(self.role, self.primary, self.metrics)
        return None if chosen is None else f"{self.name}/{chosen[1]}"

    def has_score(self, name: str) -> bool:
        """Return whether the suite has a score of this name that measures more than wording."""
        return any(name in metric.score_names and not metric.compares_wording for metric in self.metrics.values())


def primary_score(suite: Suite, metrics: Mapping[str, Metric]) -> tuple[Metric, str] | None:
    """Return the metric and the name of the suite's primary score; see `choose_primary_score`."""
    return choose_primary_score(suite.role, suite.primary, metrics)


def primary_margin(suite: Suite, metric: Metric, name: str, base: float) -> float:
    """Return the largest loss of a suite's primary score that does not count as forgetting.

    Args:
        suite: The suite.
        metric: The metric of the score.
        name: The name of the score.
        base: The value that a loss is measured from.
    """
    return suite.margin or metric.default_margin(name, base)


def choose_primary_score(role: str, primary: str | None, metrics: Mapping[str, Metric]) -> tuple[Metric, str] | None:
    """Choose the score by which a suite is judged.

    It is the score that the suite's key `primary` names, else the first score whose direction is known, in the order
    of the suite's metrics. If that one compares wording (ROUGE, BLEU, chrF, TER, BERTScore) and the suite is general,
    it is the NLL of the responses, if the suite has it: general answers can be wrong in the right words.

    Args:
        role: The suite's role.
        primary: The suite's key `primary`.
        metrics: Metric name -> metric of this suite.

    Returns:
        Metric and score name; None if no score has a direction, or if none has the name in `primary`.
    """
    candidates = [
        (metric, name)
        for metric in metrics.values()
        for name in metric.score_names
        if metric.higher_is_better is not None and primary in (None, name)
    ]
    if not candidates:
        return None
    if primary is None and role == "general" and candidates[0][0].compares_wording:
        likelihoods = [
            (metric, name)
            for metric, name in candidates
            if metric.requires == "likelihood" and metric.tested_as(name) == name  # the NLL, not its perplexity
        ]
        candidates = likelihoods or candidates
    return candidates[0]


def default_axes(suites: Sequence[ScoredSuite], gain: str | None, forgetting: str | None) -> tuple[str, str] | None:
    """Choose the two scores by which arms are compared.

    Args:
        suites: The baseline's suites.
        gain: The spec's gain score; None: the primary score of the first domain suite that has one.
        forgetting: The spec's forgetting score; None: of the first general suite with a primary score, the score with
            the gain's name if it has one that measures more than wording, else the primary score.

    Returns:
        Gain and forgetting score; None if one is neither given nor can be chosen.
    """
    first = {suite.role: suite for suite in reversed(suites) if suite.primary_score is not None}
    domain, general = first.get("domain"), first.get("general")
    gain = gain or (None if domain is None else domain.primary_score)
    if gain is None or (forgetting is None and general is None):
        return None
    if forgetting is None and general is not None:
        name = gain.partition("/")[2]
        forgetting = f"{general.name}/{name}" if general.has_score(name) else general.primary_score
    return None if forgetting is None else (gain, forgetting)
