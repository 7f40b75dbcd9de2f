"""One strict schema is composed of the core and the plugins, and its errors are sentences."""

from __future__ import annotations

import copy
import json

import jsonschema
import pytest

from harness.interfaces.component import Component
from harness.registry import BrokenPlugin
from harness.spec.json_locations import parse_json
from harness.spec.schema import compose_schema, expand_shorthand, fill_defaults, find_schema_errors, iter_leaves
from harness.spec_keys import data, run, training


@pytest.fixture
def schema(small_registry):
    return compose_schema(small_registry)


@pytest.fixture
def told(schema):
    """The sentences about a document, as a spec file of two spaces' indent would get them."""

    def told(document, broken=()):
        located = parse_json(json.dumps(document, indent=2), "x.json")
        return [
            str(error)
            for error in find_schema_errors(expand_shorthand(document, schema, schema), schema, located, broken)
        ]

    return told


def subschemas(schema, path=()):
    yield path, schema
    for word in ("properties", "definitions"):
        for key, inner in schema.get(word, {}).items():
            yield from subschemas(inner, (*path, key))
    for word in ("additionalProperties", "items"):
        if isinstance(schema.get(word), dict):
            yield from subschemas(schema[word], (*path, word))


# -- composition ------------------------------------------------------------------------------------------------------


def test_the_schema_is_valid_draft_07(schema):
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    jsonschema.Draft7Validator.check_schema(schema)


def test_every_object_of_the_schema_refuses_unknown_keys(schema):
    objects = [(path, inner) for path, inner in subschemas(schema) if "properties" in inner]
    assert len(objects) > 15
    assert [path for path, inner in objects if inner.get("additionalProperties") is not False] == []


def test_every_key_of_the_schema_has_a_description(schema):
    keys = {path: key for _, one in subschemas(schema) for path, key in one.get("properties", {}).items()}
    assert len(keys) > 50
    assert [path for path, key in keys.items() if not key.get("description") and "$ref" not in key] == []


def test_every_default_of_the_schema_satisfies_its_own_key(schema):
    checked = 0
    for path, inner in subschemas(schema):
        if "default" in inner:
            checked += 1
            validator = jsonschema.Draft7Validator({**inner, "definitions": schema["definitions"]})
            assert list(validator.iter_errors(inner["default"])) == [], path
    assert checked > 30


def test_every_component_of_the_registry_is_in_the_schema(schema, small_registry):
    properties = schema["properties"]
    slots = {
        "templates": properties["template"],
        "sources": properties["sources"]["additionalProperties"],
        "modes": properties["mode"],
        "mitigations": properties["mitigations"],
        "metrics": properties["evaluate"]["additionalProperties"]["properties"]["metrics"],
    }
    assert {kind: set(slot["properties"]) for kind, slot in slots.items()} == {
        kind: set(components) for kind, components in small_registry.components.items()
    }


def test_a_source_has_the_cores_row_options_beside_its_own(schema):
    lines = schema["properties"]["sources"]["additionalProperties"]["properties"]["lines"]
    assert set(lines["properties"]) == {"path", *data.SOURCE_KEYS}
    assert lines["required"] == ["path"]


def test_a_stage_may_override_every_training_setting_but_the_precision_and_fills_in_none(schema):
    overrides = schema["definitions"]["train_overrides"]["properties"]
    assert set(overrides) == set(training.TRAIN_KEYS) - {"precision"}
    assert not [key for key, option in overrides.items() if "default" in option]


# -- bare strings and defaults ----------------------------------------------------------------------------------------


def test_a_bare_string_stands_for_a_component_without_options(schema, small_spec):
    small_spec["mitigations"] = "mixing"
    small_spec["evaluate"]["desk"]["metrics"] = "length"
    expanded = expand_shorthand(small_spec, schema, schema)
    assert expanded["template"] == {"plain": {}}
    assert expanded["mitigations"] == {"mixing": {}}
    assert expanded["evaluate"]["desk"]["metrics"] == {"length": {}}
    assert expanded["name"] == "small"


def test_expanding_and_filling_leave_the_given_document_as_it_is(schema, small_spec):
    before = copy.deepcopy(small_spec)
    fill_defaults(expand_shorthand(small_spec, schema, schema), schema, schema)
    assert small_spec == before


def test_filling_writes_in_every_default_and_keeps_what_is_given(schema, small_spec):
    filled = fill_defaults(expand_shorthand(small_spec, schema, schema), schema, schema)
    assert filled["seed"] == 0
    assert filled["train"] == {**{key: o["default"] for key, o in training.TRAIN_KEYS.items()}, "max_length": 2048}
    mixing = {"share": 0.1, "unit": "loss_tokens", "source": None, "weights": None, "temperature": None}
    assert filled["mitigations"] == {"mixing": {**mixing, "upsample": False, "resample": False}}
    assert filled["sources"]["desk"]["lines"]["held_out"] == 0
    assert filled["evaluate"]["desk"]["metrics"] == {"overlap": {"size": 4}}
    assert filled["evaluate"]["chat"]["role"] == "general"
    assert filled["track"] == {key: option["default"] for key, option in run.TRACK_KEYS.items()}


