"""The folder of converted models: one entry a source file, whole or absent, however many runs ask for it at once.

Root: `$HARNESS_CACHE`, else `$XDG_CACHE_HOME/harness`, else `~/.cache/harness`. An entry `models/<key>` holds the
model and a `manifest.json` with its source, checksums and versions. It is built under a lock in a folder beside it
and moved into place by one rename.
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

CACHE_FORMAT = 1
"""Version of what an entry holds; another number makes every model be converted anew."""

MODEL_FOLDER = "model"
"""Name of the folder, inside the scratch folder, in which a builder leaves the model."""

MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True)
class CachedModel:
    """A converted model. folder: loadable by transformers. manifest: what is known of it."""

    folder: Path
    manifest: Mapping[str, Any]


def cache_root() -> Path:
    """The cache folder; it need not exist yet."""
    if own := os.environ.get("HARNESS_CACHE"):
        return Path(own).expanduser().absolute()
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    # the XDG specification says to ignore a relative path
    return (Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache") / "harness"


def get_or_build_model(
    sha256: str, source: str, build: Callable[[Path], dict[str, Any]], progress: Progress
) -> CachedModel:
    """The entry of the source file with this checksum; `build` makes it if it is not there yet.

    build: called with an empty scratch folder; leaves the model in `MODEL_FOLDER` there and returns facts for the
    manifest. A second run that asks meanwhile waits and takes the first one's result.
    Raises HarnessError when the cache cannot be written or has no space left, and whatever `build` raises.
    """
    folder = cache_root() / "models" / f"{sha256[:32]}-v{CACHE_FORMAT}"
    if (manifest := load_manifest(folder, sha256)) is not None:
        return CachedModel(folder, manifest)
    with _cache_write_errors(folder.parent), _cache_entry_lock(folder, progress):
        if (manifest := load_manifest(folder, sha256)) is not None:
            return CachedModel(folder, manifest)
        for leftover in folder.parent.glob(f".{folder.name}.*"):
            shutil.rmtree(leftover, ignore_errors=True)  # of a run that was interrupted: we hold its lock now
        scratch = folder.with_name(f".{folder.name}.{os.getpid()}")
        scratch.mkdir()
        try:
            facts = build(scratch)
            manifest = _write_manifest(scratch / MODEL_FOLDER, {"source": source, "file_sha256": sha256, **facts})
            move_into_place(scratch / MODEL_FOLDER, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return CachedModel(folder, manifest)


def load_manifest(folder: Path, sha256: str | None = None) -> dict[str, Any] | None:
    """The manifest of a whole entry; None when there is none, a file of it is missing or cut off, or another file's.

    sha256: of the source file that the entry must come from.
    """
    try:
        manifest = load_json((folder / MANIFEST_FILE).read_text())
        whole = all((folder / name).stat().st_size == size for name, size in manifest["files"].items())
        ours = manifest["format"] == CACHE_FORMAT and sha256 in (None, manifest["file_sha256"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if whole and ours else None


def move_into_place(folder: Path, target: Path) -> None:
    """Move a finished folder to `target` on the same disk, in one step, after its contents have reached the disk.

    A folder that is at `target` already is replaced. Files get the permissions that the user's umask gives.
    """
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o666 & ~umask)  # safetensors writes for the owner alone
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    if target.exists():
        target.rename(old)
    folder.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def folder_size(folder: Path) -> int:
    """Bytes of all files below the folder, while others write there."""
    total = 0
    for directory, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(directory, name)).st_size
    return total


def require_free_space(folder: Path, needed: int, purpose: str) -> None:
    """Raise HarnessError unless the folder's disk has `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise no_space_error(folder, f"for {purpose}: {needed / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free")


def no_space_error(folder: Path, purpose: str) -> HarnessError:
    """The error for a full disk under the cache."""
    base = cache_root()
    place = base if base in folder.parents else folder
    return HarnessError(
        str(place), f"no disk space left {purpose}", "free some, or set HARNESS_CACHE to a folder on another disk"
    )


def is_disk_full_error(error: BaseException) -> bool:
    """Whether the error says that the disk, or the user's quota on it, is full."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "No space left on device" in str(error)  # SafetensorError is no OSError


@contextlib.contextmanager
def _cache_write_errors(folder: Path) -> Iterator[None]:
    """Make the folder, and turn the disk's refusals within into errors that name the cache."""
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
                str(cache_root()), f"the cache cannot be written: {error}", "set HARNESS_CACHE to a folder of your own"
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


def _write_manifest(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write the manifest of a finished model folder."""
    files = {str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}
    made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    manifest = {"format": CACHE_FORMAT, **facts, "made": made, "files": files}
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest
