"""The core and the plugins compose one strict schema; each schema error is one sentence."""

from __future__ import annotations

import copy
import json

import jsonschema
import pytest

from harness.interfaces.component import Component
from harness.registry import RESERVED_NAMES, BrokenPlugin
from harness.spec.json_locations import parse_json
from harness.spec.schema import compose_schema, expand_shorthand, fill_defaults, iter_leaves, remove_defaults
from harness.spec.schema_errors import find_schema_errors
from harness.spec_keys import data, training


@pytest.fixture
def schema(small_registry):
    return compose_schema(small_registry)


@pytest.fixture
def get_error_lines(schema):
    """Return the schema errors of a document, with locations in a file that is indented by two spaces."""

    def get_error_lines(document, broken_plugins=()):
        located = parse_json(json.dumps(document, indent=2), "x.json")
        return [
            str(error)
            for error in find_schema_errors(expand_shorthand(document, schema, schema), schema, located, broken_plugins)
        ]

    return get_error_lines


def iter_subschemas(schema, path=()):
    yield path, schema
    for word in ("properties", "definitions"):
        for key, inner in schema.get(word, {}).items():
            yield from iter_subschemas(inner, (*path, key))
    for word in ("additionalProperties", "items"):
        if isinstance(schema.get(word), dict):
            yield from iter_subschemas(schema[word], (*path, word))


# -- composition ------------------------------------------------------------------------------------------------------


def test_schema_is_valid_draft_07(schema):
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    jsonschema.Draft7Validator.check_schema(schema)


def test_every_object_of_the_schema_rejects_unknown_keys(schema):
    objects = [(path, inner) for path, inner in iter_subschemas(schema) if "properties" in inner]
    assert len(objects) > 15
    assert [path for path, inner in objects if inner.get("additionalProperties") is not False] == []


def test_every_key_of_the_schema_has_a_description(schema):
    keys = {path: key for _, inner in iter_subschemas(schema) for path, key in inner.get("properties", {}).items()}
    assert len(keys) > 50
    assert [path for path, key in keys.items() if not key.get("description") and "$ref" not in key] == []


def test_every_default_of_the_schema_satisfies_its_own_key(schema):
    defaults_checked = 0
    for path, inner in iter_subschemas(schema):
        if "default" in inner:
            defaults_checked += 1
            validator = jsonschema.Draft7Validator({**inner, "definitions": schema["definitions"]})
            assert list(validator.iter_errors(inner["default"])) == [], path
    assert defaults_checked > 30


def test_every_component_of_the_registry_is_in_the_schema(schema, small_registry):
    properties = schema["properties"]
    slots = {
        "templates": properties["template"],
        "sources": properties["sources"]["additionalProperties"],
        "modes": properties["mode"],
        "mitigations": properties["mitigations"],
        "metrics": properties["evaluate"]["additionalProperties"]["properties"]["metrics"],
        "optimizers": properties["train"]["properties"]["optimizer"],
        "schedulers": properties["train"]["properties"]["scheduler"],
        "row_formats": properties["sources"]["additionalProperties"]["properties"]["lines"]["properties"]["form"],
        "checks": properties["checks"],
        "trackers": properties["track"],
    }
    assert {kind: set(slot["properties"]) - RESERVED_NAMES.get(kind, {}).keys() for kind, slot in slots.items()} == {
        kind: {*components, *small_registry.aliases(kind)}
        for kind, components in small_registry.components.items()
        if kind != "exporters"
    }


def test_source_has_its_own_options_and_the_row_options_of_the_core(schema):
    lines = schema["properties"]["sources"]["additionalProperties"]["properties"]["lines"]
    assert set(lines["properties"]) == {"path", *data.SOURCE_KEYS}
    assert lines["required"] == ["path"]


def test_stage_may_override_every_training_setting_except_precision_and_has_no_defaults(schema):
    overrides = schema["definitions"]["train_overrides"]["properties"]
    assert set(overrides) == {*training.TRAIN_KEYS, *training.TRAIN_COMPONENTS} - {*training.TRAIN_KEYS_OF_RUN}
    assert not [key for key, option in overrides.items() if "default" in option]


# -- bare strings and defaults ----------------------------------------------------------------------------------------


def test_bare_string_means_a_component_without_options(schema, small_spec):
    small_spec["mitigations"] = "mixing"
    small_spec["evaluate"]["desk"]["metrics"] = "length"
    expanded = expand_shorthand(small_spec, schema, schema)
    assert expanded["template"] == {"plain": {}}
    assert expanded["mitigations"] == {"mixing": {}}
    assert expanded["evaluate"]["desk"]["metrics"] == {"length": {}}
    assert expanded["name"] == "small"


def test_expanding_and_filling_do_not_change_the_input_document(schema, small_spec):
    before = copy.deepcopy(small_spec)
    fill_defaults(expand_shorthand(small_spec, schema, schema), schema, schema)
    assert small_spec == before


def test_filling_adds_every_default_and_keeps_values_of_the_spec(schema, small_spec):
    filled = fill_defaults(expand_shorthand(small_spec, schema, schema), schema, schema)
    assert filled["seed"] == 0
    options = training.TRAIN_KEYS | training.TRAIN_COMPONENTS
    assert filled["train"] == {**{key: option["default"] for key, option in options.items()}, "max_length": 2048}
    mixing = {"share": 0.1, "unit": "loss_tokens", "source": None, "weights": None, "temperature": None}
    defaults = {"upsample": False, "resample": False, "answers": "data"}
    assert filled["mitigations"]["mixing"].items() >= {**mixing, **defaults}.items()
    assert filled["mitigations"]["mixing"]["writing"]["temperature"] == 1.0
    assert filled["sources"]["desk"]["lines"]["held_out"] == 0
    assert filled["evaluate"]["desk"]["metrics"] == {"overlap": {"size": 4}}
    assert filled["evaluate"]["chat"]["role"] == "general"
    assert filled["track"] == {"enabled": True, "mlflow": MLFLOW_DEFAULTS}


MLFLOW_DEFAULTS = {"experiment": None, "uri": None, "system_metrics": True, "model": "none", "register": None}


@pytest.mark.parametrize(
    ("track", "trackers", "changed"),
    [
        ({"enabled": False}, {"mlflow": MLFLOW_DEFAULTS}, {"enabled": False}),
        ({"mlflow": {"uri": "x"}}, {"mlflow": {**MLFLOW_DEFAULTS, "uri": "x"}}, {"mlflow": {"uri": "x"}}),
        ({"mlflow": {}}, {"mlflow": MLFLOW_DEFAULTS}, None),
        ({"tensorboard": {}}, {"tensorboard": {"folder": None}}, {"tensorboard": {}}),
        (
            {"harness-sft/mlflow": {}, "tensorboard": {"folder": "t"}},
            {"mlflow": MLFLOW_DEFAULTS, "tensorboard": {"folder": "t"}},
            {"mlflow": {}, "tensorboard": {"folder": "t"}},
        ),
    ],
)
def test_mlflow_is_the_tracker_of_a_spec_that_names_none(schema, small_spec, track, trackers, changed):
    small_spec["track"] = track
    filled = fill_defaults(expand_shorthand(small_spec, schema, schema), schema, schema)
    assert filled["track"] == {"enabled": track.get("enabled", True), **trackers}
    assert remove_defaults(filled, schema, schema).get("track") == changed


@pytest.mark.parametrize("key", ["uri", "experiment", "model", "register", "system_metrics"])
def test_an_option_of_mlflow_in_track_itself_is_an_error_that_shows_its_place(get_error_lines, small_spec, key):
    small_spec["track"] = {key: "files"}
    (line,) = get_error_lines(small_spec)
    assert line.endswith(f"track: unknown key {key!r}; write it as track.mlflow.{key}")


def test_default_is_the_tokenizer_template_without_mitigations(schema, small_spec):
    del small_spec["template"], small_spec["mitigations"]
    filled = fill_defaults(expand_shorthand(small_spec, schema, schema), schema, schema)
    assert filled["template"] == {"tokenizer": {}}
    assert filled["mitigations"] == {}


def test_filling_twice_changes_nothing_and_the_filled_document_is_valid(schema, small_spec):
    filled = fill_defaults(expand_shorthand(small_spec, schema, schema), schema, schema)
    assert fill_defaults(expand_shorthand(filled, schema, schema), schema, schema) == filled
    jsonschema.validate(filled, schema)


def test_filled_documents_do_not_share_default_objects(schema, small_spec):
    first, second = (fill_defaults(expand_shorthand(small_spec, schema, schema), schema, schema) for _ in range(2))
    first["sources"]["desk"]["lines"]["columns"]["x"] = "y"
    assert second["sources"]["desk"]["lines"]["columns"] == {}
    assert first["sources"]["chat"]["lines"]["columns"] == {}


def test_settings_of_a_stage_are_not_filled_with_defaults(schema, small_spec):
    stage = {"name": "one", "domain": ["desk"], "train": {"epochs": 2}}
    small_spec["mode"] = {"continual": {"stages": [stage]}}
    assert fill_defaults(small_spec, schema, schema)["mode"] == {"continual": {"stages": [stage]}}


def test_whole_float_becomes_an_integer_where_the_schema_asks_for_an_integer(schema, small_spec):
    small_spec["train"] = {"batch_size": 4.0, "steps": 1e3, "epochs": 2.0}
    train = fill_defaults(small_spec, schema, schema)["train"]
    assert [(train[key], type(train[key])) for key in ("batch_size", "steps", "epochs")] == [
        (4, int),
        (1000, int),
        (2.0, float),
    ]


