"""The values that metrics compute from items before their statistics: judgements, or outputs of the loaded model.

Each value is stored as soon as it is there, as an answer is. A metric that fails keeps the others, and a resumed
evaluation computes only those that are missing.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.errors import ComponentError
from harness.interfaces.guard import identify
from harness.interfaces.metric import Metric
from harness.types import Item

if TYPE_CHECKING:
    from harness.evaluation.context import EvalContext, ItemCallback

MEASURED_FIELDS: dict[str, tuple[str, ...]] = {
    "answer": ("answer", "finish", "more_answers"),
    "likelihood": ("nll", "tokens"),
    "base": ("kl", "agreed", "tokens"),
    "choices": ("choices", "gold", "choice_lls"),
    "text": ("text_nll", "text_tokens"),
    "model": (),
}
"""`Metric.requires` -> the measured fields of an item that a value depends on."""

CONTENT_FIELDS = ("prompt", "reference", "data", "choices")
"""The fields that come from the item's row."""


def measurement_type(metric_name: str) -> str:
    """Return the name under which the predictions file has the settings of a metric's values."""
    return f"metric:{metric_name}"


class MetricValues:
    """The values of one metric, as a `ModelMeasurement` whose field is `computed`: metric -> value."""

    def __init__(self, name: str, metric: Metric, items: Sequence[Item], context: EvalContext) -> None:
        """Create the measurement.

        Args:
            name: Name of the metric in the suite.
            metric: The metric.
            items: All items of the suite, measured.
            context: The model and the suite.
        """
        self._name, self._metric, self._items, self._context = name, metric, items, context
        self.settings: Mapping[str, Any] = {"signature": metric.signature()}

    def request_key(self, index: int) -> Any:
        """Return the fields of the item that its value depends on."""
        names = (*CONTENT_FIELDS, *MEASURED_FIELDS[self._metric.requires])
        return {name: getattr(self._items[index], name) for name in names}

    def run(self, todo: Sequence[int], on_item: ItemCallback) -> None:
        """Compute the values of the items `todo`; see `ModelMeasurement.run`."""
        items = [self._items[index] for index in todo]
        if self._metric.requires != "model":
            values = iter_values(self._metric, items, "prepare", self._metric.prepare(items))
            for position, value in values:
                on_item(todo[position], {"computed": {self._name: value}})
            return
        import torch

        with torch.no_grad():
            measured = self._metric.measure(self._context.require_model(), self._context.tokenizer, items)
            for position, value in iter_values(self._metric, items, "measure", measured):
                on_item(todo[position], {"computed": {self._name: value}})


def iter_values(
    metric: Metric, items: Sequence[Item], method: str, values: Iterable[tuple[Item, Any]]
) -> Iterator[tuple[int, Any]]:
    """Yield (index of the item, value) for the (item, value) that a metric yields.

    Args:
        metric: The metric.
        items: The items that it was called with.
        method: `prepare` or `measure`, for errors.
        values: What it returned.

    Raises:
        ComponentError: An item has no value, has two, or is not one of `items`.
    """
    missing: dict[str, deque[int]] = defaultdict(deque)
    for index, item in enumerate(items):
        missing[item.id].append(index)
    where = f"{identify(metric)}, {method}"
    for item, value in values:
        if not missing[item.id]:
            raise ComponentError(where, f"yielded the item {item.id}, which has a value already or was not passed")
        # Rows can have one id and different answers, and the order is free: the object decides, where it is passed on.
        index = next((each for each in missing[item.id] if items[each] is item), missing[item.id][0])
        missing[item.id].remove(index)
        yield index, value
    without = [item_id for item_id, indices in missing.items() if indices]
    if without:
        raise ComponentError(where, f"yielded no value for {len(without)} of {len(items)} items, e.g. {without[0]}")


def with_values(items: Sequence[Item], metric: Metric, values: Sequence[Any] | None = None) -> Sequence[Item]:
    """Return the items with the values that the metric computes.

    Args:
        items: The measured items.
        metric: The metric.
        values: Its value of each item; None: `prepare` computes them.
    """
    if not metric.computes_values:
        return items
    if values is None:
        of_index = dict(iter_values(metric, items, "prepare", metric.prepare(items)))
        values = [of_index[index] for index in range(len(items))]
    return [replace(item, computed=value) for item, value in zip(items, values, strict=True)]
