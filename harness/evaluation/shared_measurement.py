"""Measure the items of a suite in all processes of a run.

Item i belongs to process i modulo their number. A process puts the items of its share into batches as if the suite had
no others, so its batches do not depend on what other processes measure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.evaluation.batch_support import BatchSupport
from harness.evaluation.context import EvalContext, ItemCallback, ModelMeasurement

CreateMeasurement = Callable[[EvalContext], ModelMeasurement]

BATCHES_OF_A_REQUEST = 16
"""Batches of answers that a process generates before the main process stores them.

The other measurements are one request: they put all items of a share into batches, whatever is requested.
"""


@dataclass(frozen=True)
class MeasurementRequest:
    """What the main process asks the other processes to measure.

    Attributes:
        suite: Name of the suite.
        stage: Index of the stage.
        requirement: `Metric.requires`.
        todo: The items that are not measured yet, of all processes.
        batch_support: What the model's batches may look like.
    """

    suite: str
    stage: int
    requirement: str
    todo: tuple[int, ...]
    batch_support: BatchSupport


class SharedMeasurement:
    """A measurement whose items are split over the processes of its context. The main process runs it."""

    def __init__(self, context: EvalContext, requirement: str, create_measurement: CreateMeasurement) -> None:
        """Create the measurement.

        Args:
            context: The model and the suite. The other processes perform a `MeasurementRequest`.
            requirement: `Metric.requires`.
            create_measurement: Returns the measurement of a context.
        """
        self._context, self._requirement, self._create_measurement = context, requirement, create_measurement
        self._measurement = create_measurement(context)

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `ModelMeasurement`."""
        return self._measurement.settings

    def request_key(self, index: int) -> Any:
        """See `ModelMeasurement`."""
        return self._measurement.request_key(index)

    def run(self, todo: Sequence[int], on_item: ItemCallback) -> None:
        """Measure the items `todo`: those of this process are reported as they are done, then those of the others."""
        for part in self._split(todo):
            self._measure(part, on_item)

    def _split(self, todo: Sequence[int]) -> list[list[int]]:
        """Return the items of each request."""
        if self._requirement != "answer":
            return [list(todo)]
        size = self._context.processes.world_size * self._context.suite.batch_size * BATCHES_OF_A_REQUEST
        parts: dict[int, list[int]] = defaultdict(list)
        for index in todo:
            parts[index // size].append(index)
        return [parts[number] for number in sorted(parts)]

    def _measure(self, todo: Sequence[int], on_item: ItemCallback) -> None:
        context = self._context
        request = MeasurementRequest(
            context.suite.name, context.stage, self._requirement, tuple(todo), context.batch_support
        )
        shares: list[Mapping[int, Mapping[str, Any]]] = context.processes.share(
            request, lambda: measure_share(context, self._create_measurement, todo, on_item)
        )
        for measured in shares:
            for index, fields in measured.items():
                on_item(index, fields)


def measure_share(
    context: EvalContext, create_measurement: CreateMeasurement, todo: Sequence[int], on_item: ItemCallback
) -> None:
    """Measure the items of `todo` that belong to this process.

    Args:
        context: The model and all examples of the suite.
        create_measurement: Returns the measurement of a context.
        todo: Items of the suite.
        on_item: Receives each measured item.
    """
    share = range(context.processes.rank, len(context.examples), context.processes.world_size)
    wanted = set(todo)
    positions = [position for position, index in enumerate(share) if index in wanted]
    if positions:
        measurement = create_measurement(replace(context, examples=[context.examples[index] for index in share]))
        measurement.run(positions, lambda position, fields: on_item(share[position], fields))
