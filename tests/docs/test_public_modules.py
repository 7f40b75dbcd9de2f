"""The public modules of docs/plugins/README.md are those that the contract of import-linter allows."""

from __future__ import annotations

import re
import tomllib

from support.paths import ROOT

CONTRACT = "plugins import the public modules only"


def test_documented_modules_equal_those_of_the_contract():
    page = (ROOT / "docs" / "plugins" / "README.md").read_text(encoding="utf-8")
    section = page.split("## Public modules")[1].split("\n## ")[0]
    documented = set(re.findall(r"^\| `(harness[\w.]*)`", section, re.MULTILINE))

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (contract,) = (contract for contract in settings["contracts"] if contract["name"] == CONTRACT)
    forbidden = set(contract["forbidden_modules"])
    allowed = {line.removeprefix("** -> ") for line in contract["ignore_imports"]}

    assert {module for module in documented if ".".join(module.split(".")[:2]) in forbidden} == allowed


def test_every_package_is_public_or_forbidden_to_plugins():
    page = (ROOT / "docs" / "plugins" / "README.md").read_text(encoding="utf-8")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (contract,) = (contract for contract in settings["contracts"] if contract["name"] == CONTRACT)
    packages = {
        f"harness.{path.stem}" for path in (ROOT / "harness").iterdir() if path.suffix == ".py" or path.is_dir()
    }
    internal = {
        package
        for package in packages - {"harness.__init__", "harness.__main__", "harness.__pycache__", "harness.py"}
        if f"| `{package}` |" not in page
    }
    assert internal <= set(contract["forbidden_modules"])
