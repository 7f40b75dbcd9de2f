"""The base class of sources: rows from a file, a hub or a program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from harness.interfaces import result_checks
from harness.interfaces.guard import ElementCheck, GuardedComponent, ResultCheck
from harness.types import InvalidRecord, Record


class Source(GuardedComponent):
    """A supplier of raw rows."""

    guarded_methods: ClassVar[Mapping[str, ResultCheck | None]] = {
        "records": result_checks.check_iterable,
        "metadata": result_checks.check_mapping,
        "warnings": result_checks.check_strings,
    }
    element_checks: ClassVar[Mapping[str, ElementCheck]] = {"records": result_checks.check_record}
    required_members = ("records",)

    def records(self) -> Iterator[Record | InvalidRecord]:
        """Yield every raw row with its location, in a fixed order.

        Yield rows one by one: with the key `head`, only the first ones are requested. A row that cannot be read is an
        `InvalidRecord`, of which the spec may allow a fraction.

        Raises:
            HarnessError: The source itself cannot be read.
        """
        raise NotImplementedError

    def metadata(self) -> Mapping[str, str]:
        """Return what was read, for the run's record, e.g. `commit` of a hub dataset. Called after reading."""
        return {}

    def warnings(self) -> Sequence[str]:
        """Return what the user should know of the data; see `Plan.warnings`. Called after reading."""
        return ()
