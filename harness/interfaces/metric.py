"""The base class of metrics: what is read of an item, and how items come to a number.

Knows no room, and imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from harness.types import Item

MetricInput = Literal["answer", "likelihood", "base", "choices", "text"]


class Metric:
    """A number drawn from a suite's items.

    A metric gives one vector of statistics an item; the value over any set of items is `aggregate` of their sum.
    That makes every metric, corpus metrics such as BLEU included, resample without being computed anew.
    """

    requires: ClassVar[MetricInput]
    """What the model must do for it: `answer` the prompt; tell the `likelihood` of the reference response; compare
    itself with the `base` model over that response; weigh the `choices` of a multiple-choice question; or foretell a
    plain `text`, whole."""

    higher_is_better: bool | None = True
    """None: neither direction is better as such, as with a ratio of lengths."""

    score_names: tuple[str, ...]
    """The scores that it gives, e.g. `("rouge1", "rouge2", "rougeL")`."""

    def signature(self) -> str:
        """What the number means: tokeniser, version, options, in one line."""
        raise NotImplementedError

    def statistics(self, item: Item) -> dict[str, tuple[float, ...]]:
        """Score name -> statistics of one item; the vectors of one score are equally long for every item."""
        raise NotImplementedError

    def aggregate(self, name: str, total: Sequence[float]) -> float:
        """The score `name` of the items whose statistics sum to `total`."""
        raise NotImplementedError

    def is_ratio(self, name: str) -> bool:
        """Whether the score is the first statistic's sum over the second's, up to a constant factor.

        Its standard error and interval then have a closed form; without, they are resampled.
        """
        return False

    def is_parsed(self, item: Item) -> bool:
        """Whether what the metric looks for was found in the item's answer; what was not is scored, and counted."""
        return True

    def check_available(self) -> None:
        """Raise HarnessError for what the metric needs and is not here, such as the folder of a model of its own.

        Called before anything is trained; by default nothing is needed."""
