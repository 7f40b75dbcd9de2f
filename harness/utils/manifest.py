"""A manifest: the checksum of every file of a folder, written last, so that a folder with one is complete."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.errors import RunError
from harness.utils.atomic_write import atomic_write
from harness.utils.file_digests import sha256_of_file
from harness.utils.formats import MANIFEST_FORMAT, format_problem, installed_harness
from harness.utils.json_depth import load_json


def write_manifest(folder: Path, name: str, metadata: Mapping[str, Any]) -> None:
    """Write the manifest of a folder: `metadata` and, under `files`, the SHA-256 of every file. Reads each file once.

    Every file is on the disk before the manifest is, also after a power loss.
    """
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != name]
    checksums = {str(file.relative_to(folder)): sha256_of_file(file) for file in files}
    for path in (*files, folder):
        flush_to_disk(path)
    versions = {"format": MANIFEST_FORMAT, "harness": installed_harness()}
    with atomic_write(folder / name) as draft:
        draft.write_text(json.dumps({**versions, **metadata, "files": checksums}, indent=2) + "\n", encoding="utf-8")


def load_manifest(folder: Path, name: str, hint: str) -> dict[str, Any]:
    """Return the content of a folder's manifest.

    Raises:
        RunError: It is missing or cannot be read; `hint` is the remedy.
    """
    try:
        manifest: dict[str, Any] = load_json((folder / name).read_text(encoding="utf-8"))
        if not isinstance(manifest["files"], dict):
            raise TypeError("files is not an object")
    except FileNotFoundError:
        raise RunError(str(folder), f"it is incomplete: {name} is missing", hint) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(str(folder / name), f"it cannot be read ({type(error).__name__})", hint) from error
    return manifest


def require_manifest_format(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raise RunError unless this version of harness reads the folder's format."""
    written_by = manifest.get("harness")
    problem = format_problem(
        manifest.get("format"), MANIFEST_FORMAT, written_by if isinstance(written_by, str) else None
    )
    if problem is not None:
        raise RunError(str(folder), problem[0], f"{problem[1]}, or delete this folder and resume without it")


def verify_files(folder: Path, manifest: Mapping[str, Any], hint: str) -> None:
    """Verify every file of a folder against its manifest.

    Raises:
        RunError: A file is missing or its checksum differs; `hint` is the remedy.
    """
    for name, sha256 in manifest["files"].items():
        file = folder / name
        if not file.is_file():
            raise RunError(str(folder), f"its file {name} is missing", hint)
        if sha256_of_file(file) != sha256:
            raise RunError(str(file), "its checksum differs: it is damaged or was changed", hint)


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk. Systems that cannot do it for folders are left."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
