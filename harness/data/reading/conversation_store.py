"""Conversations on disk, one JSON line each, so that a million of them cost a few bytes a row in memory.

Knows what an `Example` holds, and nothing of where it came from. A line is its place, a tab, and its body; the body is
all that can change its tokens. The file is read by offset in blocks, not mapped: pages of a mapped file count as the
process's own memory, and here memory is not to grow with the rows. It has no name: the system takes its space back when
nobody has it open any more, however the process ended.
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

from harness.errors import HarnessError
from harness.types import Example, Message, ToolCall

Indices = NDArray[np.int64]

ROWS_PER_READ = 512
"""Rows read at once where a view is walked in order."""

MAX_READ_AMPLIFICATION = 8
"""Rows read at once may lie in a stretch of the file up to this many times as long as they are themselves."""

_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_ROLE_CODES = {"system": "s", "user": "u", "assistant": "a", "tool": "t", "text": "x"}
_ROLE_OF_CODE = {letter: role for role, letter in _ROLE_CODES.items()}


class ConversationStore(Sequence[Example]):
    """Examples in a file of their own, readable while the object lives. Made by `ConversationStore.write_examples`.

    file: its descriptor, which is the spool's alone. offsets: (N + 1,) int64, where each line begins, and where the
    last one ends. ids: (N,) uint64.
    """

    def __init__(self, file_descriptor: int, offsets: Indices, ids: NDArray[np.uint64]) -> None:
        self.offsets, self.ids = offsets, ids
        self._file_descriptor = file_descriptor
        weakref.finalize(self, os.close, self._file_descriptor)

    @classmethod
    def write_examples(cls, examples: Iterable[Example], folder: Path | None) -> tuple[ConversationStore, str]:
        """Write the examples to a file, one by one, and give them back with the SHA-256 over their bodies in order.

        folder: on the disk that takes them, which is there; None: where the system keeps such files.
        Raises HarnessError when the file cannot be written.
        """
        digest = hashlib.sha256()
        offsets, ids, end = array("q", [0]), array("Q"), 0
        place = Path(tempfile.gettempdir()) if folder is None else folder
        file = _open_temporary_file(place)
        try:
            for example in examples:
                content = serialize_example(example)
                digest.update(content)
                line = b"%b\t%b\n" % (_to_json(example.location).encode("utf-8", "backslashreplace"), content)
                end += len(line)
                offsets.append(end)
                ids.append(int(example.id, 16))
                try:
                    file.write(line)
                except OSError as error:
                    raise disk_write_error(place, error) from error
            try:
                file.flush()
            except OSError as error:
                raise disk_write_error(place, error) from error
            kept = os.dup(file.fileno())
        finally:
            with contextlib.suppress(OSError):  # what it could not write is told already
                file.close()
        return cls(kept, np.array(offsets, np.int64), np.array(ids, np.uint64)), digest.hexdigest()

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return list(self.iter_rows(np.arange(len(self))[index]))
        begin, end, at = self._line_range(index)
        return _deserialize_example(self._read_bytes(begin, end - 1), int(self.ids[at]))

    def __iter__(self) -> Iterator[Example]:
        return self.iter_rows(np.arange(len(self)))

    def location_of(self, index: int) -> str:
        """Where a row stands in the data, without making the row."""
        begin, end, _ = self._line_range(index)
        return cast(str, json.loads(self._read_bytes(begin, end).partition(b"\t")[0]))

    def iter_rows(self, indices: Indices) -> Iterator[Example]:
        """The rows of these indices, in the order given; fast where neighbours follow one another."""
        for at in range(0, len(indices), ROWS_PER_READ):
            run = indices[at : at + ROWS_PER_READ]
            begins, ends = self.offsets[run], self.offsets[run + 1]
            first, last = int(begins.min()), int(ends.max())
            if last - first <= MAX_READ_AMPLIFICATION * int((ends - begins).sum()):
                block = self._read_bytes(first, last)
                cut = zip((begins - first).tolist(), (ends - first - 1).tolist(), self.ids[run].tolist(), strict=True)
                for begin, end, key in cut:
                    yield _deserialize_example(block[begin:end], key)
            else:
                for index in run.tolist():
                    yield self[index]

    def _line_range(self, index: int) -> tuple[int, int, int]:
        at = range(len(self))[index]  # negative indices and IndexError as a list has them
        return int(self.offsets[at]), int(self.offsets[at + 1]), at

    def _read_bytes(self, begin: int, end: int) -> bytes:
        parts, at = [], begin
        while at < end:
            part = os.pread(self._file_descriptor, end - at, at)
            if not part:
                raise OSError("the file of the rows read has become shorter while it was in use")
            parts.append(part)
            at += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def disk_write_error(path: Path, error: OSError, alternative: str = "set HARNESS_CACHE to another one") -> HarnessError:
    """The error for a file or folder of ours that cannot be written. another: how another one is named."""
    what = f"the rows read cannot be written there: {error.strerror or error}"
    return HarnessError(str(path), what, f"free space, make the folder writable, or {alternative}")


def _open_temporary_file(folder: Path) -> BinaryIO:
    try:
        return cast(BinaryIO, tempfile.TemporaryFile("w+b", 1 << 20, suffix=".part", prefix=".", dir=folder))
    except OSError as error:
        raise disk_write_error(folder, error) from error


def serialize_example(example: Example) -> bytes:
    """All of an example that can change its tokens, as one line of JSON; what stands at its default is left out."""
    messages = []
    for message in example.messages:
        one: list[Any] = [_ROLE_CODES[message.role], message.content]
        rest: dict[str, Any] = {}
        if message.input is not None:
            rest["i"] = message.input
        if message.tool_calls:
            rest["c"] = [
                [call.name, call.arguments, *([] if call.id is None else [call.id])] for call in message.tool_calls
            ]
        if message.name is not None:
            rest["n"] = message.name
        if not message.train:
            rest["t"] = False
        if message.tool_call_id is not None:
            rest["a"] = message.tool_call_id
        if rest:
            one.append(rest)
        messages.append(one)
    beside: list[Any] = [list(example.tools), list(example.choices)]
    while beside and not beside[-1]:
        beside.pop()
    return _to_json([messages, *beside]).encode()


def _deserialize_example(line: bytes, example_id: int) -> Example:
    place, _, content = line.decode().partition("\t")
    messages, *rest = json.loads(content)
    made = tuple(_deserialize_message(*one) for one in messages)
    return Example(f"{example_id:016x}", made, json.loads(place), *map(tuple, rest))


def _deserialize_message(role_code: str, content: str, optional: dict[str, Any] | None = None) -> Message:
    if optional is None:
        return Message(_ROLE_OF_CODE[role_code], content)
    calls = tuple(ToolCall(*call) for call in optional.get("c", ()))
    trained, answers = optional.get("t", True), optional.get("a")
    return Message(_ROLE_OF_CODE[role_code], content, optional.get("i"), calls, optional.get("n"), trained, answers)
