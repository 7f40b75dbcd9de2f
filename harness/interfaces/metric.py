"""The base class of metrics: per-item statistics, and how their sum becomes a score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from harness.types import Item

MetricInput = Literal["answer", "likelihood", "base", "choices", "text"]


class Metric:
    """A score of the items of one suite.

    A metric returns one vector of statistics per item. Its value over any set of items is `aggregate` of their sum.
    Every metric, corpus metrics such as BLEU included, can therefore be resampled without new measurements.
    """

    requires: ClassVar[MetricInput]
    """What the model must do for this metric.

    `answer`: answer the prompt. `likelihood`: score the reference response. `base`: be compared with the base model on
    the reference response. `choices`: score the choices of a multiple-choice question. `text`: score a plain text.
    """

    higher_is_better: bool | None = True
    """None: neither direction is better, as with a ratio of lengths."""

    score_range: ClassVar[float] = 1.0
    """Best value minus worst value of the scores: 1 for fractions, 100 for percentages."""

    score_names: tuple[str, ...]
    """The scores of this metric, e.g. `("rouge1", "rouge2", "rougeL")`."""

    def signature(self) -> str:
        """Return one line that defines the scores: tokenizer, options, version."""
        raise NotImplementedError

    def statistics(self, item: Item) -> dict[str, tuple[float, ...]]:
        """Return score name -> statistics of one item.

        The vectors of one score have the same length for every item.
        """
        raise NotImplementedError

    def aggregate(self, name: str, total: Sequence[float]) -> float:
        """Return the score `name` of a set of items.

        Args:
            name: One of `score_names`.
            total: The sum of the items' statistics of that score.
        """
        raise NotImplementedError

    def is_ratio(self, name: str) -> bool:
        """Return whether the score is the first statistic's sum over the second's, up to a constant factor.

        A ratio whose items are all 0 or 1, out of 1, is a fraction, with the interval of a proportion. A ratio is
        tested with Student's t, another score of a corpus with approximate randomization.
        """
        return False

    def default_margin(self, name: str, base: float) -> float:
        """Return the largest loss of the score that does not count as forgetting, unless the spec gives a `margin`.

        By default it is 2 % of the score's range, which is 1 unless `score_range` says otherwise.

        Args:
            name: One of `score_names`.
            base: The score of the base model.

        Returns:
            A loss above 0, in units of the score.
        """
        return 0.02 * self.score_range

    def tested_as(self, name: str) -> str:
        """Return the score whose significance test also decides about the score `name`.

        It is the score itself, or the ratio that it is an increasing function of: the mean NLL of a perplexity.
        "No difference" is then the same hypothesis, and counts once in a correction for several tests.
        """
        return name

    def is_parsed(self, item: Item) -> bool:
        """Return whether the item's answer contains what the metric looks for.

        Unparsed answers are scored all the same, and counted.
        """
        return True

    def check_available(self) -> None:
        """Check that everything the metric needs is there, such as the folder of an encoder.

        Called before training starts. By default nothing is needed.

        Raises:
            HarnessError: Something is missing.
        """
