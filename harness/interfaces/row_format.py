"""The base class of row formats: how the columns of a row become a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from harness.interfaces import result_checks
from harness.interfaces.guard import GuardedComponent, ResultCheck
from harness.types import Message


class RowFormat(GuardedComponent):
    """A row format that a source names in `form`. Only built-in formats are detected.

    Attributes:
        required_keys: Columns that every row has. A row without one is invalid.
        optional_keys: Columns that a row may have. Other columns are reported as not read. With `tools` among them, the
            core reads the tools of a row.
    """

    guarded_methods: ClassVar[Mapping[str, ResultCheck | None]] = {"parse_row": result_checks.check_messages}
    required_members = ("parse_row", "required_keys")

    required_keys: tuple[str, ...]
    optional_keys: tuple[str, ...] = ()

    def parse_row(self, row: Mapping[str, Any]) -> Sequence[Message]:
        """Return the messages of a row, in order; the core checks the order of turns and applies `train_on`.

        Args:
            row: The columns of the row, under the names that the option `columns` gives them.

        Raises:
            InvalidRow: The row is not valid. The spec may allow a fraction of such rows.
        """
        raise NotImplementedError
