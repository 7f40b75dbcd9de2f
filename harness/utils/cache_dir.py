"""The folder of converted models: one complete entry for each source file, however many runs ask for it at once.

Root: `$HARNESS_CACHE`, else `$XDG_CACHE_HOME/harness`, else `~/.cache/harness`. An entry `models/<key>` holds the
model and a `manifest.json` with its source, checksums and versions. It is built under a lock in a scratch folder of the
same disk and moved into place by one rename.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.types import Progress
from harness.utils.json_depth import load_json
from harness.utils.write_errors import is_disk_full_error

CACHE_FORMAT = 1
"""Version of an entry's contents; another version makes every model be converted again."""

MODEL_FOLDER = "model"
"""Name of the folder, inside the scratch folder, in which `build` leaves the model."""

MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True)
class CachedModel:
    """A converted model.

    Attributes:
        folder: A folder that transformers can load.
        manifest: The model's metadata: source, checksums, versions, digest.
    """

    folder: Path
    manifest: Mapping[str, Any]


def cache_root() -> Path:
    """Return the cache folder; it need not exist yet."""
    if configured := os.environ.get("HARNESS_CACHE"):
        return Path(configured).expanduser().absolute()
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    # the XDG specification says to ignore a relative path
    return (Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache") / "harness"


def model_folder(sha256: str) -> Path:
    """Return the folder of the entry of a source file; it need not exist yet. sha256: of the file, in hex."""
    return cache_root() / "models" / f"{sha256[:32]}-v{CACHE_FORMAT}"


def get_or_build_model(
    sha256: str, source: str, build: Callable[[Path], dict[str, Any]], progress: Progress
) -> CachedModel:
    """Return the cache entry of a source file; build it when there is none.

    Another run that asks meanwhile waits and uses the same entry.

    Args:
        sha256: Checksum of the source file, in hex.
        source: Where the file came from, for the manifest.
        build: Called with an empty scratch folder. Leaves the model in `MODEL_FOLDER` there and returns metadata for
            the manifest.
        progress: Reports that this run waits for another one.

    Raises:
        HarnessError: The cache cannot be written or its disk is full. What `build` raises is passed on.
    """
    folder = model_folder(sha256)
    if (manifest := load_manifest(folder, sha256)) is not None:
        return CachedModel(folder, manifest)
    with _cache_write_errors(folder.parent), _cache_entry_lock(folder, progress):
        if (manifest := load_manifest(folder, sha256)) is not None:
            return CachedModel(folder, manifest)
        for leftover in folder.parent.glob(f".{folder.name}.*"):
            shutil.rmtree(leftover, ignore_errors=True)  # of an interrupted run: this process holds the lock now
        scratch = folder.with_name(f".{folder.name}.{os.getpid()}")
        scratch.mkdir()
        try:
            metadata = build(scratch)
            manifest = _write_manifest(scratch / MODEL_FOLDER, {"source": source, "file_sha256": sha256, **metadata})
            move_into_place(scratch / MODEL_FOLDER, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return CachedModel(folder, manifest)


def load_manifest(folder: Path, sha256: str | None = None) -> dict[str, Any] | None:
    """Return the manifest of a complete entry; None when there is none, or a file of it is missing or truncated.

    Args:
        folder: The entry.
        sha256: The source file that the entry must come from; None: any.
    """
    try:
        manifest = load_json((folder / MANIFEST_FILE).read_text())
        is_complete = all((folder / name).stat().st_size == size for name, size in manifest["files"].items())
        matches = manifest["format"] == CACHE_FORMAT and sha256 in (None, manifest["file_sha256"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if is_complete and matches else None


def move_into_place(folder: Path, target: Path) -> None:
    """Move a finished folder to `target` on the same disk in one step, after its contents have reached the disk.

    An existing folder at `target` is replaced. Files get the permissions that the user's umask gives.
    """
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o666 & ~umask)  # safetensors makes files that only their owner can read
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    if target.exists():
        target.rename(old)
    folder.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def folder_size(folder: Path) -> int:
    """Return the bytes of all files in the folder and below; others may write there meanwhile."""
    total = 0
    for directory, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(directory, name)).st_size
    return total


def require_free_space(folder: Path, needed: int, purpose: str) -> None:
    """Raise HarnessError unless the folder's disk has `needed` bytes free.

    Args:
        folder: A folder on the disk.
        needed: Bytes.
        purpose: What they are needed for, in the words of the error.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise no_space_error(folder, f"for {purpose}: {needed / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free")


def no_space_error(folder: Path, purpose: str) -> HarnessError:
    """Return the error for a full disk under the cache."""
    root = cache_root()
    location = root if root in folder.parents else folder
    return HarnessError(
        str(location), f"no disk space left {purpose}", "free some, or set HARNESS_CACHE to a folder on another disk"
    )


@contextlib.contextmanager
def _cache_write_errors(folder: Path) -> Iterator[None]:
    """Create the folder, and turn write errors within the context into errors that name the cache."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except HarnessError:
        raise
    except Exception as error:
        if is_disk_full_error(error):
            raise no_space_error(folder, "to convert the model") from error
        if isinstance(error, PermissionError | FileExistsError | NotADirectoryError) or (
            isinstance(error, OSError) and error.errno == errno.EROFS
        ):
            raise HarnessError(
                str(cache_root()),
                f"the cache cannot be written: {error}",
                "set HARNESS_CACHE to a folder that you can write",
            ) from error
        raise


@contextlib.contextmanager
def _cache_entry_lock(folder: Path, progress: Progress) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress("prepare", 0, 0, "another run is preparing this model; waiting for it")
        lock.acquire(poll_interval=0.2)
    try:
        yield
    finally:
        lock.release()


def _write_manifest(folder: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Write the manifest of a finished model folder."""
    files = {str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    manifest = {"format": CACHE_FORMAT, **metadata, "made": created, "files": files}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest
