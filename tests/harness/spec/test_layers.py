"""`extends` and `profiles`: what overrides what, paths, locations of errors, and faults."""

from __future__ import annotations

import json

import pytest

from harness.errors import HarnessError
from harness.spec import schema, spec


@pytest.fixture
def load(small_registry, small_spec, write):
    """A function that writes base.json and another spec, and loads the other one."""
    composed = schema.compose_schema(small_registry)

    def load(document, overrides=(), base=None, name="spec.json"):
        write(base or small_spec, "base.json")
        return spec.load_spec(write(document, name), composed, overrides)

    return load


def test_a_spec_with_extends_is_the_merged_spec(load, small_spec):
    child = {
        "extends": "base.json",
        "train": {"epochs": 3},
        "template": "tokenizer",
        "mitigations": {"mixing": {"share": 0.2}},
    }
    document = load(child).document
    assert document["name"] == "small"
    assert document["train"]["epochs"] == 3
    assert document["train"]["max_length"] == 2048
    assert document["template"] == {"tokenizer": {}}
    assert document["mitigations"]["mixing"]["share"] == 0.2
    assert not {"extends", "profiles", "profile"} & document.keys()
    assert load({"extends": "base.json"}).document == load(small_spec).document


def test_null_removes_an_entry(load):
    removed = {"extends": "base.json", "mitigations": {"mixing": None}, "evaluate": {"chat": None}}
    document = load(removed).document
    assert document["mitigations"] == {}
    assert list(document["evaluate"]) == ["desk"]


def test_the_last_of_several_specs_overrides(load, write):
    write({"extends": "base.json", "seed": 1, "train": {"epochs": 2}}, "one.json")
    write("seed: 2\n", "two.yaml")
    document = load({"extends": ["one.json", "two.yaml"], "name": "child"}).document
    assert (document["seed"], document["train"]["epochs"], document["name"]) == (2, 2, "child")


def test_paths_stay_relative_to_their_file(load, write, small_spec, tmp_path):
    write(small_spec, "shared/base.json")
    document = load({"extends": "shared/base.json", "sources": {"desk": {"lines": {"path": "mine.txt"}}}}).document
    assert document["sources"]["desk"]["lines"]["path"] == str(tmp_path / "mine.txt")
    assert document["sources"]["chat"]["lines"]["path"] == str(tmp_path / "shared" / "chat.txt")


def test_a_profile_is_chosen_by_an_override(load, small_spec):
    document = {**small_spec, "profiles": {"gpu": {"train": {"batch_size": 32}, "template": "tokenizer"}, "cpu": {}}}
    assert load(document).document == load(small_spec).document
    chosen = load(document, ["profile=gpu"]).document
    assert chosen["train"] == {**load(small_spec).document["train"], "batch_size": 32}
    assert chosen["template"] == {"tokenizer": {}}
    assert load(document, ["profile=gpu", "train.batch_size=4"]).document["train"]["batch_size"] == 4
    assert load({**document, "profile": "gpu"}).document == chosen
    assert load({"extends": "base.json"}, ["profile=gpu"], base=document).document == chosen


def test_equal_named_profiles_of_several_files_are_merged(load, write, small_spec, tmp_path):
    base = {
        "train": {"batch_size": 32, "epochs": 5},
        "sources": {"chat": {"lines": {"path": "gpu.txt"}}},
        "mitigations": {"mixing": {"share": 0.3}},
        "template": "tokenizer",
    }
    write({**small_spec, "profiles": {"gpu": base, "cpu": {"seed": 7}}}, "shared/base.json")
    child = {
        "extends": "shared/base.json",
        "profiles": {
            "gpu": {
                "train": {"epochs": 6},
                "sources": {"desk": {"lines": {"path": "mine.txt"}}},
                "mitigations": {"mixing": None},
            }
        },
    }
    document = load(child, ["profile=gpu"]).document
    assert (document["train"]["batch_size"], document["train"]["epochs"]) == (32, 6)
    assert document["template"] == {"tokenizer": {}}
    assert document["mitigations"] == {}, "null removes what the spec has, also if a profile of the base changes it"
    assert document["sources"]["desk"]["lines"]["path"] == str(tmp_path / "mine.txt")
    assert document["sources"]["chat"]["lines"]["path"] == str(tmp_path / "shared" / "gpu.txt")
    assert load(child, ["profile=cpu"]).document["seed"] == 7


def test_a_run_is_searched_relative_to_the_file_that_names_it(load, write, small_spec, tmp_path):
    write({**small_spec, "model": {"path": "run:./old"}, "profiles": {"p": {}}}, "shared/base.json")
    path = load({"extends": "shared/base.json"}, ["profile=p"]).document["model"]["path"]
    assert path == f"run:{tmp_path / 'shared' / 'old'}"


def where(load, document, **options):
    with pytest.raises(HarnessError) as error:
        load(document, **options)
    (line,) = error.value.lines()
    return line


def test_an_error_names_the_file_in_which_the_value_is(load, small_spec, tmp_path):
    base = {**small_spec, "train": {"epochs": "many"}}
    line_number = json.dumps(base, indent=2).splitlines().index('    "epochs": "many"') + 1
    assert f"base.json:{line_number}:5 train.epochs" in where(load, {"extends": "base.json", "seed": 1}, base=base)
    child = {"extends": "base.json", "train": {"epohcs": 1}}
    assert where(load, child).startswith(f"{tmp_path}/spec.json:4:5 train: unknown key 'epohcs'")
    document = {**small_spec, "profile": "gpu", "profiles": {"gpu": {"train": {"epohcs": 1}}}}
    line = next(n for n, text in enumerate(json.dumps(document, indent=2).splitlines(), 1) if "epohcs" in text)
    assert f"spec.json:{line}:" in where(load, document)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"extends": "none.json"}, "none.json: the file does not exist"),
        ({"extends": "spec.json"}, "spec.json:2:3 extends: spec.json extends this file again; remove one of the two"),
        ({"extends": 3}, "spec.json:2:3 extends: is neither a path nor a list of paths"),
        ({"extends": []}, "extends: is neither a path nor a list of paths"),
        ({"extends": "base.json", "profile": "gup", "profiles": {"gpu": {}}}, "no profile 'gup'; did you mean 'gpu'?"),
        ({"extends": "base.json", "profile": "gpu"}, "there is no profile 'gpu'; the profiles are: none"),
        ({"extends": "base.json", "profiles": {"gpu": 3}}, "profiles: is not an object of objects"),
    ],
)
def test_faults_are_one_line(load, document, message):
    assert message in where(load, document)
