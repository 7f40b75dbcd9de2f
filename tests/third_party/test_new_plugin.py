"""`harness plugins --new` writes a distribution for each kind that is built, installed, checked and tested."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from harness.cli.main import main
from harness.testing import new_plugin


@pytest.fixture
def install(tmp_path):
    """Return a function that builds and installs a distribution and returns the folder of its packages."""

    def install(folder):
        target = tmp_path / "site"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
        command += ["--no-deps", "--no-build-isolation", "--target", str(target), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return target

    return install


KINDS = [
    pytest.param(kind, marks=[] if kind == "metric" else [pytest.mark.slow]) for kind in new_plugin.available_kinds()
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_is_installed_and_passes_its_tests_and_the_checks(kind, tmp_path, install, harness):
    folder = tmp_path / "new"
    assert main(["plugins", "--new", kind, "sample_part", "--folder", str(folder)]) == 0
    site = install(folder)
    checks = harness(site, "plugins", "--check", "harness-sample-part", "--json")
    assert [result for result in json.loads(checks.stdout) if result["status"] != "passed"] == []
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
    environment = {key: value for key, value in os.environ.items() if key != "HARNESS_NO_THIRD_PARTY"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--strict-markers"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**environment, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > len(json.loads(checks.stdout))


def test_the_spec_in_the_readme_uses_the_component(tmp_path):
    for kind in new_plugin.available_kinds():
        folder = tmp_path / kind
        assert main(["plugins", "--new", kind, "sample_part", "--folder", str(folder)]) == 0
        text = (folder / "README.md").read_text()
        if kind == "exporter":  # no key of a spec names it
            assert "harness export RUN --to sample_part FOLDER" in text
        else:
            (block,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
            assert "sample_part" in json.dumps(json.loads(block))


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("metrics", "short"), "'metrics' is not a kind of component; write one of check, exporter, metric"),
        (("metric", "Short-answers"), "'Short-answers' is not a valid name; use lower-case letters, digits and '_'"),
        (("metric", "metrics"), "a package harness_metrics is installed; choose another name"),
        (("metric", "rouge"), "there is a built-in metric 'rouge'; choose another name"),
    ],
)
def test_invalid_words_are_errors_of_one_line(words, problem, tmp_path, capsys):
    assert main(["plugins", "--new", *words, "--folder", str(tmp_path / "new")]) == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_folder_with_files_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["plugins", "--new", "metric", "short", "--folder", str(tmp_path)]) == 2
    assert "exists and is not an empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