def test_leaves_include_every_source_name(schema, small_spec):
    source_names = {".".join(map(str, path)): value for path, leaf, value in iter_leaves(small_spec, schema, schema)
             if leaf.get("format") == "source"}  # fmt: skip
    assert source_names == {
        "mode.mixed.domain.0": "desk",
        "mode.mixed.general.0": "chat",
        "evaluate.desk.source": "desk_heldout",
        "evaluate.chat.source": "chat_heldout",
    }


# -- errors in sentences ----------------------------------------------------------------------------------------------


def set_key(key, value):
    def change(spec):
        *parents, last = key.split("/")
        node = spec
        for step in parents:
            node = node[int(step) if isinstance(node, list) else step]
        node[last] = value

    return change


SENTENCES = {
    "unknown key": (
        set_key("train/lerning_rate", 1),
        '"lerning_rate": 1',
        "train: unknown key 'lerning_rate'; did you mean 'learning_rate'?",
    ),
    "unknown key far from all": (
        set_key("model/xyz", 1),
        '"xyz": 1',
        "model: unknown key 'xyz'; known: add_special_tokens, add_tokens, attention, dequantize, pad_token, path, "
        "quantization, revision, trust_remote_code",
    ),
    "key of another tool": (
        set_key("train/per_device_train_batch_size", 4),
        '"per_device_train_batch_size": 4',
        "train: unknown key 'per_device_train_batch_size'; did you mean 'batch_size'?",
    ),
    "key of another tool in another place": (
        set_key("model/lr", 1e-4),
        '"lr": 0.0001',
        "model: unknown key 'lr'; write it as train.learning_rate",
    ),
    "key in the wrong place": (
        set_key("model/learning_rate", 1e-4),
        '"learning_rate": 0.0001',
        "model: unknown key 'learning_rate'; 'learning_rate' is a key of train: move it there",
    ),
    "unknown key of a component without options": (
        set_key("template", {"plain": {"x": 1}}),
        '"x": 1',
        "template.plain: unknown key 'x'; known: none",
    ),
    "unknown component": (
        set_key("mitigations", {"mixin": {}}),
        '"mixin": {',
        "mitigations: no plugin provides 'mixin'; did you mean 'mixing'?",
    ),
    "unknown component as a bare string": (
        set_key("template", "plane"),
        '"template": "plane"',
        "template: no plugin provides 'plane'; did you mean 'plain'?",
    ),
    "unknown option of a component": (
        set_key("evaluate/desk/metrics", {"overlap": {"sise": 3}}),
        '"sise": 3',
        "evaluate.desk.metrics.overlap: unknown key 'sise'; did you mean 'size'?",
    ),
    "wrong type": (
        set_key("train/epochs", "two"),
        '"epochs": "two"',
        'train.epochs: "two" is not a number; write a number: passes over the stage\'s mixture',
    ),
    "true is not a number": (
        set_key("train/epochs", True),
        '"epochs": true',
        "train.epochs: true is not a number; write a number: passes over the stage's mixture",
    ),
    "neither of two types": (
        set_key("train/steps", "x"),
        '"steps": "x"',
        'train.steps: "x" is not an integer or null; write an integer or null, e.g. 200: number of optimizer steps; '
        "replaces epochs",
    ),
    "a fraction where an integer is asked for": (
        set_key("train/batch_size", 8.5),
        '"batch_size": 8.5',
        "train.batch_size: 8.5 is not an integer; write an integer: rows (or packs) in one forward pass on one device",
    ),
    "out of range below": (
        set_key("train/learning_rate", 0),
        '"learning_rate": 0',
        "train.learning_rate: 0 is out of range; it must be above 0",
    ),
    "out of range above": (
        set_key("mitigations/mixing/share", 1),
        '"share": 1',
        "mitigations.mixing.share: 1 is out of range; it must be below 1",
    ),
    "not one of the choices": (
        set_key("train/engine", "trll"),
        '"engine": "trll"',
        """train.engine: "trll" is not one of: "trl", "transformers"; did you mean 'trl'?""",
    ),
    "an unknown schedule": (
        set_key("train/scheduler", "cosin"),
        '"scheduler": "cosin"',
        "train.scheduler: no plugin provides 'cosin'; did you mean 'cosine'?",
    ),
    "nothing chosen": (
        set_key("mode", {}),
        '"mode": {}',
        "mode: nothing is given; choose one of: continual, curriculum, domain, general, mixed",
    ),
    "two chosen": (
        set_key("template", {"plain": {}, "tokenizer": {}}),
        '"template": {',
        "template: 2 are given, but only one is allowed; choose one of: plain, tokenizer",
    ),
    "no source": (set_key("sources", {}), '"sources": {}', "sources: nothing is given; add at least one"),
    "an empty list": (
        set_key("mode/mixed/domain", []),
        '"domain": []',
        "mode.mixed.domain: the list is empty; name at least one",
    ),
    "a name with a space": (
        set_key("name", "my run"),
        '"name": "my run"',
        'name: "my run" is not a valid name; use at most 100 letters, digits, dots, dashes and underscores',
    ),
    "a source's name with a slash": (
        set_key("sources", {"a/b": {"lines": {"path": "x"}}}),
        '"sources": {',
        'sources: "a/b" is not a valid name; use at most 100 letters, digits, dots, dashes and underscores',
    ),
    "a missing option": (
        set_key("mitigations", {"keep": {}}),
        '"keep": {}',
        "mitigations.keep: the key 'source' is missing; add it: whose rows are kept",
    ),
    "a stage without sources": (
        set_key("mode", {"continual": {"stages": [{"name": "one"}]}}),
        "{",
        "mode.continual.stages.0: one of the keys 'domain' or 'general' is missing; add it",
    ),
    "an unknown setting of a stage": (
        set_key("mode", {"continual": {"stages": [{"name": "one", "domain": ["desk"], "train": {"epoch": 1}}]}}),
        '"epoch": 1',
        "mode.continual.stages.0.train: unknown key 'epoch'; did you mean 'epochs'?",
    ),
}


