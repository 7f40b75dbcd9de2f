"""The files of a source: the option `path`, opening, decompression, and their errors.

A path is one of:

    data/rows.jsonl       a file of this machine
    data/*.jsonl          a glob pattern
    pkg://package/file    a file inside an installed Python package
    s3://bucket/file      an address that fsspec supports
"""

from __future__ import annotations

import glob
import io
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from harness import HarnessError
from harness.utils.regular_files import open_regular_file

STORAGE_OPTION: dict[str, Any] = {
    "type": "object",
    "additionalProperties": {"type": ["string", "number", "boolean", "null", "object"]},
    "default": {},
    "description": "Settings of the file system of an address, passed to fsspec, e.g. "
    '{"endpoint_url": "http://localhost:9000"} or {"anon": true}. Credentials are read from the environment only.',
}
"""The JSON Schema of a source's option `storage`."""

READ_SIZE = 1 << 20
"""Bytes read at once."""

MAX_ROW_BYTES = 64_000_000
"""A larger row is invalid, so that a damaged or compressed file cannot fill the memory."""

ROW_TOO_LARGE = (f"is larger than {MAX_ROW_BYTES // 1_000_000} MB", "split it, or remove it")
"""What is wrong with a row of more than `MAX_ROW_BYTES`, and the remedy."""

FSSPEC_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
"""Protocol -> the package that reads it, where fsspec itself does not."""

GZIP_MAGIC, ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"

UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")

UNSUPPORTED_FORMATS = {
    b"PK\x03\x04": ("is a zip archive, not a text file", "unpack it, or compress the file with gzip or zstd"),
    b"\xfd7zXZ\x00": ("is compressed with xz, which is not supported", "compress it with gzip or zstd"),
    **{
        b"BZh%d1AY&SY" % level: ("is compressed with bzip2, which is not supported", "compress it with gzip or zstd")
        for level in range(1, 10)
    },
    b"PAR1\x15": ("is a Parquet file, not a text file", "read it with the source 'parquet'"),
    b"ARROW1\x00": ("is an Arrow file, not a text file", "read it with the source 'arrow'"),
    **dict.fromkeys(UTF_16_MARKS, ("is UTF-16 or UTF-32, by its byte order mark", "save the file as UTF-8")),
}
"""First bytes of files that are not text in UTF-8 -> what is wrong, and the remedy. No such text begins like this."""

MAX_MAGIC_LENGTH = max(map(len, UNSUPPORTED_FORMATS))

CREDENTIAL_WORDS = ("key", "secret", "token", "password", "credential", "sas")

INTEGER_TOO_LONG = "has an integer with more digits than can be read"
"""What is wrong with a valid JSON text for which `json.loads` raises ValueError."""


