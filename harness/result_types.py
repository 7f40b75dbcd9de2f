"""Frozen data classes of results: items, scores and evaluations. `harness.types` has them as well, for plugins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


class Progress(Protocol):
    """A callback that reports the progress of a long phase.

    `total` is 0 while it is unknown. `unit` is the unit of `done`, e.g. `B` or `rows`.
    """

    def __call__(self, phase: str, done: int, total: int, note: str = "", unit: str = "") -> None:
        """Report that `done` of `total` units of a phase are done."""


def no_progress(phase: str, done: int, total: int, note: str = "", unit: str = "") -> None:
    """Ignore progress."""


MIN_ITEMS = 30
"""Minimum number of items for a verdict or a gate: intervals over fewer items are too narrow."""

ROUNDING = 1e-10
"""Relative tolerance within which two numbers count as equal.

Processors add in different orders; their sums differ by less.
"""


@dataclass(frozen=True)
class Item:
    """The model's results on one held-out row. Fields that no metric requires are None.

    Attributes:
        id: The example's id.
        prompt: The rendered prompt.
        reference: The reference response, or the plain text.
        answer: The generated text, of `answer_tokens` tokens.
        finish: Why generation ended: `eos`, `stop`, `length` (truncated at `max_new_tokens`) or `empty` (blank answer).
        nll: Summed negative log-likelihood of the reference, in nats, over `tokens` tokens.
        tokens: Number of reference tokens.
        answer_tokens: Number of generated tokens.
        more_answers: The second to last answer to the prompt, if the suite has several `samples`. `finish` and
            `answer_tokens` belong to the first.
        reference_calls: The tool calls of the reference response, each with `name` and `arguments`.
        computed: In `Metric.statistics` what `Metric.prepare` or `Metric.measure` yielded for the item; elsewhere None.
        prompt_tokens: Number of prompt tokens.
        prompt_cut: Whether the prompt lost its beginning.
        row_cut: Whether the row lost its end, or a multiple-choice question its beginning.
        kl: Summed KL(base || model) over `tokens` tokens, in nats.
        agreed: At how many of `tokens` tokens model and base have the same most likely token.
        choices: The choices of a multiple-choice row.
        gold: The index of the right choice.
        choice_lls: The summed log-likelihood of each choice, in nats.
        joined: How many choices share a token with the prompt. Their likelihood covers slightly less than the choice.
        text_nll: Summed negative log-likelihood of a plain text, in nats, over `text_tokens` tokens.
        text_tokens: Number of tokens of the plain text.
        group: The group of items to which the row belongs, such as its document; None if the suite has no groups.
        slices: (column, value) of each column by which the suite is sliced.
        data: The columns of the row that the source's `keep` names, as JSON values; null where the row lacks one.
    """

    id: str
    prompt: str
    reference: str
    answer: str | None = None
    finish: str | None = None
    nll: float | None = None
    tokens: int = 0
    answer_tokens: int = 0
    prompt_tokens: int = 0
    prompt_cut: bool = False
    row_cut: bool = False
    kl: float | None = None
    agreed: int | None = None
    choices: tuple[str, ...] = ()
    gold: int | None = None
    choice_lls: tuple[float, ...] | None = None
    joined: int = 0
    text_nll: float | None = None
    text_tokens: int = 0
    group: str | None = None
    slices: tuple[tuple[str, str], ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    more_answers: tuple[str, ...] = ()
    reference_calls: tuple[Mapping[str, Any], ...] = ()
    computed: Any = None

    @property
    def answers(self) -> tuple[str, ...]:
        """All generated answers to the prompt: as many as the suite's `samples`."""
        return () if self.answer is None else (self.answer, *self.more_answers)


@dataclass(frozen=True)
class Score:
    """One score of one suite after one stage, with what is needed to compare it.

    Attributes:
        stage: Index of the stage; 0 for the base model.
        suite: The suite's name.
        metric: The metric's name.
        name: The score's name.
        value: The score.
        n: Number of items.
        stderr: Standard error.
        low: Lower bound of the 95 % interval.
        high: Upper bound of the 95 % interval.
        higher_is_better: The direction; None if neither direction is better.
        signature: The metric's options; scores with different signatures are not comparable.
        statistics: One vector an item, in the order of the suite's items. `Metric.aggregate` of their sum is `value`.
        method: How interval and standard error were computed; see `intervals.Estimate`.
        groups: Number of groups of items that belong together; None if all items are independent.
        counts: Counts among the `n` items: `empty`, `truncated`, `unparsed` and `prompt_cut` answers, `row_cut`
            likelihoods, `boundary` (items whose choices share a token with the prompt).
        diagnostics: Numbers that say how far the score can be trusted, see `Metric.diagnostics`.
        unusable: Why no verdict, gate or comparison uses the score; empty if they do.
    """

    stage: int
    suite: str
    metric: str
    name: str
    value: float
    n: int
    stderr: float
    low: float
    high: float
    higher_is_better: bool | None
    signature: str
    statistics: tuple[tuple[float, ...], ...] = field(repr=False, default=())
    method: str = "t"
    groups: int | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    unusable: str = ""


@dataclass(frozen=True)
class LimitViolation:
    """A suite with more unusable items than its spec allows.

    Attributes:
        stage: Index of the stage.
        suite: The suite's name.
        what: `empty`, `truncated`, `unparsed` or `cut`.
        count: Number of such items.
        n: Number of items.
        allowed: The allowed fraction of `n`.
        metric: The metric that could not parse the answers; empty for the other limits.
    """

    stage: int
    suite: str
    what: str
    count: int
    n: int
    allowed: float
    metric: str = ""

    def __str__(self) -> str:
        share, of = self.count / self.n, f" by {self.metric}" if self.metric else ""
        return f"{self.count} of {self.n} items are {self.what}{of} ({share:.1%}, {self.allowed:.1%} are allowed)"


@dataclass(frozen=True)
class Evaluation:
    """One suite after one stage: its items, their scores and the limits that they violate.

    An evaluation that violates a limit is complete and saved. The run then fails through `raise_on_violations`.

    Attributes:
        stage: The index of the stage; 0 is the model before training.
        suite: The name of the suite.
        items: The results on each row.
        scores: The scores of all metrics.
        violations: The limits that the suite violates.
        is_from_cache: Whether an earlier run measured the base model.
    """

    stage: int
    suite: str
    items: tuple[Item, ...]
    scores: tuple[Score, ...]
    violations: tuple[LimitViolation, ...] = ()
    is_from_cache: bool = field(default=False, compare=False)

    def matching_score(self, score: Score) -> Score | None:
        """Return the score of the same metric and name, or None."""
        key = (score.metric, score.name)
        return next((candidate for candidate in self.scores if (candidate.metric, candidate.name) == key), None)
