"""The base class of modes: how sources become training stages, and which of their rows are trained in which order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from harness.interfaces import result_checks
from harness.interfaces.guard import GuardedComponent, ResultCheck
from harness.types import SourceRows, Stage


class Mode(GuardedComponent):
    """A training schedule: the stages of a run and the sources of each. Its module imports nothing heavy.

    `select` and `order` are called while the data is prepared, once for each source of each stage. Rows that are not
    selected count as unused. Their results must depend on the arguments alone: every process, and a resumed run, calls
    them again.
    """

    guarded_methods: ClassVar[Mapping[str, ResultCheck | None]] = {
        "stages": result_checks.check_stages,
        "select": result_checks.check_selection,
        "order": result_checks.check_order,
    }
    required_members = ("stages",)

    def stages(self) -> tuple[Stage, ...]:
        """Return the stages in order. `Stage.train` holds only what differs from the spec's `train`."""
        raise NotImplementedError

    def select(self, stage: Stage, rows: SourceRows) -> Sequence[bool] | None:
        """Return which rows of a source the stage may train on, before its shares and limits apply.

        Args:
            stage: The stage, as mitigations have changed it.
            rows: N rows of one source of the stage.

        Returns:
            (N,) whether a row is selected; None: all rows.
        """
        return None

    def order(self, stage: Stage, rows: SourceRows) -> Sequence[float] | None:
        """Return a key for each row. In every epoch, rows of a source with lower keys are trained first.

        Rows of several sources stay evenly spread, so shares hold at every point of the stage. Rows with equal keys are
        in random order. Batches are not grouped by length. `train.packing` is refused.

        Args:
            stage: The stage, as mitigations have changed it.
            rows: The selected N rows of one source of the stage.

        Returns:
            (N,) finite keys; None: random order.
        """
        return None
