"""The lock files of the release workflow name every package by hash, in the versions of constraints.txt."""

from __future__ import annotations

import re

import pytest
from support.paths import ROOT

PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;\\]+)", re.MULTILINE)


def pins(file):
    return {match["name"].lower().replace("_", "-"): match["version"] for match in PIN.finditer(file.read_text())}


@pytest.mark.parametrize("name", ["harness", "build", "audit"])
def test_every_package_has_a_hash(name):
    entries = (ROOT / "requirements" / f"{name}.lock").read_text().replace("\\\n", " ").splitlines()
    assert entries
    assert [entry for entry in entries if "==" not in entry or "--hash=sha256:" not in entry] == []


def test_the_locked_versions_are_those_that_the_tests_use():
    locked, constraints = pins(ROOT / "requirements" / "harness.lock"), pins(ROOT / "constraints.txt")
    assert {"torch", "transformers", "mlflow", "trl", "peft"} <= locked.keys()
    assert {name: locked[name] for name in locked.keys() & constraints.keys()} == {
        name: constraints[name] for name in locked.keys() & constraints.keys()
    }
