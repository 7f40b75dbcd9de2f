"""The committed schema, which editors use, accepts exactly the documents that `harness validate` finds well-formed.

Both are asked about the document as it is written, shorthands included. What needs the whole spec, e.g. whether a
source that a mode names exists, is beyond a JSON Schema and is not compared.
"""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path

import jsonschema
import pytest

from harness.errors import HarnessError
from harness.registry import discover_plugins
from harness.spec.schema import compose_schema, expand_shorthand
from harness.spec.spec import load_spec

ROOT = Path(__file__).parents[3]
COMMITTED = json.loads((ROOT / "specs/harness.schema.json").read_text(encoding="utf-8"))
EDITOR = jsonschema.Draft7Validator(COMMITTED)
VALUES = (None, "", "x", 0, 1, -1, 1.0, 0.5, 10**12, True, [], ["x"], [1], {}, {"x": 1})
NUM_RANDOM = 400

BASE = {
    "name": "agreement",
    "model": {"path": "x"},
    "template": "chatml",
    "sources": {"a": {"jsonl": {"path": "a.jsonl"}}},
    "mode": {"domain": {"sources": ["a"]}},
    "mitigations": {"lora": {}, "ewc": {"source": "a"}},
    "evaluate": {"a": {"source": "a", "metrics": {"rouge": {}}}},
}


@pytest.fixture(scope="module")
def schema():
    return compose_schema(discover_plugins())


def changed(path, value):
    document = copy.deepcopy(BASE)
    inner = document
    for key in path[:-1]:
        if not isinstance(inner.get(key), dict):
            inner[key] = {}
        inner = inner[key]
    inner[path[-1]] = value
    return document


def is_valid(document, schema):
    try:
        load_spec(document, schema)
    except HarnessError:
        return False
    return True


SHORTHANDS = [
    (("template",), "chatml", True),
    (("template",), "jinja", None),
    (("template",), "nothing", False),
    (("mitigations",), "lora", True),
    (("mitigations",), "ewc", False),
    (("mitigations",), "harness-sft/lora", True),
    (("mitigations",), "harness-sft/ewc", False),
    (("mode",), "domain", False),
    (("evaluate", "a", "metrics"), "rouge", True),
    (("evaluate", "a", "metrics"), ["rouge"], False),
    (("evaluate", "a", "template"), "alpaca", True),
    (("sources", "a"), "jsonl", False),
    (("mitigations",), {}, True),
    (("evaluate", "a", "metrics"), {}, False),
    (("mode",), {}, False),
    (("mode",), {"domain": {"sources": ["a"]}, "general": {"sources": ["a"]}}, False),
    (("$schema",), "./harness.schema.json", True),
    (("train",), {"batch_size": 8.0}, True),
    (("train",), {"batch_size": 8.5}, False),
    (("train",), {"lr": 1}, False),
]


@pytest.mark.parametrize(("path", "value", "expected"), SHORTHANDS)
def test_editor_and_validate_agree_about_shorthands_and_slots(schema, path, value, expected):
    document = changed(path, value)
    assert EDITOR.is_valid(document) == is_valid(document, schema)
    if expected is not None:
        assert EDITOR.is_valid(document) is expected


def leaf_paths(schema, path=()):
    for key, option in schema.get("properties", {}).items():
        if "$ref" in option and "/" in key:
            continue  # another name of a component, which the document has already
        yield (*path, key)
        yield from leaf_paths(option, (*path, key))
    if isinstance(schema.get("additionalProperties"), dict):
        yield from leaf_paths(schema["additionalProperties"], (*path, "a"))


def test_editor_and_validate_agree_about_random_values_of_every_kind_of_key(schema):
    # An editor cannot know whether the file of `extends` or a profile exists.
    layers = ("extends", "profile", "profiles")
    paths, draw = [path for path in leaf_paths(COMMITTED) if path[0] not in layers], random.Random(0)
    assert len(paths) > 300
    documents = [changed(draw.choice(paths), draw.choice(VALUES)) for _ in range(NUM_RANDOM)]
    verdicts = [(EDITOR.is_valid(document), is_valid(document, schema), document) for document in documents]
    assert [document for editor, validate, document in verdicts if editor != validate] == []
    accepted = sum(editor for editor, *_ in verdicts)
    assert 20 < accepted < NUM_RANDOM - 20, "both kinds occur"


@pytest.mark.parametrize("file", sorted((ROOT / "specs").rglob("*_*.json")), ids=lambda file: file.name)
def test_editor_accepts_every_spec_of_the_repository(file):
    EDITOR.validate(json.loads(file.read_text(encoding="utf-8")))


def test_every_example_of_the_schema_is_valid_in_its_place(schema):
    count = 0

    def visit(part, path):
        nonlocal count
        for value in part.get("examples", ()):
            count += 1
            jsonschema.Draft7Validator(part).validate(value)
            jsonschema.Draft7Validator(part).validate(expand_shorthand(value, part, COMMITTED))
        for key, option in part.get("properties", {}).items():
            visit(option, (*path, key))
        if isinstance(part.get("additionalProperties"), dict):
            visit(part["additionalProperties"], (*path, "*"))

    visit(COMMITTED, ())
    assert count > 40
