"""Count the columns of rows and the keys of messages that are not read, so that nothing is ignored without a word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness.data.reading.messages import READ_KEYS
from harness.data.reading.row_formats import ROW_FORMATS, ColumnLayout
from harness.data.reading.row_options import RowOptions
from harness.utils.formatting import one_line

MESSAGE_COLUMNS = ("messages", "conversations", "prompt", "completion")
"""Columns that may hold messages."""

MAX_KEYS_COUNTED = 100
"""Distinct keys that are counted; data with keys that differ in every row would take memory."""

HINT_FLAG = 'flag the messages: "train": false'
HINT_TEXT_ONLY = "only text is trained; remove the column, or these rows"
MEANINGFUL_KEYS: Mapping[str, str] = {
    **dict.fromkeys(("images", "image", "videos", "video", "audios", "audio"), HINT_TEXT_ONLY),
    **dict.fromkeys(("train", "loss", "weight", "loss_weight", "mask", "masked", "training"), HINT_FLAG),
    "chat_template_kwargs": 'set them for all rows: "template": {"tokenizer": {"variables": {…}}}',
    "documents": "write them into a message",
    **dict.fromkeys(("tools", "functions"), 'a row format with messages reads them: "form": "messages"'),
    **dict.fromkeys(("tool_calls", "function_call"), "write the calls in the assistant's message"),
    **dict.fromkeys(("reasoning_content", "reasoning", "thinking"), "write it in the assistant's message"),
    **dict.fromkeys(
        ("system", "system_prompt", "history", "input", "context"),
        'name the column in "columns" or set another "form", if it belongs to the conversation',
    ),
    "rejected": "preferences are not trained; only the accepted answer is",
}
"""Keys that change what is trained wherever they are read, with what to do."""


def remedy_for_key(key: str) -> str | None:
    """Return what to do about an unread key, as `UnreadKeys.counts` names it; None if it does not change training."""
    return MEANINGFUL_KEYS.get(_split_key(key)[1])


def _split_key(key: str) -> tuple[str, str]:
    """Return the column and the key of a message; the column is blank for a column of the row."""
    column, _, message_key = key.partition(".")
    return (column, message_key) if column in MESSAGE_COLUMNS and message_key else ("", key)


class UnreadKeys:
    """Counts unread keys of a source.

    Attributes:
        counts: Column -> rows that have it; `messages.key` -> messages that have the key. A key whose value is null,
            blank or empty is not counted.
    """

    def __init__(
        self,
        options: RowOptions,
        group_columns: Sequence[str] = (),
        layouts: Mapping[str, ColumnLayout] | None = None,
    ) -> None:
        """Start to count; `group_columns` are read too. See `SourceReader` and `row_formats.name_and_layouts`."""
        self._group_columns = {name for column in group_columns for name in (column, column.partition(".")[0])}
        self.counts: Counter[str] = Counter()
        self._message_keys = READ_KEYS | {*options.message_keys.role_keys, *options.message_keys.content_keys}
        self._columns: dict[str, frozenset[str]] = {
            name: frozenset((*row_format.required_keys, *row_format.optional_keys))
            for name, row_format in (ROW_FORMATS if layouts is None else layouts).items()
        }

    def add_row(self, row: Mapping[str, Any], format_name: str) -> None:
        """Count the keys of a row that its format does not read, and those of its messages."""
        read = self._columns[format_name]
        for key in row.keys() - read - self._group_columns:
            self._count(key, row[key])
        for column in read & row.keys():
            turns = row[column]
            if column in MESSAGE_COLUMNS and isinstance(turns, (list, tuple)):
                for turn in turns:
                    if isinstance(turn, Mapping):
                        for key in turn.keys() - self._message_keys:
                            self._count(f"{column}.{key}", turn[key])

    def warnings(self, source: str, rows: int) -> Iterator[str]:
        """Yield a warning for each unread key that changes training where it is read.

        Args:
            source: The name of the source.
            rows: The rows that were read.
        """
        for key, count in sorted(self.counts.items()):
            hint = remedy_for_key(key)
            if hint is not None:
                column, message_key = _split_key(key)
                where = f"{count:,} message(s) of {column!r}" if column else f"{count:,} of {rows:,} rows"
                yield f"sources.{source}: {where} have {message_key!r}, which is not read; {hint}"

    def _count(self, key: str, value: Any) -> None:
        if value is None or (isinstance(value, (str, list, tuple, Mapping)) and not value):
            return
        name = one_line(str(key), 60)
        if name in self.counts or len(self.counts) < MAX_KEYS_COUNTED:
            self.counts[name] += 1
