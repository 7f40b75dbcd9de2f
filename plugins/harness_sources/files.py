"""Which files a source reads, and how they are named to a person.

A path is a file of this machine, a pattern of them (`data/*.jsonl`), a file inside an installed Python package
(`pkg://package/file`), or an address that fsspec knows (`s3://bucket/file`). Knows nothing of what a file holds.
"""

from __future__ import annotations

import glob
import io
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from harness import HarnessError

READ_SIZE = 1 << 20
"""Bytes read at once."""

FSSPEC_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
"""Protocol -> the package that reads it, where none comes with fsspec."""

GZIP_MAGIC, ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


def display_path(path: str) -> str:
    """A path as a person reads it: from the working folder where it lies below that, else whole.

    Of an address without its user and its query, which may hold a signature.
    """
    if "://" in path:
        parts = urlsplit(path)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path


@contextmanager
def open_stream(path: str, storage: Mapping[str, Any]) -> Iterator[BinaryIO]:
    """A file's bytes. path: of this machine, or an address. Raises OSError or HarnessError when it cannot be read."""
    if "://" not in path:
        with open(path, "rb", buffering=READ_SIZE) as file:
            yield file
        return
    system, name = _resolve_file_system(path, storage)
    with as_os_errors():
        remote = system.open(name, "rb")
    try:
        yield cast(BinaryIO, io.BufferedReader(_RemoteFile(remote), READ_SIZE))
    finally:
        remote.close()


def glob_addresses(path: str, storage: Mapping[str, Any]) -> list[str]:
    """The addresses of the files that fit a pattern, by name."""
    system, pattern = _resolve_file_system(path, storage)
    with as_os_errors():
        return sorted(str(system.unstrip_protocol(name)) for name in system.glob(pattern))


def is_folder(path: str, storage: Mapping[str, Any]) -> bool:
    """Whether an address is that of a folder."""
    system, name = _resolve_file_system(path, storage)
    with as_os_errors():
        return bool(system.isdir(name))


