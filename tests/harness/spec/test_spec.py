"""A spec file is read, overridden, validated and filled; an error has the location of its cause."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.registry import BrokenPlugin
from harness.spec.schema import compose_schema
from harness.spec.spec import load_spec


@pytest.fixture
def schema(small_registry):
    return compose_schema(small_registry)


@pytest.fixture
def get_error_lines(schema, write, small_spec):
    """Load a document (default: the small spec) with overrides; return the lines of the error."""

    def get_error_lines(*overrides, document=None, name="spec.json"):
        file = write(small_spec if document is None else document, name)
        with pytest.raises(HarnessError) as caught:
            load_spec(file, schema, overrides)
        assert caught.value.exit_code == 2
        return [line.replace(str(file), "spec.json") for line in caught.value.lines()]

    return get_error_lines


# -- files ------------------------------------------------------------------------------------------------------------


def test_loaded_spec_is_filled_and_has_its_file(schema, write, small_spec):
    file = write(small_spec)
    spec = load_spec(file, schema)
    assert spec.file == file
    assert spec.document["name"] == "small"
    assert spec.document["train"]["scheduler"] == {"cosine": {}}
    assert json.loads(file.read_text()) == small_spec


def test_filled_spec_does_not_contain_the_schema_key(schema, write, small_spec):
    spec = load_spec(write({"$schema": "./harness.schema.json", **small_spec}), schema)
    assert "$schema" not in spec.document


def test_filled_spec_loads_again_unchanged(schema, write, small_spec):
    first = load_spec(write(small_spec), schema).document
    assert load_spec(write(first, "elsewhere/filled.json"), schema).document == first


def test_byte_order_mark_is_ignored(schema, tmp_path, small_spec):
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(small_spec), encoding="utf-8-sig")
    assert load_spec(file, schema).document["name"] == "small"


def test_missing_file_is_reported(schema):
    with pytest.raises(HarnessError) as caught:
        load_spec("no/such.json", schema)
    assert caught.value.lines() == ["no/such.json: the file does not exist; check the path"]


@pytest.mark.parametrize("name", ["tickets.csv", "tickets.JSONL"])
def test_a_file_of_rows_is_not_a_spec(schema, tmp_path, name):
    (tmp_path / name).write_text("question,answer\nWhat?,That.\n")
    with pytest.raises(HarnessError, match=r"this is a file of rows, not a spec; draft a spec for it: harness init .*"):
        load_spec(tmp_path / name, schema)
    with pytest.raises(HarnessError, match="does not exist"):
        load_spec(tmp_path / "other.csv", schema)


def test_folder_is_not_a_spec(schema, tmp_path):
    with pytest.raises(HarnessError, match="cannot read it: Is a directory; name a JSON file"):
        load_spec(tmp_path, schema)


def test_file_that_is_not_utf_8_is_reported_with_the_byte(schema, tmp_path):
    file = tmp_path / "spec.json"
    file.write_bytes('{"name": "é"}'.encode("latin-1"))
    with pytest.raises(HarnessError) as caught:
        load_spec(file, schema)
    assert caught.value.where == f"{file}: byte 10"


@pytest.mark.parametrize("text", ["[]", '"spec"', "3", "null"])
def test_spec_must_be_one_object(get_error_lines, text):
    assert get_error_lines(document=text) == ["spec.json: a spec is a JSON object; write { ... }"]


def test_invalid_json_is_reported_with_line_and_column(get_error_lines):
    (line,) = get_error_lines(document='{\n  "name": "x",\n}')
    assert line.startswith("spec.json:3:1: a key in double quotes is expected here; ")


def test_errors_contain_the_file_name_as_the_caller_wrote_it(schema, write, monkeypatch, tmp_path):
    write("{}", "deep/spec.json")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HarnessError) as caught:
        load_spec("deep/spec.json", schema)
    assert {line.split()[0] for line in caught.value.lines()} == {"deep/spec.json:1:1"}


# -- overrides --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.learning_rate=1e-5", "train/learning_rate", 1e-5),
        ("train.steps=null", "train/steps", None),
        ("train.packing=true", "train/packing", True),
        ("name=other", "name", "other"),
        ('name="quoted"', "name", "quoted"),
        ("description=a=b", "description", "a=b"),
        ("description=", "description", ""),
        ("mode.mixed.domain=[\"chat\"]", "mode/mixed/domain", ["chat"]),
        ("mode.mixed.general.0=desk", "mode/mixed/general", ["desk"]),
        ("sources.desk.lines.limit=7", "sources/desk/lines/limit", 7),
        ("mitigations.keep.source=chat", "mitigations/keep", {"source": "chat"}),
        ("mitigations={}", "mitigations", {}),
        ("template=tokenizer", "template", {"tokenizer": {}}),
        ("evaluate.desk.metrics.overlap.size=2", "evaluate/desk/metrics/overlap", {"size": 2}),
        ("seed=7.0", "seed", 7),
        ("track.enabled=false", "track/enabled", False),
    ],
)  # fmt: skip
def test_override_sets_a_value_of_the_spec(schema, write, small_spec, override, key, value):
    node = load_spec(write(small_spec), schema, [override]).document
    for step in key.split("/"):
        node = node[step]
    assert node == value
    assert type(node) is type(value)


def test_later_of_two_overrides_of_a_key_wins(schema, write, small_spec):
    document = load_spec(write(small_spec), schema, ["train.epochs=2", "train.epochs=3"]).document
    assert document["train"]["epochs"] == 3


def test_override_may_change_a_stage_in_a_list(schema, write, small_spec, get_error_lines):
    stages = [{"name": name, "domain": ["desk"]} for name in ("one", "two")]
    small_spec["mode"] = {"continual": {"stages": stages}}
    document = load_spec(write(small_spec), schema, ["mode.continual.stages.1.train.epochs=2"]).document
    assert document["mode"]["continual"]["stages"] == [stages[0], {**stages[1], "train": {"epochs": 2}}]
    (line,) = get_error_lines("mode.continual.stages.2.train.epochs=2")
    assert "the spec has no key '2' here" in line


def test_override_may_set_an_option_of_a_component_written_as_a_bare_string(schema, write, small_spec):
    small_spec["mitigations"] = "mixing"
    document = load_spec(write(small_spec), schema, ["mitigations.mixing.share=0.2"]).document
    assert document["mitigations"]["mixing"]["share"] == 0.2


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("train.epochs", "--set train.epochs: an override is key=value; e.g. --set train.learning_rate=1e-5"),
        ("=3", "--set =3: an override is key=value; e.g. --set train.learning_rate=1e-5"),
        (
            "train.epochs=two",
            '--set train.epochs=two: train.epochs: "two" is not a number; write a number: '
            "passes over the stage's mixture",
        ),
        (
            "train.learning_rate=NaN",
            '--set train.learning_rate=NaN: train.learning_rate: "NaN" is not a number; write a number: '
            "peak learning rate",
        ),
        (
            "train.learning_rate=1e999",
            '--set train.learning_rate=1e999: train.learning_rate: "1e999" is not a number; write a number: '
            "peak learning rate",
        ),
        (
            "train.lerning_rate=1",
            "--set train.lerning_rate=1: train: unknown key 'lerning_rate'; did you mean 'learning_rate'?",
        ),
        ("trian.epochs=1", "--set trian.epochs=1: spec: unknown key 'trian'; did you mean 'train'?"),
        ("nam=x", "--set nam=x: spec: unknown key 'nam'; did you mean 'name'?"),
        ("mitigations.keeep.source=x",
         "--set mitigations.keeep.source=x: mitigations: no plugin provides 'keeep'; did you mean 'keep'?"),
        ("template=plane", "--set template=plane: template: no plugin provides 'plane'; did you mean 'plain'?"),
        (
            'mitigations={"keep": {}}',
            '--set mitigations={"keep": {}}: mitigations.keep: '
            "the key 'source' is missing; add it: whose rows are kept",
        ),
        ("seed.x=1", "--set seed.x=1: the spec has no key 'x' here; check the key"),
        ("mode.mixed.domain.9=x", "--set mode.mixed.domain.9=x: the spec has no key '9' here; check the key"),
        ("mode.mixed.domain.x.y=x",
         "--set mode.mixed.domain.x.y=x: the spec has no key 'x' here; check the key"),
    ],
)  # fmt: skip
def test_invalid_override_is_reported_at_the_override_and_not_at_the_file(get_error_lines, small_spec, override, line):
    small_spec["seed"] = 0
    assert get_error_lines(override) == [line]


@pytest.mark.parametrize(
    ("key", "whole"),
    [
        ("group=customer", '{"share": 0.2, "group": "customer"}'),
        ("near_duplicates=true", '{"share": 0.2, "near_duplicates": true}'),
        ("column=day", '{"column": "day", "from": "2026-01-31"}'),
    ],
)
def test_a_key_of_a_held_out_number_is_an_error_with_the_object_to_set(get_error_lines, small_spec, key, whole):
    small_spec["sources"]["desk"]["lines"]["held_out"] = 0.2
    path, name = "sources.desk.lines.held_out", key.partition("=")[0]
    assert get_error_lines(f"{path}.{key}") == [
        f"--set {path}.{key}: held_out is the number 0.2, and {name!r} is a key of an object; "
        f"set the object: --set '{path}={whole}'"
    ]


def test_error_of_the_file_is_not_reported_at_an_override(get_error_lines, small_spec):
    small_spec["train"]["epochs"] = "two"
    locations = [line.partition(": ")[0] for line in get_error_lines("train.steps=x", name="with space/spec.json")]
    assert "--set train.steps=x" in locations
    (file_location,) = set(locations) - {"--set train.steps=x"}
    assert file_location.startswith("spec.json:")
    assert file_location.endswith(":5 train.epochs")


def test_invalid_override_is_reported_when_the_file_path_has_a_space(get_error_lines):
    (line,) = get_error_lines("train.epochs=two", name="with space/spec.json")
    assert line.startswith("--set train.epochs=two: train.epochs: ")


def test_location_is_the_override_that_set_the_key_or_else_the_file(schema, write, small_spec):
    file = write(small_spec)
    spec = load_spec(file, schema, ["evaluate.desk.source=desk", "train.epochs=2"])
    assert spec.where(("evaluate", "desk", "source")) == "--set evaluate.desk.source=desk"
    assert spec.where(("evaluate", "chat", "source")).startswith(f"{file}:")
    assert spec.where(("evaluate", "chat", "source")).endswith(" evaluate.chat.source")


# -- paths ------------------------------------------------------------------------------------------------------------


def test_path_is_relative_to_the_folder_of_the_spec(schema, write, small_spec, tmp_path, monkeypatch):
    file = write(small_spec, "deep/spec.json")
    monkeypatch.chdir(tmp_path)
    for spec_file in (file, "deep/spec.json"):
        path = load_spec(spec_file, schema).document["sources"]["desk"]["lines"]["path"]
        assert path == str((tmp_path / "deep" / "desk.txt").resolve())


@pytest.mark.parametrize("path", ["/data/desk.txt", "hf://data/desk.txt", "https://example.org/desk.txt"])
def test_absolute_path_and_url_are_unchanged(schema, write, small_spec, path):
    small_spec["sources"]["desk"]["lines"]["path"] = path
    assert load_spec(write(small_spec), schema).document["sources"]["desk"]["lines"]["path"] == path


def test_tilde_is_the_home_folder(schema, write, small_spec, monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    small_spec["sources"]["desk"]["lines"]["path"] = "~/desk.txt"
    assert load_spec(write(small_spec), schema).document["sources"]["desk"]["lines"]["path"] == "/somewhere/desk.txt"


def test_tilde_with_an_unknown_user_is_a_file_in_the_folder_of_the_spec(schema, write, small_spec):
    small_spec["sources"]["desk"]["lines"]["path"] = "~no-such-user/x"
    path = load_spec(write(small_spec), schema).document["sources"]["desk"]["lines"]["path"]
    assert path.endswith("/~no-such-user/x")


@pytest.mark.parametrize("path", ["org/model", "pypi:some-package==1.0/model.gguf#sha256=00"])
def test_model_name_without_a_local_file_is_unchanged(schema, write, small_spec, path):
    small_spec["model"]["path"] = path
    assert load_spec(write(small_spec), schema).document["model"]["path"] == path


def test_model_in_the_folder_of_the_spec_is_resolved(schema, write, small_spec, tmp_path):
    (tmp_path / "org" / "model").mkdir(parents=True)
    path = load_spec(write(small_spec), schema).document["model"]["path"]
    assert Path(path) == (tmp_path / "org" / "model").resolve()


@pytest.mark.parametrize("path", ["./gone", "../gone/model.gguf"])
def test_model_written_as_a_path_is_resolved_when_the_file_is_missing(schema, write, small_spec, tmp_path, path):
    small_spec["model"]["path"] = path
    model_path = load_spec(write(small_spec), schema).document["model"]["path"]
    assert Path(model_path) == (tmp_path / path).resolve()


# -- plugins ----------------------------------------------------------------------------------------------------------


def test_broken_plugin_is_reported_only_when_the_spec_needs_a_missing_component(schema, write, small_spec):
    broken = [BrokenPlugin("acme", "acme_harness", "ImportError: no acme")]
    assert load_spec(write(small_spec), schema, broken_plugins=broken).document["name"] == "small"
    with pytest.raises(HarnessError) as caught:
        load_spec(write(small_spec), schema, ["template=acme"], broken)
    assert caught.value.lines() == [
        "--set template=acme: template: no plugin provides 'acme'; installed: plain, tokenizer; "
        "a plugin that may provide it failed to load: acme (acme_harness): ImportError: no acme"
    ]
