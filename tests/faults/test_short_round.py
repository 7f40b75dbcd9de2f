"""The short round of faults, as `make faults` runs it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.paths import ROOT


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_short_round_finds_nothing(tmp_path):
    command = [sys.executable, str(ROOT / "tests" / "faults"), "short", "--work", str(tmp_path / "faults")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-2000:]}"
    for kind in ("mutated", "kills", "damaged", "full"):
        assert f"| {kind}" in done.stdout
