"""The items of one JSON array, one by one, whatever the size of the file that holds it.

Knows JSON's grammar around the items; each item is left to the json module.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from harness import HarnessError
from harness.json_text import Decoder
from harness_sources.files import LONG_NUMBER

BLOCK = 1 << 18
"""Bytes read at once; more where one item is longer."""

NEAR = 16
"""An error this many characters before the end of what is read may be but an item that goes on."""

_space = re.compile(r"[ \t\n\r]*").match


def items(file: str, begin: bytes, stream: BinaryIO) -> Iterator[tuple[Any, str | None]]:
    """The items of a file's array, each with a key that an object in it names twice, or None.

    file: as shown in errors. begin: bytes already read from the stream.
    Raises HarnessError with line and column where the file is not JSON, or not UTF-8.
    """
    text = _Text(file, begin, stream)
    text.skip()
    text.at += 1  # the bracket that the caller has seen
    if text.skip() != "]":
        while True:
            yield text.item(), text.values.twice
            follows = text.skip()
            if follows == "]":
                break
            if follows != ",":
                raise text.error("Expecting ',' delimiter", text.at)
            text.at += 1
            text.skip()
    text.at += 1
    if text.skip():
        raise text.error("Extra data", text.at)


class _Text:
    """A window on the text of a file, filled as it is read. at: where reading stands in it."""

    def __init__(self, file: str, begin: bytes, stream: BinaryIO) -> None:
        self.file, self.stream = file, stream
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.values = Decoder()
        self.text, self.at, self.ended = "", 0, False
        self.line, self.column, self.taken = 1, 1, 0  # of the window's first character; bytes decoded so far
        self._add(begin)
        self.ended = False

    def skip(self) -> str:
        """The next character that is no white space; blank at the end of the file."""
        while True:
            self.at = _space(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._more(BLOCK)

    def item(self) -> Any:
        """The value that begins here."""
        size = BLOCK
        while True:
            try:
                value, end = self.values.begun(self.text, self.at)
            except json.JSONDecodeError as error:
                goes_on = error.pos >= len(self.text) - NEAR or error.msg.startswith("Unterminated string")
                if self.ended or not goes_on:
                    raise self.error(error.msg, error.pos) from None
            except RecursionError:
                raise HarnessError(self.file, "is nested too deep to be read", "mend the file") from None
            except ValueError:
                line, column = self._place(self.at)
                raise HarnessError(f"{self.file}:{line}:{column}", LONG_NUMBER, "write the number as text") from None
            else:
                if self.ended or end < len(self.text) or isinstance(value, (dict, list, str)):
                    self.at = end
                    return value
            self._more(size)
            size *= 2  # so that an item of any length costs time in proportion to it

    def error(self, what: str, at: int) -> HarnessError:
        """The error for what stands at a position of the window."""
        line, column = self._place(at)
        return HarnessError(f"{self.file}:{line}:{column}", f"is not JSON: {what}", "mend the file")

    def _place(self, at: int) -> tuple[int, int]:
        breaks = self.text.count("\n", 0, at)
        column = at - self.text.rfind("\n", 0, at) if breaks else self.column + at
        return self.line + breaks, column

    def _more(self, size: int) -> None:
        self.line, self.column = self._place(self.at)
        self.text, self.at = self.text[self.at :], 0
        self._add(self.stream.read(size))

    def _add(self, raw: bytes) -> None:
        waiting = len(self.decoder.getstate()[0])
        try:
            self.text += self.decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            line = self._place(len(self.text))[0] + error.object.count(b"\n", 0, error.start)
            byte = self.taken - waiting + error.start
            what = f"is not UTF-8: byte {byte + 1} is 0x{error.object[error.start]:02x}"
            raise HarnessError(f"{self.file}:{line}", what, "save the file as UTF-8") from None
        self.taken += len(raw)
        self.ended = not raw
