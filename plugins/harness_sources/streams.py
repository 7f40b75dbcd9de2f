"""Bytes from where they lie: files of this machine and file systems that fsspec knows, decompressed where need be.

Every failure of a file system comes out as an OSError or a HarnessError, whatever its library raises.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from harness import HarnessError

BLOCK = 1 << 20
"""Bytes read at once."""

EXTRAS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
"""Protocol -> the package that reads it, where none comes with fsspec."""

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


def shown(path: str) -> str:
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
def opened(path: str, storage: Mapping[str, Any]) -> Iterator[BinaryIO]:
    """A file's bytes. path: of this machine, or an address. Raises OSError or HarnessError when it cannot be read."""
    if "://" not in path:
        with open(path, "rb", buffering=BLOCK) as file:
            yield file
        return
    system, name = _system(path, storage)
    with telling():
        remote = system.open(name, "rb")
    try:
        yield cast(BinaryIO, io.BufferedReader(_Remote(remote), BLOCK))
    finally:
        remote.close()


def matching(path: str, storage: Mapping[str, Any]) -> list[str]:
    """The addresses of the files that fit a pattern, by name."""
    system, pattern = _system(path, storage)
    with telling():
        return sorted(str(system.unstrip_protocol(name)) for name in system.glob(pattern))


def is_folder(path: str, storage: Mapping[str, Any]) -> bool:
    """Whether an address is that of a folder."""
    system, name = _system(path, storage)
    with telling():
        return bool(system.isdir(name))


@contextmanager
def unpacked(file: BinaryIO) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed when it begins as gzip or zstd does, whatever its name.

    Raises OSError for compressed data that is damaged or cut off.
    """
    begin = file.peek(4)[:4]  # type: ignore[attr-defined]
    if begin[:2] == GZIP:
        import gzip

        try:
            with gzip.GzipFile(fileobj=file) as stream:
                yield cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, stream), BLOCK))
        except zlib.error as error:
            raise OSError(f"its gzip data is damaged ({error})") from None
    elif begin == ZSTD:
        # Not zstandard's own reader, which takes a file that is cut off for one that ends.
        import pyarrow

        stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")
        yield cast(BinaryIO, io.BufferedReader(stream, BLOCK))
    else:
        yield file


def _system(path: str, storage: Mapping[str, Any]) -> tuple[Any, str]:
    """fsspec's file system for an address, and the file's name in it."""
    import fsspec

    protocol = path.partition("://")[0]
    try:
        return cast("tuple[Any, str]", fsspec.core.url_to_fs(path, **storage))
    except ImportError as error:
        package = EXTRAS.get(protocol)
        hint = f"pip install {package}" if package else f"install what it needs: {error}"
        hint = "pip install 'harness-sft[s3]'" if package == "s3fs" else hint
        raise HarnessError(shown(path), f"reading {protocol}:// needs a package that is not installed", hint) from None
    except ValueError as error:
        if "rotocol not known" not in str(error):
            raise HarnessError(
                shown(path), f"is no address that can be read: {error}", "check the source's path"
            ) from None
        raise HarnessError(shown(path), f"nothing here reads {protocol}://", "check the address") from None
    except TypeError as error:
        what = f"the file system of {protocol}:// does not take these settings: {error}"
        raise HarnessError(shown(path), what, "check the source's option 'storage'") from None


@contextmanager
def telling() -> Iterator[None]:
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


class _Remote(io.RawIOBase):
    """A file of fsspec whose every failure is an OSError."""

    def __init__(self, file: Any) -> None:
        super().__init__()
        self.file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self.file.seekable())

    def readinto(self, buffer: Any) -> int:
        with telling():
            data = self.file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        with telling():
            return int(self.file.seek(offset, whence))

    def tell(self) -> int:
        return int(self.file.tell())
