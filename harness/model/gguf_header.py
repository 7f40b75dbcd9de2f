"""What a GGUF file says of itself: its architecture and how many weights it holds.

Reads the header alone, without numpy or the gguf package, so that a wrong file or a full disk is found in a fraction
of a second and not after the file has been loaded. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from harness.errors import HarnessError

WHERE = "model.path"

_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # value type -> bytes
_STRING, _ARRAY = 8, 9
_SANE = 1 << 24  # more tensors, entries or bytes of a name than this are a damaged file


@dataclass(frozen=True)
class Header:
    """weights: the elements of all tensors together. tensors: their names."""

    architecture: str
    weights: int
    tensors: tuple[str, ...]


def read(file: Path) -> Header:
    """The file's header. Raises HarnessError when it is no GGUF file, of an unknown version, or cut off."""
    try:
        with file.open("rb") as stream:
            return _Reader(stream, file).header()
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise _broken(file, "its header is damaged or cut off") from error
    except OSError as error:
        raise HarnessError(WHERE, f"'{file}' cannot be read: {error.strerror}", "check its permissions") from error


def _broken(file: Path, why: str) -> HarnessError:
    return HarnessError(WHERE, f"'{file}' is no GGUF file that can be read: {why}", "fetch the file again")


class _Reader:
    """Walks a header from its start; every value is little-endian."""

    def __init__(self, stream: BinaryIO, file: Path) -> None:
        self.stream, self.file = stream, file

    def header(self) -> Header:
        if self.stream.read(4) != b"GGUF":
            raise _broken(self.file, "it does not begin with 'GGUF'")
        (version,) = self.take("I")
        if version not in (2, 3):
            raise _broken(self.file, f"its format version is {version}, not 2 or 3")
        tensors, entries = self.count(), self.count()
        architecture = ""
        for _ in range(entries):
            key = self.string()
            value = self.value(self.take("I")[0])
            if key == "general.architecture" and isinstance(value, str):
                architecture = value
        if not architecture:
            raise _broken(self.file, "it names no architecture")
        names, weights = [], 0
        for _ in range(tensors):
            names.append(self.string())
            dimensions = self.take(f"{min(self.take('I')[0], 8)}Q")
            self.take("IQ")  # type, offset
            weights += prod(dimensions)
        return Header(architecture, weights, tuple(names))

    def take(self, form: str) -> tuple[int, ...]:
        return struct.unpack("<" + form, self.stream.read(struct.calcsize("<" + form)))

    def count(self) -> int:
        (number,) = self.take("Q")
        if number > _SANE:
            raise ValueError("out of range")
        return number

    def string(self) -> str:
        length = self.count()
        data = self.stream.read(length)
        if len(data) != length:
            raise ValueError("cut off")
        return data.decode()

    def value(self, kind: int) -> str | None:
        """A string's text; any other value is passed over."""
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            element, length = self.take("I")[0], self.count()
            if element == _STRING:
                for _ in range(length):
                    self.stream.seek(self.count(), 1)
            else:
                self.stream.seek(_WIDTHS[element] * length, 1) if element in _WIDTHS else self._unknown(element)
        elif kind in _WIDTHS:
            self.stream.seek(_WIDTHS[kind], 1)
        else:
            self._unknown(kind)
        return None

    def _unknown(self, kind: int) -> None:
        raise ValueError(f"value type {kind}")
