"""Base class of sources."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from harness.types import InvalidRecord, Record


class Source:
    """A place that rows come from."""

    def records(self) -> Iterator[Record | InvalidRecord]:
        """Every raw row with its place, in a fixed order, made one by one: not all are asked for when `head` is given.

        A row that cannot be read is an `InvalidRecord`, which the spec may allow a share of. Raises HarnessError for
        what cannot be read as a whole.
        """
        raise NotImplementedError

    def metadata(self) -> Mapping[str, str]:
        """What was read, once it has been read, for the run's record: e.g. `commit` of a dataset of the hub."""
        return {}

    def warnings(self) -> Sequence[str]:
        """What a person should know of the data, once it has been read; see `Plan.warnings`."""
        return ()