@contextmanager
def decompress(file: BinaryIO) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed when it begins as gzip or zstd does, whatever its name.

    Raises OSError for compressed data that is damaged or cut off.
    """
    begin = file.peek(4)[:4]  # type: ignore[attr-defined]
    if begin[:2] == GZIP_MAGIC:
        import gzip

        try:
            with gzip.GzipFile(fileobj=file) as stream:
                yield cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, stream), READ_SIZE))
        except zlib.error as error:
            raise OSError(f"its gzip data is damaged ({error})") from None
    elif begin == ZSTD_MAGIC:
        # Not zstandard's own reader, which takes a file that is cut off for one that ends.
        import pyarrow

        stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")
        yield cast(BinaryIO, io.BufferedReader(stream, READ_SIZE))
    else:
        yield file


def _resolve_file_system(path: str, storage: Mapping[str, Any]) -> tuple[Any, str]:
    """fsspec's file system for an address, and the file's name in it."""
    import fsspec

    protocol = path.partition("://")[0]
    try:
        return cast("tuple[Any, str]", fsspec.core.url_to_fs(path, **storage))
    except ImportError as error:
        package = FSSPEC_PACKAGES.get(protocol)
        hint = f"pip install {package}" if package else f"install what it needs: {error}"
        hint = "pip install 'harness-sft[s3]'" if package == "s3fs" else hint
        raise HarnessError(
            display_path(path), f"reading {protocol}:// needs a package that is not installed", hint
        ) from None
    except ValueError as error:
        if "rotocol not known" not in str(error):
            raise HarnessError(
                display_path(path), f"is no address that can be read: {error}", "check the source's path"
            ) from None
        raise HarnessError(display_path(path), f"nothing here reads {protocol}://", "check the address") from None
    except TypeError as error:
        what = f"the file system of {protocol}:// does not take these settings: {error}"
        raise HarnessError(display_path(path), what, "check the source's option 'storage'") from None


@contextmanager
def as_os_errors() -> Iterator[None]:
    """Turn whatever the library of a file system raises into an OSError; those that are ones already stay as they are.

    s3fs and aiohttp raise errors of botocore and aiohttp that have no class in common.
    """
    try:
        yield
    except FileNotFoundError as error:
        # fsspec says so as well of a server that cannot be reached, or refuses.
        cause = error.__cause__
        if type(cause).__module__.partition(".")[0] != "aiohttp" or getattr(cause, "status", 0) == 404:
            raise
        raise OSError(f"{type(cause).__name__}: {cause}") from error
    except (OSError, HarnessError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


class _RemoteFile(io.RawIOBase):
    """A file of fsspec whose every failure is an OSError."""

    def __init__(self, file: Any) -> None:
        super().__init__()
        self.file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self.file.seekable())

    def readinto(self, buffer: Any) -> int:
        with as_os_errors():
            data = self.file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        with as_os_errors():
            return int(self.file.seek(offset, whence))

    def tell(self) -> int:
        return int(self.file.tell())


__all__ = [
    "INTEGER_TOO_LONG",
    "SourceFiles",
    "as_harness_errors",
    "decode_utf8",
    "display_path",
    "escape_invalid_utf8",
    "no_rows_error",
]

INTEGER_TOO_LONG = "holds a whole number of more digits than can be read"
"""What is wrong with a JSON text that is one, and at which `json.loads` raises a ValueError all the same."""

UNSUPPORTED_FORMATS = {
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

MAX_MAGIC_LENGTH = max(map(len, UNSUPPORTED_FORMATS))

CREDENTIAL_WORDS = ("key", "secret", "token", "password", "credential", "sas")


class SourceFiles:
    """The files of a source's option `path`, in order; a pattern stands for its files in the order of their names.

    storage: settings of the file system of an address, as fsspec takes them. Raises HarnessError for credentials in
    it: a spec is kept and shown.
    """

    def __init__(self, path: str | Sequence[str], storage: Mapping[str, Any]) -> None:
        self.paths = [path] if isinstance(path, str) else list(path)
        self.storage = dict(storage)
        for name in _credential_names(self.storage):
            what = f"{name!r} is a credential, and a spec is no place for one"
            raise HarnessError("storage", what, "give it by the environment, e.g. AWS_ACCESS_KEY_ID, or ~/.aws")
        for one in self.paths:
            if "\0" in one:
                what = "is no path: it holds a NUL character"
                raise HarnessError(repr(one), what, "check the source's path")
            if "://" in one and urlsplit(one).password:
                what = "the address holds a password, and a spec is no place for one"
                raise HarnessError(display_path(one), what, "give it by the environment or ~/.netrc")

    def __iter__(self) -> Iterator[str]:
        for path in self.paths:
            yield from self._expand_path(path)

    def _expand_path(self, path: str) -> Iterator[str]:
        if path.startswith("pkg://"):
            yield str(_resolve_package_path(path))
            return
        # In an address of the web `?` begins the query.
        pattern = any(mark in path for mark in "*?[") and not path.startswith(("http://", "https://"))
        if not pattern or os.path.exists(path):
            yield path
            return
        if "://" in path:
            with as_harness_errors(path):
                found = glob_addresses(path, self.storage)
        else:
            found = sorted(name for name in glob.glob(path, recursive=True) if os.path.isfile(name))
        if not found:
            raise HarnessError(display_path(path), "no file fits this pattern", "check the source's path")
        yield from found

    @contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        """The bytes of one of the files, decompressed when it is gzip or zstd. Raises HarnessError for what fails."""
        with as_harness_errors(path), open_stream(path, self.storage) as file, decompress(file) as content:
            begin = content.peek(MAX_MAGIC_LENGTH)  # type: ignore[attr-defined]
            found = next((told for mark, told in UNSUPPORTED_FORMATS.items() if begin.startswith(mark)), None)
            if found is not None:
                raise HarnessError(display_path(path), *found)
            yield content

    @contextmanager
    def open_raw(self, path: str) -> Iterator[BinaryIO]:
        """The bytes of one of the files as they are, to be read from any place in it."""
        with as_harness_errors(path), open_stream(path, self.storage) as file:
            yield file


def _credential_names(settings: Mapping[str, Any]) -> Iterator[str]:
    """The names of settings, at any depth, that look like credentials and hold something."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _credential_names(value)
        elif any(word in name.lower() for word in CREDENTIAL_WORDS) and value not in (None, True, False, "anon"):
            yield name


def _resolve_package_path(path: str) -> Path:
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


def no_rows_error(path: str) -> HarnessError:
    """The error of a file without a single row."""
    return HarnessError(display_path(path), "the data set holds no rows", "give it at least one, or name another file")


@contextmanager
def as_harness_errors(path: str) -> Iterator[None]:
    """Turn the system's errors while a file is read into HarnessError with the path."""
    try:
        yield
    except FileNotFoundError:
        raise HarnessError(display_path(path), "there is no such file", "check the source's path") from None
    except IsADirectoryError:
        hint = f"name the files in it, e.g. {display_path(path)}/*.jsonl"
        raise HarnessError(display_path(path), "is a folder, not a file", hint) from None
    except PermissionError as error:
        hint = "check its permissions" + (", and the credentials of the environment" if "://" in path else "")
        raise HarnessError(display_path(path), f"may not be read: {_error_text(error, path)}", hint) from None
    except EOFError:
        raise HarnessError(display_path(path), "is cut off: its compressed data has no end", "fetch it again") from None
    except OSError as error:
        hint = "check the address, the network and the environment's credentials" if "://" in path else "check the file"
        raise HarnessError(display_path(path), f"cannot be read: {_error_text(error, path)}", hint) from None


def _error_text(error: OSError, path: str) -> str:
    return str(error.strerror or error).replace(path, display_path(path))


def decode_utf8(raw: bytes, is_file_start: bool) -> str:
    """The text of some bytes, without the byte order mark that a file may begin with.

    Raises ValueError that names the first byte that is not UTF-8, from 1.
    """
    try:
        return raw.decode("utf-8-sig" if is_file_start else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8: byte {error.start + 1} is 0x{raw[error.start]:02x}") from None


def escape_invalid_utf8(raw: bytes) -> str:
    """The text of bytes that are not UTF-8, those that are no character as \\xff."""
    return raw.decode("utf-8", "backslashreplace")
