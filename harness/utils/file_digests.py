"""Compute checksums of model files and folders.

Hashing 13 GB takes half a minute, and every run needs the digest of its model. So the checksum of a large file is
stored in the cache, and trusted while the file's size, times and inode are unchanged.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

from harness.types import Progress, no_progress
from harness.utils import cache_dir
from harness.utils.atomic_write import atomic_write
from harness.utils.json_depth import load_json

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_CONFIGS = ("config.json", "*.index.json", "*.py")
_MIN_CACHED_SIZE = 16 << 20  # bytes; smaller files are hashed as fast as they are looked up


def weight_files(folder: Path) -> list[Path]:
    """Return the folder's weight files, sorted by name; those of adapters are left out."""
    return sorted(file for pattern in _WEIGHTS for file in folder.glob(pattern) if not file.name.startswith("adapter_"))


def digest_folder(folder: Path, progress: Progress = no_progress) -> str:
    """Return the SHA-256, in hex, over names and contents of the folder's weight and config files.

    These files determine the function that the model computes.
    """
    configs = [file for pattern in _CONFIGS for file in folder.glob(pattern)]
    files = sorted({*weight_files(folder), *configs}, key=lambda path: path.name)
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\0{digest_file(path, progress)}\n".encode())
    return digest.hexdigest()


def digest_adapter(folder: Path, base_digest: str) -> str:
    """Return the SHA-256, in hex, over an adapter's weights and config and the digest of its base model."""
    digest = hashlib.sha256(f"{base_digest}\n".encode())
    for path in sorted(folder.glob("adapter_*")):
        digest.update(f"{path.name}\0{digest_file(path)}\n".encode())
    return digest.hexdigest()


def digest_file(path: Path, progress: Progress = no_progress) -> str:
    """Return the SHA-256 of the file in hex; that of a large file is cached."""
    path = path.resolve()
    status = path.stat()
    if status.st_size < _MIN_CACHED_SIZE:
        return sha256_of_file(path)
    mark = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]
    cache_file = cache_dir.cache_root() / "digests" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"
    try:
        cached = load_json(cache_file.read_text())
        if cached["mark"] == mark:
            return str(cached["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not hashed before, or the cache file is damaged
    sha256 = sha256_of_file(path, progress)
    _save_digest(cache_file, {"path": str(path), "mark": mark, "sha256": sha256})
    return sha256


def sha256_of_file(path: Path, progress: Progress = no_progress, phase: str = "hash") -> str:
    """Read the file and return its SHA-256 in hex; nothing is cached.

    Args:
        path: The file.
        progress: Called after every 8 MiB with the bytes read so far.
        phase: The phase that `progress` is called with.
    """
    total, done = path.stat().st_size, 0
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(8 << 20):
            digest.update(chunk)
            done += len(chunk)
            progress(phase, done, total, path.name, "B")
    return digest.hexdigest()


def _save_digest(path: Path, record: dict[str, object]) -> None:
    """Write the cache file atomically. A cache that cannot be written costs time and never ends the run."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as draft:
            draft.write_text(json.dumps(record))
