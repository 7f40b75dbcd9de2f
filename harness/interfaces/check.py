"""The base class of data checks: findings in the rows of training and evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar

from harness.interfaces import result_checks
from harness.interfaces.guard import ElementCheck, GuardedComponent, ResultCheck
from harness.types import Example, Finding


class Check(GuardedComponent):
    """A check of the data, before a model is loaded."""

    guarded_methods: ClassVar[Mapping[str, ResultCheck | None]] = {
        "find_issues": result_checks.check_iterable,
        "check_available": None,
    }
    element_checks: ClassVar[Mapping[str, ElementCheck]] = {"find_issues": result_checks.check_finding}
    required_members = ("find_issues",)

    def find_issues(self, rows: Iterable[Example], *, name: str, is_training: bool) -> Iterator[Finding]:
        """Yield what is wrong with rows, each with the location of its row.

        Called once for each source that is trained on, and once for each suite.

        Args:
            rows: The rows, in order. They are read from disk one by one.
            name: Name of the source or of the suite.
            is_training: Whether the rows are those of a source to train on; false: those that a suite evaluates.
        """
        raise NotImplementedError

    def check_available(self) -> None:
        """Check that everything the check needs is installed. Called before the rows are read.

        Raises:
            HarnessError: Something is missing; the hint has the command that installs it.
        """
