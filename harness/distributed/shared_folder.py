"""Check that all nodes of a run see its folder, in which their processes exchange weights and written rows."""

from __future__ import annotations

import contextlib
import secrets
import time
from pathlib import Path

from harness.distributed.processes import Processes
from harness.errors import HarnessError

VISIBLE_SECONDS = 10.0
"""How long a new file may take to become visible on another node."""

POLL_SECONDS = 0.2


def require_shared_folder(processes: Processes, folder: Path | None = None) -> None:
    """Require that every process sees the folder of the main process. Each process calls it.

    The main process writes an empty file with a random name, and the others look for it. Processes on one node need
    not look.

    Args:
        processes: The processes of the run.
        folder: The output folder, or the folder of a resumed run; only the main process knows it. It is created.

    Raises:
        HarnessError: In the main process: the folder cannot be written, or a node does not see it.
    """
    if len(processes.nodes) == 1:
        return
    if not processes.is_main:
        file = processes.broadcast(Path())
        processes.gather(None if _becomes_visible(file) else f"{processes.host} (working folder {Path.cwd()})")
        return
    assert folder is not None, "the main process knows the folder"
    marker = folder / f".shared-{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        marker.touch()
    except OSError as error:
        what = f"the folder cannot be written: {error.strerror or error}"
        raise HarnessError(f"output: {folder}", what, 'set "output" to a folder that is writable') from error
    try:
        processes.broadcast(marker)
        blind = list(dict.fromkeys(filter(None, processes.gather(None))))
    finally:
        with contextlib.suppress(OSError):
            marker.unlink()
    if blind:
        what = f"not seen on {', '.join(blind)}, but all nodes of a run need this folder"
        hint = 'set "output" to a folder on a disk that all nodes share, and start harness in the same folder'
        raise HarnessError(f"output: {folder}", what, hint)


def _becomes_visible(file: Path) -> bool:
    deadline = time.monotonic() + VISIBLE_SECONDS
    while not file.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True
