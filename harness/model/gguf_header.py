"""Read the header of a GGUF file: its architecture and its number of weights.

Needs neither numpy nor the gguf package, so that a wrong file or a full disk is reported within a fraction of a second
and not after the file has been loaded. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
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
    """The header of a GGUF file.

    Attributes:
        architecture: The model's architecture in GGUF's name, e.g. `llama`.
        parameter_count: The number of elements of all tensors together.
        tensor_names: The names of the tensors.
    """

    architecture: str
    parameter_count: int
    tensor_names: tuple[str, ...]


def read_gguf_header(file: Path) -> GgufHeader:
    """Return the file's header.

    Raises:
        HarnessError: The file is not a GGUF file, has an unknown version, is truncated or cannot be read.
    """
    try:
        with file.open("rb") as stream:
            return _GgufHeaderReader(stream, file).read_header()
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise _unreadable_error(file, "its header is damaged or truncated") from error
    except OSError as error:
        raise HarnessError(WHERE, f"'{file}' cannot be read: {error.strerror}", "check its permissions") from error


def _unreadable_error(file: Path, reason: str) -> HarnessError:
    return HarnessError(WHERE, f"'{file}' is not a readable GGUF file: {reason}", "download the file again")


class _GgufHeaderReader:
    """Reads a header from its start; every value is little-endian."""

    def __init__(self, stream: BinaryIO, file: Path) -> None:
        self.stream, self.file = stream, file

    def read_header(self) -> GgufHeader:
        """Return the header. Raises ValueError or struct.error when it is damaged."""
        if self.stream.read(4) != b"GGUF":
            raise _unreadable_error(self.file, "it does not start with 'GGUF'")
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
            raise _unreadable_error(self.file, "it does not name its architecture")
        names, parameter_count = [], 0
        for _ in range(tensors):
            names.append(self.read_string())
            dimensions = self.unpack(f"{min(self.unpack('I')[0], 8)}Q")
            self.unpack("IQ")  # type, offset
            parameter_count += prod(dimensions)
        return GgufHeader(architecture, parameter_count, tuple(names))

    def unpack(self, struct_format: str) -> tuple[int, ...]:
        """Return the values of a `struct` format at the current position."""
        return struct.unpack("<" + struct_format, self.stream.read(struct.calcsize("<" + struct_format)))

    def read_count(self) -> int:
        """Return a count. Raises ValueError when it is impossibly large."""
        (count,) = self.unpack("Q")
        if count > _MAX_COUNT:
            raise ValueError("out of range")
        return count

    def read_string(self) -> str:
        """Return a string. Raises ValueError when the file ends within it."""
        length = self.read_count()
        data = self.stream.read(length)
        if len(data) != length:
            raise ValueError("truncated")
        return data.decode()

    def read_value(self, value_type: int) -> str | None:
        """Return a string; skip any other value and return None."""
        if value_type == _STRING:
            return self.read_string()
        if value_type == _ARRAY:
            element_type, length = self.unpack("I")[0], self.read_count()
            if element_type == _STRING:
                for _ in range(length):
                    self.stream.seek(self.read_count(), 1)
            else:
                self.stream.seek(self.width_of(element_type) * length, 1)
        else:
            self.stream.seek(self.width_of(value_type), 1)
        return None

    def width_of(self, value_type: int) -> int:
        """Return the bytes of a value of this type."""
        if value_type not in _WIDTHS:
            raise ValueError(f"unknown value type {value_type}")
        return _WIDTHS[value_type]
