"""YAML as JSON: values of YAML 1.2, line and column of every value, and nothing that JSON cannot express."""

from __future__ import annotations

from itertools import pairwise

import pytest

from harness.errors import HarnessError
from harness.spec import schema, spec
from harness.spec.yaml_locations import parse_yaml

ALIASES = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{previous}'] * 10)}]\n" for previous, name in pairwise("abcdefg")
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1e-4", {"a": 1e-4}),
        ("a: 12", {"a": 12}),
        ("a: -0.5", {"a": -0.5}),
        ("a: no", {"a": "no"}),
        ("a: on", {"a": "on"}),
        ("a: true", {"a": True}),
        ("a: null\nb: ~\nc:", {"a": None, "b": None, "c": None}),
        ('a: "12"', {"a": "12"}),
        ("a: 2026-01-02", {"a": "2026-01-02"}),
        ("a: 12:30", {"a": "12:30"}),
        ("- 1\n- [x, 2]", [1, ["x", 2]]),
        ("a: |\n  two\n  lines\n", {"a": "two\nlines\n"}),
        ("a: &x {b: 1}\nc: *x", {"a": {"b": 1}, "c": {"b": 1}}),
        ("", None),
    ],
)
def test_values(text, value):
    assert parse_yaml(text, "a.yaml").value == value


def test_locations_are_line_and_column():
    located = parse_yaml("# a comment\ntrain:\n  epochs: 1\n  stages:\n    - name: x\n", "a.yaml")
    assert located.where(("train", "epochs")) == "a.yaml:3:3"
    assert located.where(("train", "stages", 0, "name")) == "a.yaml:5:7"
    assert located.where(("train", "missing")) == "a.yaml:2:1"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\n", "a.yaml:2:1: this is not YAML"),
        ("a: b: c", "a.yaml:1:5: this is not YAML"),
        ("a: 1\na: 2", "a.yaml:2:1: the key 'a' occurs twice"),
        ("a: !!python/object/apply:os.system [ls]", "a.yaml:1:4: the tag "),
        ("? [1]\n: 2", "a.yaml:1:3: a key is not a text"),
        ("b: &x {c: 1}\na:\n  <<: *x", "a.yaml:3:3: merging with << is not supported"),
        ("a: 1e999", "a.yaml:1:4: the number 1e999 is too large"),
        ("a: " + "[" * 3000 + "]" * 3000, "nested"),
        (ALIASES, "more than 100,000 values"),
        ("a: \x07", "this is not YAML"),
    ],
)  # fmt: skip
def test_what_json_cannot_express_is_one_line(text, message):
    with pytest.raises(HarnessError) as error:
        parse_yaml(text, "a.yaml")
    (line,) = error.value.lines()
    assert message in line


def test_a_spec_in_yaml_is_the_spec_in_json(small_registry, small_spec, write):
    composed = schema.compose_schema(small_registry)
    as_json = spec.load_spec(write(small_spec), composed)

    def lines(value, indent=""):
        if not isinstance(value, dict) or not value:
            return f" {value if not isinstance(value, list) else list(map(str, value))}".replace("'", '"') + "\n"
        return "\n" + "".join(f"{indent}{key}:{lines(child, indent + '  ')}" for key, child in value.items())

    file = write(lines(small_spec).lstrip("\n"), "spec.yaml")
    assert spec.load_spec(file, composed).document == as_json.document


def test_a_wrong_key_is_named_with_its_line(small_registry, small_spec, write):
    file = write("name: small\nmodel:\n  path: a/b\n  pth: c\n", "spec.yaml")
    with pytest.raises(HarnessError) as error:
        spec.load_spec(file, schema.compose_schema(small_registry))
    assert any("spec.yaml:4:3 model: unknown key 'pth'" in line for line in error.value.lines())
