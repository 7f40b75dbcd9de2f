"""The logs in the folder of a stage, and their copies. Imports nothing heavy.

Checkpoints and snapshots have copies with checksums, so that a resumed stage continues its logs even if the files in
its folder are damaged.
"""

from __future__ import annotations

import shutil
from pathlib import Path

STAGE_LOG_FILES = ("steps.jsonl", "evaluations.jsonl")


def copy_stage_logs(source: Path, target: Path) -> None:
    """Copy the logs, as far as they exist, from one folder to another."""
    for name in STAGE_LOG_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