@pytest.mark.parametrize("kind", SENTENCES)
def test_error_is_one_sentence_with_location_and_remedy(get_error_lines, small_spec, kind):
    change, text_at_location, sentence = SENTENCES[kind]
    assert get_error_lines(small_spec) == []
    change(small_spec)
    (line,) = get_error_lines(small_spec)
    location, _, message = line.partition(" ")
    assert message == sentence
    file, row, column = location.split(":")
    assert file == "x.json"
    assert json.dumps(small_spec, indent=2).splitlines()[int(row) - 1][int(column) - 1 :].startswith(text_at_location)


def test_every_missing_key_is_reported_once(get_error_lines, small_spec):
    del small_spec["model"], small_spec["mode"]
    assert [line.split(";")[0] for line in get_error_lines(small_spec)] == [
        "x.json:1:1 spec: the key 'model' is missing",
        "x.json:1:1 spec: the key 'mode' is missing",
    ]


def test_all_errors_are_reported_together_in_file_order(get_error_lines, small_spec):
    small_spec["evaluate"]["chat"]["role"] = "genral"
    small_spec["sed"] = 1
    small_spec["model"]["path"] = 7
    small_spec["template"] = "plane"
    locations = [line.split()[0] for line in get_error_lines(small_spec)]
    assert len(locations) == 4
    assert locations == sorted(locations, key=lambda location: int(location.split(":")[1]))


def test_errors_of_one_line_are_in_column_order(schema, small_spec):
    small_spec["train"] = {"wrong": 1, "epochs": "x"}
    located = parse_json(json.dumps(small_spec), "odd:name.json")
    error_lines = [
        str(error) for error in find_schema_errors(expand_shorthand(small_spec, schema, schema), schema, located)
    ]
    assert ["wrong" in line for line in error_lines] == [True, False]


def test_missing_component_error_names_the_plugins_that_failed_to_load(get_error_lines, small_spec):
    small_spec["template"] = "acme"
    (line,) = get_error_lines(small_spec, [BrokenPlugin("acme", "acme_harness", "ImportError: no torch")])
    assert line == (
        "x.json:6:3 template: no plugin provides 'acme'; installed: plain, tokenizer; "
        "a plugin that may provide it failed to load: acme (acme_harness): ImportError: no torch"
    )


def test_broken_plugin_is_ignored_when_the_document_does_not_need_it(get_error_lines, small_spec):
    assert get_error_lines(small_spec, [BrokenPlugin("acme", "acme_harness", "ImportError: no torch")]) == []


def test_violated_pattern_or_list_length_of_a_plugin_is_reported(small_registry, small_spec):
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


# -- without defaults -------------------------------------------------------------------------------------------------


def test_removing_defaults_is_the_inverse_of_filling_them(schema, small_spec):
    chosen = {**small_spec, "mitigations": {"lora": {}}, "train": {"steps": 7}}
    filled = fill_defaults(expand_shorthand(chosen, schema, schema), schema, schema)
    changed = remove_defaults(filled, schema, schema)
    assert fill_defaults(changed, schema, schema) == filled
    assert changed["train"] == {"steps": 7}
    assert changed["mitigations"] == {"lora": {}}, "a component without options stays"
    assert "seed" not in changed
    assert remove_defaults(changed, schema, schema) == changed
