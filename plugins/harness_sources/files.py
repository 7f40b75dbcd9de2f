"""What the sources that read files share: their paths, their lines, and how bad rows are told.

Knows nothing of what a row holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness import HarnessError
from harness.errors import raise_all

SHOWN = 5


class BadRows:
    """Gathers what is wrong with a source's rows, so that it can be mended together.

    The first `SHOWN` are told in full, the others as a number.
    """

    def __init__(self) -> None:
        self._first: list[HarnessError] = []
        self._count = 0
        self._file = ""

    def add(self, file: str, place: str, what: str, hint: str) -> None:
        """Take note of a bad row. file: as shown; place: the row's own, e.g. `x.jsonl:14`."""
        self._file = file
        self._count += 1
        if len(self._first) < SHOWN:
            self._first.append(HarnessError(place, what, hint))

    def __len__(self) -> int:
        return self._count

    def raise_any(self) -> None:
        """Raise HarnessError for the rows noted; do nothing when there are none."""
        more = self._count - len(self._first)
        rest = [HarnessError(self._file, f"and {more} more bad rows")] if more else []
        raise_all([*self._first, *rest])


def every(path: str | Sequence[str]) -> tuple[Path, ...]:
    """The paths of an option that is one path or a list of them."""
    return tuple(map(Path, [path] if isinstance(path, str) else path))


def shown(path: Path) -> str:
    """A path as a person reads it: from the working folder where it lies below that, else whole."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def no_rows(path: Path) -> HarnessError:
    """The error of a file without a single row."""
    return HarnessError(shown(path), "the data set holds no rows", "give it at least one, or name another file")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the system's errors while a file is read into HarnessError with the path."""
    try:
        yield
    except FileNotFoundError:
        if "://" in str(path) or ":/" in str(path):
            what = "is an address, and this source reads files of this machine"
            raise HarnessError(str(path), what, "download it, or use the source 'hub'") from None
        raise HarnessError(shown(path), "there is no such file", "check the source's path") from None
    except IsADirectoryError:
        raise HarnessError(shown(path), "is a folder, not a file", "name the files in it") from None
    except OSError as error:
        raise HarnessError(shown(path), f"cannot be read: {error.strerror or error}", "check the file") from None


def decode(raw: bytes, first: bool) -> str:
    """The text of some bytes, without the byte order mark that a file may begin with.

    Raises ValueError that names the first byte that is not UTF-8, from 1.
    """
    try:
        return raw.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8: byte {error.start + 1} is 0x{raw[error.start]:02x}") from None