def file_options(description: str, **extra_options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a source that reads files: `path`, `storage` and its own.

    Args:
        description: What one path is, e.g. "A CSV file".
        extra_options: Option name -> JSON Schema.
    """
    return {
        "path": {
            "type": ["string", "array"],
            "format": "path",
            "minLength": 1,
            "items": {"type": "string", "minLength": 1, "format": "path"},
            "minItems": 1,
            "description": f"{description}, or a list of them, read in this order. A path relative to the spec's "
            "folder, a pattern (data/*), pkg://package/file of an installed Python package, or an address such as "
            "s3://bucket/file.",
        },
        "storage": STORAGE_OPTION,
        **extra_options,
    }


class SourceFiles:
    """The files of a source's option `path`, in order; those of a pattern are sorted by name."""

    def __init__(self, path: str | Sequence[str], storage: Mapping[str, Any]) -> None:
        """Check the paths; nothing is read.

        Args:
            path: One path or several.
            storage: Settings of the file system of an address, passed to fsspec.

        Raises:
            HarnessError: A path is invalid, or path or storage contain a credential: a spec is stored and shown.
        """
        self.paths = [path] if isinstance(path, str) else list(path)
        self.storage = dict(storage)
        for name in _credential_names(self.storage):
            what = f"{name!r} is a credential, and credentials are not allowed in a spec"
            raise HarnessError("storage", what, "set it in the environment, e.g. AWS_ACCESS_KEY_ID, or in ~/.aws")
        for entry in self.paths:
            if "\0" in entry:
                raise HarnessError(repr(entry), "is not a path: it has a NUL character", "check the source's path")
            if "://" in entry and urlsplit(entry).password:
                what = "the address has a password, and credentials are not allowed in a spec"
                raise HarnessError(display_path(entry), what, "set it in the environment or in ~/.netrc")

    def __iter__(self) -> Iterator[str]:
        for path in self.paths:
            yield from self._expand_path(path)

    def _expand_path(self, path: str) -> Iterator[str]:
        if path.startswith("pkg://"):
            yield str(_resolve_package_path(path))
            return
        # In an address of the web `?` begins the query.
        is_pattern = any(mark in path for mark in "*?[") and not path.startswith(("http://", "https://"))
        if not is_pattern or os.path.exists(path):
            yield path
            return
        if "://" in path:
            with as_harness_errors(path):
                matches = glob_addresses(path, self.storage)
        else:
            matches = sorted(name for name in glob.glob(path, recursive=True) if os.path.isfile(name))
        if not matches:
            raise HarnessError(display_path(path), "no file matches this pattern", "check the source's path")
        yield from matches

    @contextmanager
    def open(self, path: str, *, any_encoding: bool = False) -> Iterator[BinaryIO]:
        """Open one of the files as a stream of bytes, decompressed if it is gzip or zstd.

        Args:
            path: The file.
            any_encoding: Whether it may be UTF-16.

        Raises:
            HarnessError: The file cannot be read, or is of an unsupported format.
        """
        with as_harness_errors(path), open_stream(path, self.storage) as stream, decompress(stream) as content:
            first_bytes = content.peek(MAX_MAGIC_LENGTH)  # type: ignore[attr-defined]
            for magic, (what, hint) in UNSUPPORTED_FORMATS.items():
                if first_bytes.startswith(magic) and not (any_encoding and magic in UTF_16_MARKS):
                    raise HarnessError(display_path(path), what, hint)
            yield content

    @contextmanager
    def open_raw(self, path: str) -> Iterator[BinaryIO]:
        """Open one of the files as a seekable stream of its bytes, without decompression."""
        with as_harness_errors(path), open_stream(path, self.storage) as stream:
            yield stream


def _credential_names(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of settings, at any depth, that look like credentials and have a value."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _credential_names(value)
        elif any(word in name.lower() for word in CREDENTIAL_WORDS) and value not in (None, True, False, "anon"):
            yield name


def _resolve_package_path(path: str) -> Path:
    """Return the file that `pkg://package/file` names. The package is located without executing its code."""
    from importlib.util import find_spec

    package, _, name = path.removeprefix("pkg://").partition("/")
    if not package.isidentifier() or not name:
        raise HarnessError(path, "does not name a file of a package", "write pkg://package/folder/file")
    module_spec = find_spec(package)
    if module_spec is None or not module_spec.submodule_search_locations:
        what = f"no Python package {package!r} is installed"
        raise HarnessError(path, what, "install it, or check that this is its import name")
    folders = [Path(folder) for folder in module_spec.submodule_search_locations]
    # An absolute name would replace the folder when the two are joined.
    if ".." in Path(name).parts or Path(name).is_absolute() or Path(name).drive:
        raise HarnessError(path, "leads out of the package", "name a file inside it")
    file = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if file is None:
        raise HarnessError(path, f"the package {package!r} has no such file", f"look into {folders[0]}")
    return file


# -- opening ----------------------------------------------------------------------------------------------------------


@contextmanager
def open_stream(path: str, storage: Mapping[str, Any]) -> Iterator[BinaryIO]:
    """Open a file as a seekable stream of bytes.

    Args:
        path: A path of this machine, or an address.
        storage: Settings of the address's file system.

    Raises:
        OSError: The file cannot be read.
        HarnessError: The address cannot be interpreted.
    """
    if "://" not in path:
        with open_regular_file(path, READ_SIZE) as file:
            yield file
        return
    file_system, name = _resolve_file_system(path, storage)
    with as_os_errors():
        remote = file_system.open(name, "rb")
    try:
        yield cast(BinaryIO, io.BufferedReader(_RemoteFile(remote), READ_SIZE))
    finally:
        remote.close()


def glob_addresses(path: str, storage: Mapping[str, Any]) -> list[str]:
    """Return the addresses of the files that match a pattern, sorted by name."""
    file_system, pattern = _resolve_file_system(path, storage)
    with as_os_errors():
        return sorted(str(file_system.unstrip_protocol(name)) for name in file_system.glob(pattern))


def is_folder(path: str, storage: Mapping[str, Any]) -> bool:
    """Return whether an address is that of a folder."""
    file_system, name = _resolve_file_system(path, storage)
    with as_os_errors():
        return bool(file_system.isdir(name))


@contextmanager
def decompress(stream: BinaryIO) -> Iterator[BinaryIO]:
    """Decompress a stream that begins like gzip or zstd, whatever the file's name.

    Raises:
        OSError: The compressed data is damaged or truncated.
    """
    magic = stream.peek(4)[:4]  # type: ignore[attr-defined]
    if magic[:2] == GZIP_MAGIC:
        import gzip

        try:
            with gzip.GzipFile(fileobj=stream) as content:
                yield cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, content), READ_SIZE))
        except zlib.error as error:
            raise OSError(f"its gzip data is damaged ({error})") from None
    elif magic == ZSTD_MAGIC:
        # Not zstandard's own reader, which does not report a truncated file.
        import pyarrow

        content = pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, mode="r"), "zstd")
        yield cast(BinaryIO, io.BufferedReader(content, READ_SIZE))
    else:
        yield stream


