"""The folder of a run: what a process that was killed has left in it."""

from __future__ import annotations

import os
import subprocess
import sys

from harness.runner.folder import RunFolder


def test_drafts_are_deleted_but_for_that_of_a_running_export(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    running = os.getppid()
    deleted = [
        f"stages/a/.end.draft-{running}",
        f".spec.json.{running}",
        f"export/.merged.draft-{ended.pid}",
        f"export/.merged.draft-{os.getpid()}",
        f"export/.merged.old-{ended.pid}",
    ]
    kept = [f"export/.merged.draft-{running}", "export/merged", ".hidden"]
    for name in (*deleted, *kept):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_text("x")
    with RunFolder(tmp_path).locked():
        assert [name for name in deleted if (tmp_path / name).exists()] == []
        assert [name for name in kept if not (tmp_path / name / "file").exists()] == []
