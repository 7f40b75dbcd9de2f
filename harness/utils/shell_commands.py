"""Commands that a message prints, quoted so that they can be pasted into a shell. Imports nothing heavy."""

from __future__ import annotations

import shlex
from pathlib import Path


def harness_command(*words: str | Path) -> str:
    """Return the command `harness` with these arguments."""
    return shlex.join(["harness", *map(str, words)])


def resume_command(folder: str | Path, world_size: int = 1, nodes: int = 1) -> str:
    """Return the command that resumes a run or experiment, with as many processes.

    Processes on several nodes are started by a launcher, whose own command is not known.
    """
    if nodes > 1:
        return f"{harness_command('run', '--resume', folder)} with {world_size} processes of your launcher"
    gpus = ("--gpus", str(world_size)) if world_size > 1 else ()
    return harness_command("run", "--resume", folder, *gpus)


def enclosing_run(path: Path) -> Path | None:
    """Return the folder of the run that a path is in; for an arm, the folder of its experiment. None: of no run."""
    for folder in (path, *path.parents):
        if (folder / "spec.json").is_file():
            experiment = folder.parent.parent
            is_arm = folder.parent.name == "arms" and (experiment / "spec.json").is_file()
            return experiment if is_arm else folder
    return None
