"""Checksums of model files and folders.

Hashing 13 GB takes half a minute, and every run of a spec asks: a file's checksum is remembered in the cache and
trusted while the file's size, times and inode are what they were.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

from harness.types import Progress, no_progress
from harness.utils import cache_dir
from harness.utils.json_depth import load_json

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_CONFIGS = ("config.json", "*.index.json", "*.py")
_MIN_CACHED_SIZE = 16 << 20  # bytes; below, hashing is as fast as looking up


def weight_files(folder: Path) -> list[Path]:
    """The folder's weight files, sorted by name."""
    return sorted(file for pattern in _WEIGHTS for file in folder.glob(pattern) if not file.name.startswith("adapter_"))


def digest_folder(folder: Path, progress: Progress = no_progress) -> str:
    """sha256, in hex, over names and contents of the weight and config files: what decides the model's function."""
    configs = [file for pattern in _CONFIGS for file in folder.glob(pattern)]
    files = sorted({*weight_files(folder), *configs}, key=lambda path: path.name)
    whole = hashlib.sha256()
    for path in files:
        whole.update(f"{path.name}\0{digest_file(path, progress)}\n".encode())
    return whole.hexdigest()


def digest_adapter(folder: Path, base_digest: str) -> str:
    """sha256, in hex, over an adapter's weights and config and the digest of the model below it."""
    whole = hashlib.sha256(f"{base_digest}\n".encode())
    for path in sorted(folder.glob("adapter_*")):
        whole.update(f"{path.name}\0{digest_file(path)}\n".encode())
    return whole.hexdigest()


def digest_file(path: Path, progress: Progress = no_progress) -> str:
    """sha256 of the file in hex, remembered for large files."""
    path = path.resolve()
    state = path.stat()
    if state.st_size < _MIN_CACHED_SIZE:
        return sha256_of_file(path)
    mark = [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, state.st_dev]
    note = cache_dir.cache_root() / "digests" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"
    try:
        known = load_json(note.read_text())
        if known["mark"] == mark:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not seen before
    found = sha256_of_file(path, progress)
    _save_digest(note, {"path": str(path), "mark": mark, "sha256": found})
    return found


def sha256_of_file(path: Path, progress: Progress = no_progress, phase: str = "hash") -> str:
    """sha256 of the file in hex, read now."""
    total, done = path.stat().st_size, 0
    found = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(8 << 20):
            found.update(chunk)
            done += len(chunk)
            progress(phase, done, total, path.name, "B")
    return found.hexdigest()


def _save_digest(path: Path, record: dict[str, object]) -> None:
    """Write the note whole or not at all; a cache that cannot be written costs time, never the run."""
    draft = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(record))
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
