"""Third-party distributions: one installed by pip, and broken ones built on the fly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent / "harness-example"


@pytest.fixture(scope="session")
def example(tmp_path_factory):
    """Return the folder in which the distribution `harness-example` is installed."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    command += ["--no-deps", "--no-build-isolation", "--target", str(target), str(EXAMPLE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def make(tmp_path):
    """Return a function that builds a distribution of one module and returns its folder."""

    def make(name, text):
        folder = tmp_path / "site"
        module = name.replace("-", "_")
        metadata = folder / f"{module}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (folder / f"{module}.py").write_text(text, encoding="utf-8")
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
        (metadata / "entry_points.txt").write_text(f"[harness]\nonly = {module}\n", encoding="utf-8")
        return folder

    return make


@pytest.fixture
def harness():
    """Return a function that runs a command in a new interpreter that can import from the folder."""

    def harness(folder, *arguments, **environment):
        path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
        inherited = {key: value for key, value in os.environ.items() if key != "HARNESS_NO_THIRD_PARTY"}
        return subprocess.run(
            [sys.executable, "-m", "harness", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            env={**inherited, "PYTHONPATH": path, **environment},
        )

    return harness
