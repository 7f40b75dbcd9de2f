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
_MAX_COUNT = 1 << 24  # more tensors, entries or bytes of a name than this are a damaged file


@dataclass(frozen=True)
class GgufHeader:
    """parameter_count: the elements of all tensors together. tensor_names: their names."""

    architecture: str
    parameter_count: int
    tensor_names: tuple[str, ...]


def read_gguf_header(file: Path) -> GgufHeader:
    """The file's header. Raises HarnessError when it is no GGUF file, of an unknown version, or cut off."""
    try:
        with file.open("rb") as stream:
            return _GgufHeaderReader(stream, file).read_header()
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise _unreadable_error(file, "its header is damaged or cut off") from error
    except OSError as error:
        raise HarnessError(WHERE, f"'{file}' cannot be read: {error.strerror}", "check its permissions") from error


def _unreadable_error(file: Path, reason: str) -> HarnessError:
    return HarnessError(WHERE, f"'{file}' is no GGUF file that can be read: {reason}", "fetch the file again")


class _GgufHeaderReader:
    """Walks a header from its start; every value is little-endian."""

    def __init__(self, stream: BinaryIO, file: Path) -> None:
        self.stream, self.file = stream, file

    def read_header(self) -> GgufHeader:
        if self.stream.read(4) != b"GGUF":
            raise _unreadable_error(self.file, "it does not begin with 'GGUF'")
        (version,) = self.unpack("I")
        if version not in (2, 3):
            raise _unreadable_error(self.file, f"its format version is {version}, not 2 or 3")
        tensors, entries = self.read_count(), self.read_count()
        architecture = ""
        for _ in range(entries):
            key = self.read_string()
            value = self.read_value(self.unpack("I")[0])
            if key == "general.architecture" and isinstance(value, str):
                architecture = value
        if not architecture:
            raise _unreadable_error(self.file, "it names no architecture")
        names, weights = [], 0
        for _ in range(tensors):
            names.append(self.read_string())
            dimensions = self.unpack(f"{min(self.unpack('I')[0], 8)}Q")
            self.unpack("IQ")  # type, offset
            weights += prod(dimensions)
        return GgufHeader(architecture, weights, tuple(names))

    def unpack(self, struct_format: str) -> tuple[int, ...]:
        return struct.unpack("<" + struct_format, self.stream.read(struct.calcsize("<" + struct_format)))

    def read_count(self) -> int:
        (number,) = self.unpack("Q")
        if number > _MAX_COUNT:
            raise ValueError("out of range")
        return number

    def read_string(self) -> str:
        length = self.read_count()
        data = self.stream.read(length)
        if len(data) != length:
            raise ValueError("cut off")
        return data.decode()

    def read_value(self, value_type: int) -> str | None:
        """A string's text; any other value is passed over."""
        if value_type == _STRING:
            return self.read_string()
        if value_type == _ARRAY:
            element, length = self.unpack("I")[0], self.read_count()
            if element == _STRING:
                for _ in range(length):
                    self.stream.seek(self.read_count(), 1)
            else:
                self.stream.seek(_WIDTHS[element] * length, 1) if element in _WIDTHS else self._raise_unknown_type(
                    element
                )
        elif value_type in _WIDTHS:
            self.stream.seek(_WIDTHS[value_type], 1)
        else:
            self._raise_unknown_type(value_type)
        return None

    def _raise_unknown_type(self, value_type: int) -> None:
        raise ValueError(f"value type {value_type}")
