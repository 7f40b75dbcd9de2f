"""Which files a source reads, and how they are named to a person.

A path is a file of this machine, a pattern of them (`data/*.jsonl`), a file inside an installed Python package
(`pkg://package/file`), or an address that fsspec knows (`s3://bucket/file`). Knows nothing of what a file holds.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from harness import HarnessError
from harness_sources import streams
from harness_sources.streams import shown

__all__ = ["LONG_NUMBER", "Files", "decode", "legible", "no_rows", "reading", "shown"]

LONG_NUMBER = "holds a whole number of more digits than can be read"
"""What is wrong with a JSON text that is one, and at which `json.loads` raises a ValueError all the same."""

FOREIGN = {
    b"PK\x03\x04": ("is a zip archive, not a file of text", "unpack it, or compress the file by gzip or zstd"),
    b"\xfd7zXZ\x00": ("is compressed by xz, which is not read", "compress it by gzip or zstd"),
    **{
        b"BZh%d1AY&SY" % level: ("is compressed by bzip2, which is not read", "compress it by gzip or zstd")
        for level in range(1, 10)
    },
    b"PAR1\x15": ("is a Parquet file, not a file of text", "read it by the source 'parquet'"),
    b"ARROW1\x00": ("is an Arrow file, not a file of text", "read it by the source 'arrow'"),
    b"\xff\xfe": ("is UTF-16 or UTF-32, by the mark that it begins with", "save the file as UTF-8"),
    b"\xfe\xff": ("is UTF-16, by the mark that it begins with", "save the file as UTF-8"),
}
"""How files begin that are no text in UTF-8, which no such text does -> what is wrong, and the remedy."""

LONGEST = max(map(len, FOREIGN))

SECRETS = ("key", "secret", "token", "password", "credential", "sas")


class Files:
    """The files of a source's option `path`, in order; a pattern stands for its files in the order of their names.

    storage: settings of the file system of an address, as fsspec takes them. Raises HarnessError for credentials in
    it: a spec is kept and shown.
    """

    def __init__(self, path: str | Sequence[str], storage: Mapping[str, Any]) -> None:
        self.paths = [path] if isinstance(path, str) else list(path)
        self.storage = dict(storage)
        for name in _credentials(self.storage):
            what = f"{name!r} is a credential, and a spec is no place for one"
            raise HarnessError("storage", what, "give it by the environment, e.g. AWS_ACCESS_KEY_ID, or ~/.aws")
        for one in self.paths:
            if "\0" in one:
                what = "is no path: it holds a NUL character"
                raise HarnessError(repr(one), what, "check the source's path")
            if "://" in one and urlsplit(one).password:
                what = "the address holds a password, and a spec is no place for one"
                raise HarnessError(shown(one), what, "give it by the environment or ~/.netrc")

    def __iter__(self) -> Iterator[str]:
        for path in self.paths:
            yield from self._named(path)

    def _named(self, path: str) -> Iterator[str]:
        if path.startswith("pkg://"):
            yield str(_in_package(path))
            return
        # In an address of the web `?` begins the query.
        pattern = any(mark in path for mark in "*?[") and not path.startswith(("http://", "https://"))
        if not pattern or os.path.exists(path):
            yield path
            return
        if "://" in path:
            with reading(path):
                found = streams.matching(path, self.storage)
        else:
            found = sorted(name for name in glob.glob(path, recursive=True) if os.path.isfile(name))
        if not found:
            raise HarnessError(shown(path), "no file fits this pattern", "check the source's path")
        yield from found

    @contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        """The bytes of one of the files, decompressed when it is gzip or zstd. Raises HarnessError for what fails."""
        with reading(path), streams.opened(path, self.storage) as file, streams.unpacked(file) as unpacked:
            begin = unpacked.peek(LONGEST)  # type: ignore[attr-defined]
            found = next((told for mark, told in FOREIGN.items() if begin.startswith(mark)), None)
            if found is not None:
                raise HarnessError(shown(path), *found)
            yield unpacked

    @contextmanager
    def open_whole(self, path: str) -> Iterator[BinaryIO]:
        """The bytes of one of the files as they are, to be read from any place in it."""
        with reading(path), streams.opened(path, self.storage) as file:
            yield file


def _credentials(settings: Mapping[str, Any]) -> Iterator[str]:
    """The names of settings, at any depth, that look like credentials and hold something."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _credentials(value)
        elif any(word in name.lower() for word in SECRETS) and value not in (None, True, False, "anon"):
            yield name


def _in_package(path: str) -> Path:
    """The file that `pkg://package/file` names. The package is looked up, and none of its code is run."""
    from importlib.util import find_spec

    package, _, name = path.removeprefix("pkg://").partition("/")
    if not package.isidentifier() or not name:
        raise HarnessError(path, "names no file of a package", "write pkg://package/folder/file, by its import name")
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        what = f"no Python package {package!r} is installed here"
        raise HarnessError(path, what, "install it, or check its name: the one that it is imported by")
    folders = [Path(folder) for folder in found.submodule_search_locations]
    if ".." in Path(name).parts:
        raise HarnessError(path, "leads out of the package", "name a file inside it")
    file = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if file is None:
        raise HarnessError(path, f"the package {package!r} has no such file", f"look into {folders[0]}")
    return file


def no_rows(path: str) -> HarnessError:
    """The error of a file without a single row."""
    return HarnessError(shown(path), "the data set holds no rows", "give it at least one, or name another file")


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn the system's errors while a file is read into HarnessError with the path."""
    try:
        yield
    except FileNotFoundError:
        raise HarnessError(shown(path), "there is no such file", "check the source's path") from None
    except IsADirectoryError:
        hint = f"name the files in it, e.g. {shown(path)}/*.jsonl"
        raise HarnessError(shown(path), "is a folder, not a file", hint) from None
    except PermissionError as error:
        hint = "check its permissions" + (", and the credentials of the environment" if "://" in path else "")
        raise HarnessError(shown(path), f"may not be read: {_told(error, path)}", hint) from None
    except EOFError:
        raise HarnessError(shown(path), "is cut off: its compressed data has no end", "fetch it again") from None
    except OSError as error:
        hint = "check the address, the network and the environment's credentials" if "://" in path else "check the file"
        raise HarnessError(shown(path), f"cannot be read: {_told(error, path)}", hint) from None


def _told(error: OSError, path: str) -> str:
    return str(error.strerror or error).replace(path, shown(path))


def decode(raw: bytes, first: bool) -> str:
    """The text of some bytes, without the byte order mark that a file may begin with.

    Raises ValueError that names the first byte that is not UTF-8, from 1.
    """
    try:
        return raw.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8: byte {error.start + 1} is 0x{raw[error.start]:02x}") from None


def legible(raw: bytes) -> str:
    """The text of bytes that are not UTF-8, those that are no character as \\xff."""
    return raw.decode("utf-8", "backslashreplace")
