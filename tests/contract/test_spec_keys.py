"""Every key of the core's spec keys is used by the package that owns it."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest

import harness
from harness import gate
from harness.spec_keys import data, evaluation, run, training
from harness.types import Suite

ROOT = Path(harness.__file__).parent
DECLARED = {
    "train": (training.TRAIN_KEYS, ("training", "evaluation", "data", "runner", "model", "spec")),
    "model": (training.MODEL_KEYS, ("model",)),
    "rows": (data.SOURCE_KEYS, ("data",)),
    "held_out": (data.HELD_OUT_KEYS, ("data", "spec")),
    "suite": (evaluation.SUITE_KEYS, ("spec", "evaluation", "data", "report")),
    "server": (evaluation.SERVER_KEYS, ("evaluation",)),
    "checks": (data.CHECKS_KEYS, ("runner", "data")),
    "plugin_check": (data.PLUGIN_CHECK_KEYS, ("runner",)),
    "near_duplicates": (data.NEAR_DUPLICATES_KEYS, ("data",)),
    "contamination": (data.CONTAMINATION_KEYS, ("data",)),
    "gate": (evaluation.GATE_KEYS, ("gate.py", "spec")),
    "arms": (run.ARMS_KEYS, ("spec", "runner")),
    "track": (run.TRACK_KEYS, ("runner",)),
    "top": (run.TOP_LEVEL_KEYS, ("spec", "runner", "cli", "tracking", "report")),
}
UNUSED = {"top": {"description"}}
"""Keys for the reader of a spec, which the program does not use."""


def names_used_in(packages):
    """Return every string and every attribute name in the code of these packages."""
    files = [
        file
        for package in packages
        for file in ([ROOT / package] if package.endswith(".py") else (ROOT / package).rglob("*.py"))
    ]
    assert files
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    strings = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return strings | {node.attr for node in nodes if isinstance(node, ast.Attribute)}


@pytest.mark.slow
@pytest.mark.parametrize("section", DECLARED)
def test_every_key_is_read(section):
    keys, packages = DECLARED[section]
    assert set(keys) - UNUSED.get(section, set()) - names_used_in(packages) == set()


@pytest.mark.parametrize("section", DECLARED)
def test_every_key_has_a_description_and_a_default_or_is_required(section):
    keys, _ = DECLARED[section]
    asked_for = {
        "model": {"path"},
        "suite": {"source"},
        "server": {"url", "model"},
        "gate": {"score", *gate.TESTS},
        "top": {"$schema", "name", "extends", "profile", "profiles"},
    }.get(section, set())
    assert {key for key, option in keys.items() if "default" not in option} == asked_for
    assert [key for key, option in keys.items() if option["description"][-1] not in ".)"] == []


def test_a_suite_built_in_code_has_the_defaults_of_the_spec():
    fields = {field.name: field for field in dataclasses.fields(Suite)}
    assert set(fields) == {"name", "metrics", "template", *evaluation.SUITE_KEYS}
    assert fields.pop("template").default is None, "the schema's slot of all templates has the same default"
    for name, field in fields.items():
        if field.default is not dataclasses.MISSING:
            default = evaluation.SUITE_KEYS[name]["default"]
            assert field.default == (tuple(default) if isinstance(default, list) else default), name


def test_every_usual_range_is_in_the_description_of_its_key():
    usual = {key: option for key, option in training.TRAIN_KEYS.items() if "usual" in option}
    assert set(usual) == {"epochs", "learning_rate", "warmup_ratio", "weight_decay", "max_length"}
    for key, option in usual.items():
        assert "Usual: " in option["description"], key
        usual_numbers = option["description"].partition("Usual: ")[2].replace(" to ", " ").replace(",", "").split()
        assert {float(number.rstrip(".;")) for number in usual_numbers[:2]} == set(map(float, option["usual"])), key
