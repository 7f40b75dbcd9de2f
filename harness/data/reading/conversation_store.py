"""Store conversations on disk as one JSON line each, so that each row costs only a few bytes of memory.

A line is the row's head, a tab, and its body; the body is everything that can change the row's tokens. The head is the
row's location, or an array of location, groups and kept columns:

    "data/x.jsonl:14" TAB [[["u", "Hi"], ["a", "Hello."]]] LF
    ["data/x.jsonl:15", [["document", "d1"]], {"topic": "tea"}] TAB [[["u", "Hi"], ["a", "Hello."]]] LF

The file is read by offset in blocks and not memory-mapped: pages of a mapped file count as memory of the process. The
file has no name, so the system frees its space as soon as no process has it open, however the process ended.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast, overload

import numpy as np
from numpy.typing import NDArray

from harness.data.reading.disk_errors import disk_write_error
from harness.types import Example, Message, ToolCall

Indices = NDArray[np.int64]

ROWS_PER_READ = 512
"""Rows that `iter_rows` reads at once."""

MAX_READ_AMPLIFICATION = 8
"""`iter_rows` reads a block at once if it has at most this many times the bytes of the rows that it needs."""

_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_ROLE_CODES = {"system": "s", "user": "u", "assistant": "a", "tool": "t", "text": "x"}
_ROLE_OF_CODE = {code: role for role, code in _ROLE_CODES.items()}


class ConversationStore(Sequence[Example]):
    """Examples in an unlinked temporary file, readable while the object lives; see `write_examples`.

    Attributes:
        offsets: `(N + 1,)` int64, where each line begins, and where the last one ends.
        ids: `(N,)` uint64.
    """

    def __init__(self, file_descriptor: int, offsets: Indices, ids: NDArray[np.uint64]) -> None:
        """Take over the file descriptor, which is closed with the store."""
        self.offsets, self.ids = offsets, ids
        self._file_descriptor = file_descriptor
        weakref.finalize(self, os.close, self._file_descriptor)

    @classmethod
    def write_examples(cls, examples: Iterable[Example], folder: Path | None) -> tuple[ConversationStore, str]:
        """Write the examples to a file, one by one.

        Args:
            examples: Read once, in order.
            folder: An existing folder on the disk to use; None uses the system's folder for temporary files.

        Returns:
            The store, and the SHA-256 over the bodies of its lines in order.

        Raises:
            HarnessError: The file cannot be written.
        """
        digest = hashlib.sha256()
        offsets, ids, end = array("q", [0]), array("Q"), 0
        target_folder = Path(tempfile.gettempdir()) if folder is None else folder
        file = _open_temporary_file(target_folder)
        try:
            for example in examples:
                body = serialize_example(example)
                digest.update(body)
                has_columns = example.groups or example.data
                head = [example.location, example.groups, example.data] if has_columns else example.location
                line = b"%b\t%b\n" % (_to_json(head).encode("utf-8", "backslashreplace"), body)
                end += len(line)
                offsets.append(end)
                ids.append(int(example.id, 16))
                try:
                    file.write(line)
                except OSError as error:
                    raise disk_write_error(target_folder, error) from error
            try:
                file.flush()
            except OSError as error:
                raise disk_write_error(target_folder, error) from error
            file_descriptor = os.dup(file.fileno())
        finally:
            with contextlib.suppress(OSError):  # a failed write is already an error
                file.close()
        return cls(file_descriptor, np.array(offsets, np.int64), np.array(ids, np.uint64)), digest.hexdigest()

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return list(self.iter_rows(np.arange(len(self))[index]))
        begin, end, row = self._line_range(index)
        return _deserialize_example(self._read_bytes(begin, end - 1), int(self.ids[row]))

    def __iter__(self) -> Iterator[Example]:
        return self.iter_rows(np.arange(len(self)))

    def location_of(self, index: int) -> str:
        """Return the location of a row in the data, without building the row."""
        begin, end, _ = self._line_range(index)
        return _parse_head(self._read_bytes(begin, end).partition(b"\t")[0])[0]

    def iter_rows(self, indices: Indices) -> Iterator[Example]:
        """Yield the rows of these indices, in the given order; fast where neighbouring rows follow one another."""
        for position in range(0, len(indices), ROWS_PER_READ):
            batch = indices[position : position + ROWS_PER_READ]
            begins, ends = self.offsets[batch], self.offsets[batch + 1]
            first, last = int(begins.min()), int(ends.max())
            if last - first <= MAX_READ_AMPLIFICATION * int((ends - begins).sum()):
                block = self._read_bytes(first, last)
                lines = zip(
                    (begins - first).tolist(), (ends - first - 1).tolist(), self.ids[batch].tolist(), strict=True
                )
                for begin, end, row_id in lines:
                    yield _deserialize_example(block[begin:end], row_id)
            else:
                for index in batch.tolist():
                    yield self[index]

    def _line_range(self, index: int) -> tuple[int, int, int]:
        row = range(len(self))[index]  # negative indices and IndexError as in a list
        return int(self.offsets[row]), int(self.offsets[row + 1]), row

    def _read_bytes(self, begin: int, end: int) -> bytes:
        chunks, position = [], begin
        while position < end:
            chunk = os.pread(self._file_descriptor, end - position, position)
            if not chunk:
                raise OSError("the temporary file of rows became shorter while it was in use")
            chunks.append(chunk)
            position += len(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _open_temporary_file(folder: Path) -> BinaryIO:
    try:
        return cast(BinaryIO, tempfile.TemporaryFile("w+b", 1 << 20, suffix=".part", prefix=".", dir=folder))
    except OSError as error:
        raise disk_write_error(folder, error) from error


def serialize_example(example: Example) -> bytes:
    """Return everything of an example that can change its tokens, as one line of JSON without default values."""
    messages = []
    for message in example.messages:
        fields: list[Any] = [_ROLE_CODES[message.role], message.content]
        optional: dict[str, Any] = {}
        if message.input is not None:
            optional["i"] = message.input
        if message.tool_calls:
            optional["c"] = [
                [call.name, call.arguments, *([] if call.id is None else [call.id])] for call in message.tool_calls
            ]
        if message.name is not None:
            optional["n"] = message.name
        if not message.train:
            optional["t"] = False
        if message.tool_call_id is not None:
            optional["a"] = message.tool_call_id
        if message.reasoning is not None:
            optional["r"] = message.reasoning
        messages.append([*fields, optional] if optional else fields)
    tools_and_choices: list[Any] = [list(example.tools), list(example.choices)]
    while tools_and_choices and not tools_and_choices[-1]:
        tools_and_choices.pop()
    return _to_json([messages, *tools_and_choices]).encode()


def _deserialize_example(line: bytes, example_id: int) -> Example:
    head, _, body = line.decode().partition("\t")
    message_fields, *tools_and_choices = json.loads(body)
    messages = tuple(_deserialize_message(*fields) for fields in message_fields)
    location, groups, data = _parse_head(head)
    tools, choices = (*map(tuple, tools_and_choices), (), ())[:2]
    return Example(f"{example_id:016x}", messages, location, tools, choices, groups, data)


def _parse_head(head: str | bytes) -> tuple[str, tuple[tuple[str, str], ...], dict[str, Any]]:
    """Return the location, the groups and the kept columns of a row."""
    value = json.loads(head)
    if isinstance(value, str):
        return value, (), {}
    location, groups, data = value
    return location, tuple((column, group) for column, group in groups), data


def _deserialize_message(role_code: str, content: str, optional: dict[str, Any] | None = None) -> Message:
    if optional is None:
        return Message(_ROLE_OF_CODE[role_code], content)
    calls = tuple(ToolCall(*call) for call in optional.get("c", ()))
    return Message(
        _ROLE_OF_CODE[role_code],
        content,
        optional.get("i"),
        calls,
        optional.get("n"),
        optional.get("t", True),
        optional.get("a"),
        optional.get("r"),
    )
