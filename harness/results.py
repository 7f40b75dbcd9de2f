"""What an evaluation comes to: items, the scores drawn from them, and the limits that they break.

Part of `harness.contracts`, from where the rest of the program takes these nouns; imports nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ROUNDING = 1e-10
"""Numbers that differ by less than this part of their size count as equal: sums of the same numbers in different
orders, as different processors add them, differ by less."""


@dataclass(frozen=True)
class Item:
    """What the model did with one held-out row. What no metric asked for is None.

    answer, finish: the generated text, of `answer_tokens` tokens, and why it ended: `eos`, `stop`, `length` (it was
        truncated at `max_new_tokens`), `empty` (it is blank).
    prompt_tokens, prompt_cut: of the prompt it was generated from, and whether that lost its beginning.
    nll: summed negative log-likelihood of the reference response, in nats, over `tokens` tokens. row_cut: whether the
        row lost its end (or a multiple-choice question its beginning).
    kl, agreed: over the same `tokens`, the summed KL divergence of the model from the base, KL(base || model), in
        nats, and at how many of them both hold the same token for the likeliest.
    choices, gold: of a multiple-choice row, and which is right. choice_lls: the summed log-likelihood of each in nats.
    joined: how many choices share a token with the prompt, so that the likelihood is of a little less than the choice.
    text_nll: summed negative log-likelihood of a plain text (it stands in `reference`), over `text_tokens` tokens.
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


@dataclass(frozen=True)
class Score:
    """One number of one suite after one stage (stage 0: the base model), with what is needed to compare it.

    low, high: bounds of the 95 % interval. method: how it and `stderr` were found (see `intervals.Estimate`).
    counts: what to know beside the number, of its `n` items: `empty`, `truncated`, `unparsed` and `prompt_cut` of
    answers, `row_cut` of likelihoods, `boundary` (items whose choices share a token with the prompt).
    statistics: one vector an item, in the order of the suite's items; `Metric.aggregate` of their sum gives `value`.
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
    method: str = "bootstrap"
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Breach:
    """A suite in which more items than its spec allows are no measure of the model.

    what: `empty`, `truncated`, `unparsed` or `cut`. metric: whose answers were unparsed. allowed: a share of `n`.
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
    """One suite after one stage: its items, the scores drawn from them, and which of the suite's limits they break.

    An evaluation that breaks a limit is complete and saved; who runs it fails with `evaluate.require`.
    """

    stage: int
    suite: str
    items: tuple[Item, ...]
    scores: tuple[Score, ...]
    breaches: tuple[Breach, ...] = ()

    def like(self, score: Score) -> Score | None:
        """Its score of the same metric and name; None where there is none."""
        return next((one for one in self.scores if (one.metric, one.name) == (score.metric, score.name)), None)