def test_a_template_and_no_mitigations_are_chosen_where_none_are_given(schema, small_spec):
    del small_spec["template"], small_spec["mitigations"]
    filled = fill_defaults(expand_shorthand(small_spec, schema, schema), schema, schema)
    assert filled["template"] == {"tokenizer": {}}
    assert filled["mitigations"] == {}


def test_filling_twice_changes_nothing_and_the_filled_document_is_valid(schema, small_spec):
    filled = fill_defaults(expand_shorthand(small_spec, schema, schema), schema, schema)
    assert fill_defaults(expand_shorthand(filled, schema, schema), schema, schema) == filled
    jsonschema.validate(filled, schema)


def test_two_filled_documents_share_no_default(schema, small_spec):
    first, second = (fill_defaults(expand_shorthand(small_spec, schema, schema), schema, schema) for _ in range(2))
    first["sources"]["desk"]["lines"]["columns"]["x"] = "y"
    assert second["sources"]["desk"]["lines"]["columns"] == {}
    assert first["sources"]["chat"]["lines"]["columns"] == {}


def test_a_stages_own_settings_are_not_filled_with_defaults(schema, small_spec):
    stage = {"name": "one", "domain": ["desk"], "train": {"epochs": 2}}
    small_spec["mode"] = {"continual": {"stages": [stage]}}
    assert fill_defaults(small_spec, schema, schema)["mode"] == {"continual": {"stages": [stage]}}


def test_a_whole_number_with_a_point_becomes_an_integer_where_an_integer_is_asked_for(schema, small_spec):
    small_spec["train"] = {"batch_size": 4.0, "steps": 1e3, "epochs": 2.0}
    train = fill_defaults(small_spec, schema, schema)["train"]
    assert [(train[key], type(train[key])) for key in ("batch_size", "steps", "epochs")] == [
        (4, int),
        (1000, int),
        (2.0, float),
    ]


def test_leaves_find_every_name_of_a_source(schema, small_spec):
    found = {".".join(map(str, path)): value for path, leaf, value in iter_leaves(small_spec, schema, schema)
             if leaf.get("format") == "source"}  # fmt: skip
    assert found == {
        "mode.mixed.domain.0": "desk",
        "mode.mixed.general.0": "chat",
        "evaluate.desk.source": "desk_heldout",
        "evaluate.chat.source": "chat_heldout",
    }


# -- errors in sentences ----------------------------------------------------------------------------------------------


def put(key, value):
    def change(spec):
        *way, last = key.split("/")
        node = spec
        for step in way:
            node = node[int(step) if isinstance(node, list) else step]
        node[last] = value

    return change


SENTENCES = {
    "unknown key": (
        put("train/lerning_rate", 1),
        '"lerning_rate": 1',
        "train: unknown key 'lerning_rate'; did you mean 'learning_rate'?",
    ),
    "unknown key far from all": (
        put("model/xyz", 1),
        '"xyz": 1',
        "model: unknown key 'xyz'; known: attention, path, revision, trust_remote_code",
    ),
    "unknown key of a component without options": (
        put("template", {"plain": {"x": 1}}),
        '"x": 1',
        "template.plain: unknown key 'x'; known: none",
    ),
    "unknown component": (
        put("mitigations", {"mixin": {}}),
        '"mixin": {',
        "mitigations: no plugin provides 'mixin'; did you mean 'mixing'?",
    ),
    "unknown component as a bare string": (
        put("template", "plane"),
        '"template": "plane"',
        "template: no plugin provides 'plane'; did you mean 'plain'?",
    ),
    "unknown option of a component": (
        put("evaluate/desk/metrics", {"overlap": {"sise": 3}}),
        '"sise": 3',
        "evaluate.desk.metrics.overlap: unknown key 'sise'; did you mean 'size'?",
    ),
    "wrong type": (
        put("train/epochs", "two"),
        '"epochs": "two"',
        'train.epochs: "two" is not a number; write a number: passes over the stage\'s mixture',
    ),
    "true is not a number": (
        put("train/epochs", True),
        '"epochs": true',
        "train.epochs: true is not a number; write a number: passes over the stage's mixture",
    ),
    "neither of two types": (
        put("train/steps", "x"),
        '"steps": "x"',
        'train.steps: "x" is not an integer or null; write an integer or null: number of optimizer steps; '
        "replaces epochs",
    ),
    "a fraction where an integer is asked for": (
        put("train/batch_size", 8.5),
        '"batch_size": 8.5',
        "train.batch_size: 8.5 is not an integer; write an integer: rows (or packs) in one forward pass on one device",
    ),
    "out of range below": (
        put("train/learning_rate", 0),
        '"learning_rate": 0',
        "train.learning_rate: 0 is out of range; it must be above 0",
    ),
    "out of range above": (
        put("mitigations/mixing/share", 1),
        '"share": 1',
        "mitigations.mixing.share: 1 is out of range; it must be below 1",
    ),
    "not one of the choices": (
        put("train/scheduler", "cosin"),
        '"scheduler": "cosin"',
        'train.scheduler: "cosin" is not one of: "cosine", "linear", "constant", "constant_with_warmup"; '
        "did you mean 'cosine'?",
    ),
    "nothing chosen": (
        put("mode", {}),
        '"mode": {}',
        "mode: nothing is given; choose one of: continual, domain, general, mixed",
    ),
    "two chosen": (
        put("template", {"plain": {}, "tokenizer": {}}),
        '"template": {',
        "template: 2 are given, but only one is allowed; choose one of: plain, tokenizer",
    ),
    "no source": (put("sources", {}), '"sources": {}', "sources: nothing is given; add at least one"),
    "an empty list": (
        put("mode/mixed/domain", []),
        '"domain": []',
        "mode.mixed.domain: the list is empty; name at least one",
    ),
    "a name with a space": (
        put("name", "my run"),
        '"name": "my run"',
        'name: "my run" is not a valid name; use letters, digits, dot, dash and underscore',
    ),
    "a source's name with a slash": (
        put("sources", {"a/b": {"lines": {"path": "x"}}}),
        '"sources": {',
        'sources: "a/b" is not a valid name; use letters, digits, dot, dash and underscore',
    ),
    "a missing option": (
        put("mitigations", {"keep": {}}),
        '"keep": {}',
        "mitigations.keep: the key 'source' is missing; add it: whose rows are kept",
    ),
    "a stage without sources": (
        put("mode", {"continual": {"stages": [{"name": "one"}]}}),
        "{",
        "mode.continual.stages.0: one of the keys 'domain' or 'general' is missing; add it",
    ),
    "an unknown setting of a stage": (
        put("mode", {"continual": {"stages": [{"name": "one", "domain": ["desk"], "train": {"epoch": 1}}]}}),
        '"epoch": 1',
        "mode.continual.stages.0.train: unknown key 'epoch'; did you mean 'epochs'?",
    ),
}


