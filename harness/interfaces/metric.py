"""The base class of metrics: per-item statistics, and how their sum becomes a score."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from harness.interfaces import result_checks
from harness.interfaces.guard import ElementCheck, GuardedComponent, ResultCheck
from harness.types import Item

MetricInput = Literal["answer", "likelihood", "base", "choices", "text", "model"]


class Metric(GuardedComponent):
    """A score of the items of one suite.

    A metric returns one vector of statistics per item. Its value over any set of items is `aggregate` of their sum, or
    `aggregate_items` of all vectors for a score such as a median or a macro F1. Every metric, corpus metrics such as
    BLEU included, can therefore be resampled without new measurements.
    """

    guarded_methods: ClassVar[Mapping[str, ResultCheck | None]] = {
        "signature": result_checks.check_string,
        "prepare": result_checks.check_iterable,
        "measure": result_checks.check_iterable,
        "statistics": result_checks.check_statistics,
        "aggregate": result_checks.check_number,
        "aggregate_items": result_checks.check_number,
        "is_ratio": result_checks.check_bool,
        "default_margin": result_checks.check_margin,
        "tested_as": result_checks.check_score_name,
        "is_parsed": result_checks.check_bool,
        "diagnostics": result_checks.check_mapping,
        "unusable_reason": result_checks.check_string,
        "check_available": None,
    }
    element_checks: ClassVar[Mapping[str, ElementCheck]] = {
        "prepare": result_checks.check_computed,
        "measure": result_checks.check_computed,
    }
    required_members = ("requires", "score_names", "signature", "statistics", "aggregate or aggregate_items")

    requires: ClassVar[MetricInput]
    """What the model must do for this metric.

    `answer`: answer the prompt. `likelihood`: score the reference response. `base`: be compared with the base model on
    the reference response. `choices`: score the choices of a multiple-choice question. `text`: score a plain text.
    `model`: be there, for `measure`.
    """

    higher_is_better: bool | None = True
    """None: neither direction is better, as with a ratio of lengths."""

    score_range: ClassVar[float] = 1.0
    """Best value minus worst value of the scores: 1 for fractions, 100 for percentages."""

    compares_wording: ClassVar[bool] = False
    """Whether the scores say how similar the words of an answer are to the reference, as ROUGE does.

    A wrong answer can have many words in common with the right one. So a general suite that also has the likelihood of
    its responses is judged by that, unless it names another `primary` score.
    """

    min_samples: int = 1
    """How many answers to each prompt it needs; the suite's `samples` must be at least this."""

    score_names: tuple[str, ...]
    """The scores of this metric, e.g. `("rouge1", "rouge2", "rougeL")`."""

    def signature(self) -> str:
        """Return one line that defines the scores: tokenizer, options, version."""
        raise NotImplementedError

    def prepare(self, items: Sequence[Item]) -> Iterable[tuple[Item, Any]]:
        """Compute something expensive, such as the verdict of a judge, before `statistics`.

        It is called once for each suite and stage, with the measured items that have no stored value. Each value is
        stored at once, so that a resumed evaluation computes the others only. The order is free: requests can be
        concurrent. By default there is nothing to compute.

        Args:
            items: The items to compute a value for.

        Returns:
            An iterator of (item, value), one for each item. `statistics` gets the value as `item.computed`. It is a
            JSON value that depends on its item and on `signature` alone.
        """
        return ()

    def measure(self, model: Any, tokenizer: Any, items: Sequence[Item]) -> Iterable[tuple[Item, Any]]:
        """Measure the model, if `requires` is `model`, without gradients and in evaluation mode.

        Values are stored and passed on as those of `prepare`. A value may also depend on the model: it is used again
        for the same weights only.

        Args:
            model: The loaded causal language model. Leave it unchanged.
            tokenizer: Its tokenizer.
            items: The items to measure.

        Returns:
            An iterator of (item, value), as in `prepare`.
        """
        raise NotImplementedError

    @property
    def computes_values(self) -> bool:
        """Whether the metric computes values of the items before their statistics."""
        return self.requires == "model" or type(self).prepare is not Metric.prepare

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

    def aggregate_items(self, name: str, statistics: Any) -> float:
        """Return the score `name` of a set of items from all vectors, for a score that is not a function of their sum.

        It is called some thousand times with samples of the items, in which items repeat; see `harness.statistics`. By
        default it is `aggregate` of the sum, which needs much less work.

        Args:
            name: One of `score_names`.
            statistics: The items' statistics of that score, a float array (items, statistics).
        """
        return self.aggregate(name, statistics.sum(axis=0).tolist())

    @property
    def sums_statistics(self) -> bool:
        """Whether the scores are functions of the sum of the items' statistics."""
        return type(self).aggregate_items is Metric.aggregate_items

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

    def diagnostics(self, items: Sequence[Item]) -> Mapping[str, float]:
        """Return numbers that say how far the scores can be trusted, such as the consistency of a judge.

        They are stored and shown with the scores. By default there are none.

        Args:
            items: The items of the suite, with their computed values.
        """
        return {}

    def unusable_reason(self, items: Sequence[Item]) -> str:
        """Return why the scores do not measure what they name; "" if they do, which is the default.

        Scores with a reason are stored and shown, but no verdict, gate or comparison uses them.

        Args:
            items: The items of the suite, with their computed values.
        """
        return ""

    def check_available(self) -> None:
        """Check that everything the metric needs is there, such as the folder of an encoder.

        Called before training starts. By default nothing is needed.

        Raises:
            HarnessError: Something is missing.
        """
