"""Check out an earlier commit, and run its commands beside those of today."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def checked_out(commit: str | None) -> Iterator[Path]:
    """Check out a commit in a temporary worktree, and yield its folder; None: this folder.

    The installed metadata of harness-sft are those of today. The plugin packages that they name and the commit lacks
    become empty modules, so that the commit has no components that it did not have.
    """
    if commit is None:
        yield ROOT
        return
    with tempfile.TemporaryDirectory() as folder:
        worktree = Path(folder) / "before"
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "--detach", "-q", worktree, commit], check=True)
        try:
            project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            for package in project["entry-points"]["harness"].values():
                if not (worktree / "plugins" / package).is_dir():
                    (worktree / "plugins" / f"{package}.py").touch()
            yield worktree
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", worktree], check=True)


def command_of(code: Path, environment: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Return the words that start harness with the code in a folder, and their environment.

    `-m` searches the working directory first: start it in `code`, or in a folder without a package `harness`.
    """
    module = "harness" if (code / "harness" / "__main__.py").exists() else "harness.cli.main"
    paths = {"PYTHONPATH": f"{code}{os.pathsep}{code / 'plugins'}", "HARNESS_NO_THIRD_PARTY": "1"}
    compiled = {key: value for key, value in environment.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return [sys.executable, "-m", module], {**compiled, **paths}