def _resolve_file_system(path: str, storage: Mapping[str, Any]) -> tuple[Any, str]:
    """Return fsspec's file system for an address, and the file's name in it."""
    import fsspec

    protocol = path.partition("://")[0]
    try:
        return cast("tuple[Any, str]", fsspec.core.url_to_fs(path, **storage))
    except ImportError as error:
        package = FSSPEC_PACKAGES.get(protocol)
        hint = f"pip install {package}" if package else f"install what it needs: {error}"
        hint = "pip install 'harness-sft[s3]'" if package == "s3fs" else hint
        what = f"reading {protocol}:// needs a package that is not installed"
        raise HarnessError(display_path(path), what, hint) from None
    except ValueError as error:
        if "rotocol not known" not in str(error):
            what = f"is not a readable address: {error}"
            raise HarnessError(display_path(path), what, "check the source's path") from None
        raise HarnessError(display_path(path), f"{protocol}:// is not supported", "check the address") from None
    except TypeError as error:
        what = f"the file system of {protocol}:// does not take these settings: {error}"
        raise HarnessError(display_path(path), what, "check the source's option 'storage'") from None


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


# -- errors -----------------------------------------------------------------------------------------------------------


@contextmanager
def as_os_errors() -> Iterator[None]:
    """Convert every error of a file system's library to OSError; an OSError stays as it is.

    s3fs and aiohttp raise errors of botocore and aiohttp that have no base class in common.
    """
    try:
        yield
    except FileNotFoundError as error:
        # fsspec also raises this for a server that cannot be reached, or that refuses.
        cause = error.__cause__
        if type(cause).__module__.partition(".")[0] != "aiohttp" or getattr(cause, "status", 0) == 404:
            raise
        raise OSError(f"{type(cause).__name__}: {cause}") from error
    except (OSError, HarnessError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


@contextmanager
def as_harness_errors(path: str) -> Iterator[None]:
    """Convert an OSError or EOFError of reading a file to a HarnessError with the path."""
    try:
        yield
    except FileNotFoundError:
        raise HarnessError(display_path(path), "there is no such file", _missing_file_hint(path)) from None
    except IsADirectoryError:
        hint = f"name the files in it, e.g. {display_path(path)}/*.jsonl"
        raise HarnessError(display_path(path), "is a folder, not a file", hint) from None
    except PermissionError as error:
        hint = "check its permissions" + (", and the credentials in the environment" if "://" in path else "")
        what = f"reading is not permitted: {_error_text(error, path)}"
        raise HarnessError(display_path(path), what, hint) from None
    except EOFError:
        what = "is truncated: its compressed data has no end"
        raise HarnessError(display_path(path), what, "download it again") from None
    except OSError as error:
        is_address = "://" in path
        hint = (
            "check the address, the network and the credentials in the environment" if is_address else "check the file"
        )
        raise HarnessError(display_path(path), f"cannot be read: {_error_text(error, path)}", hint) from None


def _missing_file_hint(path: str) -> str:
    """Return the remedy for a missing file; a path like `user/name` may be the id of a data set."""
    hub_id = "/".join(Path(path).parts[-2:])
    is_hub_id = "://" not in path and re.fullmatch(r"[\w.-]+/[\w.-]+", hub_id) and not Path(path).suffix
    if is_hub_id and not Path(path).parent.exists():
        return f'check the source\'s path; for a dataset of the Hugging Face hub write "hub": {{"name": "{hub_id}"}}'
    return "check the source's path"


def _error_text(error: OSError, path: str) -> str:
    return str(error.strerror or error).replace(path, display_path(path))


def no_rows_error(path: str) -> HarnessError:
    """Return the error for a file without rows."""
    return HarnessError(display_path(path), "the file has no rows", "add at least one, or name another file")


def display_path(path: str) -> str:
    """Return a path as shown to the user: relative to the working folder if it is below it, else in full.

    An address is shown without user and query, which may contain a signature.
    """
    if "://" in path:
        parts = urlsplit(path)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path


def iter_lines(stream: BinaryIO) -> Iterator[bytes | None]:
    """Yield the lines of a stream with their line breaks; None for one of more than `MAX_ROW_BYTES`."""
    while line := stream.readline(MAX_ROW_BYTES + 1):
        if len(line) <= MAX_ROW_BYTES:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(READ_SIZE)
        yield None


# -- text -------------------------------------------------------------------------------------------------------------


def decode_utf8(raw: bytes, is_file_start: bool) -> str:
    """Decode UTF-8.

    Args:
        raw: The bytes.
        is_file_start: Remove the byte order mark that a file may begin with.

    Raises:
        ValueError: The bytes are not UTF-8; the message names the first wrong one, counted from 1.
    """
    try:
        return raw.decode("utf-8-sig" if is_file_start else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8: byte {error.start + 1} is 0x{raw[error.start]:02x}") from None


def escape_invalid_utf8(raw: bytes) -> str:
    """Decode UTF-8, with each byte that is not UTF-8 written as a hexadecimal escape."""
    return raw.decode("utf-8", "backslashreplace")