@pytest.mark.parametrize("kind", SENTENCES)
def test_what_is_wrong_is_one_sentence_with_place_and_remedy(told, small_spec, kind):
    change, at, sentence = SENTENCES[kind]
    assert told(small_spec) == []
    change(small_spec)
    (line,) = told(small_spec)
    place, _, said = line.partition(" ")
    assert said == sentence
    file, row, column = place.split(":")
    assert file == "x.json"
    assert json.dumps(small_spec, indent=2).splitlines()[int(row) - 1][int(column) - 1 :].startswith(at)


def test_every_missing_key_is_named_once(told, small_spec):
    del small_spec["model"], small_spec["mode"]
    assert [line.split(";")[0] for line in told(small_spec)] == [
        "x.json:1:1 spec: the key 'model' is missing",
        "x.json:1:1 spec: the key 'mode' is missing",
    ]


def test_all_that_is_wrong_is_told_at_once_in_the_order_of_the_file(told, small_spec):
    small_spec["evaluate"]["chat"]["role"] = "genral"
    small_spec["sed"] = 1
    small_spec["model"]["path"] = 7
    small_spec["template"] = "plane"
    places = [line.split()[0] for line in told(small_spec)]
    assert len(places) == 4
    assert places == sorted(places, key=lambda place: int(place.split(":")[1]))


def test_errors_of_one_line_are_in_the_order_of_its_columns(schema, small_spec):
    small_spec["train"] = {"wrong": 1, "epochs": "x"}
    located = parse_json(json.dumps(small_spec), "odd:name.json")
    found = [str(error) for error in find_schema_errors(expand_shorthand(small_spec, schema, schema), schema, located)]
    assert ["wrong" in line for line in found] == [True, False]


def test_a_missing_component_names_the_plugins_that_do_not_load(told, small_spec):
    small_spec["template"] = "acme"
    (line,) = told(small_spec, [BrokenPlugin("acme", "acme_harness", "ImportError: no torch")])
    assert line == (
        "x.json:6:3 template: no plugin provides 'acme'; installed: plain, tokenizer; "
        "a plugin that may provide it failed to load: acme (acme_harness): ImportError: no torch"
    )


def test_a_broken_plugin_is_no_matter_when_the_document_does_not_need_it(told, small_spec):
    assert told(small_spec, [BrokenPlugin("acme", "acme_harness", "ImportError: no torch")]) == []


def test_what_a_plugins_own_pattern_or_list_asks_is_told_in_its_words(small_registry, small_spec):
    options = {
        "code": {"type": "string", "pattern": "^[0-9]+$", "description": "A code."},
        "pair": {"type": "array", "minItems": 2, "description": "Two things."},
    }
    small_registry.add("metrics", "odd", Component("Odd.", "a:b", options, ("code", "pair")), "acme")
    schema = compose_schema(small_registry)
    small_spec["evaluate"]["desk"]["metrics"] = {"odd": {"code": "x", "pair": [1]}}
    located = parse_json(json.dumps(small_spec), "x.json")
    first, second = sorted(error.what for error in find_schema_errors(small_spec, schema, located))
    assert "does not match '^[0-9]+$'" in first
    assert "too short" in second
