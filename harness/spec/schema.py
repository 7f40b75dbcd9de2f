"""Compose the JSON Schema of specs from the core and every plugin, and phrase its errors as sentences.

The schema is draft-07, since editors support 2020-12 only in part. A component is tagged by its key,
`{"ewc": {"strength": 1}}`: composition is a union of `properties`, and an error names the exact key. A bare string is
a component without options.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import jsonschema
from jsonschema.exceptions import ValidationError

from harness.errors import HarnessError
from harness.interfaces.component import Component
from harness.registry import BrokenPlugin, Registry
from harness.spec.json_locations import JsonPath, LocatedJson
from harness.spec_keys import data, evaluation, run, training

Schema = dict[str, Any]


def compose_schema(registry: Registry) -> Schema:
    """Compose the schema of specs from the core's keys and the options of every component of the registry."""
    components = registry.components
    sources = {
        name: _component_schema(component, data.SOURCE_KEYS)
        for name, component in sorted(components["sources"].items())
    }
    metrics = _component_choice_schema(components["metrics"], "Metrics of the suite: name -> options.", many=True)
    suite_template = _nullable_schema(
        _component_choice_schema(components["templates"], "The suite's own template. null: the template of training.")
    )
    properties = {**evaluation.SUITE_KEYS, "template": suite_template, "metrics": {**metrics, "minProperties": 1}}
    suite = _object_schema(properties, ("source", "metrics"))
    near = _object_schema(data.NEAR_DUPLICATES_KEYS, (), "Near-duplicates among training rows. null: not searched.")
    contamination = _object_schema(
        data.CONTAMINATION_KEYS, (), "Held-out rows that overlap with training rows. null: not searched."
    )
    checks = {
        "near_duplicates": {**_nullable_schema(near), "default": {}},
        "contamination": {**_nullable_schema(contamination), "default": {}},
        **data.CHECKS_KEYS,
    }
    overrides = {key: _without_default(option) for key, option in training.TRAIN_KEYS.items() if key != "precision"}
    properties = {
        **run.TOP_LEVEL_KEYS,
        "model": _object_schema(training.MODEL_KEYS, ("path",), "The model to start from."),
        "template": {
            **_component_choice_schema(components["templates"], "How conversations are rendered as text."),
            "default": {"tokenizer": {}},
        },
        "sources": {
            "type": "object",
            "minProperties": 1,
            "propertyNames": {"pattern": evaluation.NAME_PATTERN},
            "additionalProperties": _tagged_union_schema(sources, "One source, tagged by its type."),
            "description": "Your name for a source -> the source of its rows.",
        },
        "mode": _component_choice_schema(components["modes"], "How the sources are arranged as training stages."),
        "mitigations": {
            **_component_choice_schema(
                components["mitigations"], "Forgetting mitigations: name -> options. They compose.", many=True
            ),
            "default": {},
        },
        "train": _object_schema(training.TRAIN_KEYS, (), "Training settings.", default={}),
        "evaluate": {
            "type": "object",
            "propertyNames": {"pattern": evaluation.NAME_PATTERN},
            "additionalProperties": suite,
            "default": {},
            "description": "Your name for a suite -> held-out rows and metrics, evaluated before and after every "
            "stage.",
        },
        "gate": {
            "type": "array",
            "items": _object_schema(evaluation.GATE_KEYS, ("score",), evaluation.GATE_DESCRIPTION),
            "default": [],
            "description": "Conditions that the run must meet. If one fails, the exit code is 3.",
        },
        "arms": {
            **_object_schema(run.ARMS_KEYS, (), "Variants of this spec, each run and compared with the others."),
            "type": ["object", "null"],
            "default": None,
        },
        "checks": _object_schema(checks, (), "Data checks that must pass before the model is loaded.", default={}),
        "track": _object_schema(run.TRACK_KEYS, (), "Where and how the run is tracked.", default={}),
    }
    schema = _object_schema(properties, ("name", "model", "sources", "mode"), "A run of harness.")
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "harness spec",
        **schema,
        "definitions": {
            "train_overrides": _object_schema(overrides, (), "Settings of this stage that override `train`."),
            "mitigation_overrides": _override_schema(components["mitigations"]),
        },
    }


def _object_schema(
    properties: Mapping[str, Any], required: tuple[str, ...], description: str = "", **more: Any
) -> Schema:
    schema: Schema = {
        "type": "object",
        "properties": dict(properties),
        "required": list(required),
        "additionalProperties": False,
    }
    return {**schema, **({"description": description} if description else {}), **more}


def _nullable_schema(schema: Schema) -> Schema:
    """Allow null, and make it the default."""
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return {**schema, "type": [*types, "null"], "default": None}


def _component_schema(component: Component, core_keys: Mapping[str, Any]) -> Schema:
    return _object_schema({**component.options, **core_keys}, component.required, component.summary)


def _component_choice_schema(components: Mapping[str, Component], description: str, many: bool = False) -> Schema:
    return _tagged_union_schema(
        {name: _component_schema(c, {}) for name, c in sorted(components.items())}, description, many
    )


def _tagged_union_schema(members: Mapping[str, Schema], description: str, many: bool = False) -> Schema:
    schema: Schema = {
        "type": ["object", "string"],
        "slot": "many" if many else "one",
        "properties": dict(members),
        "additionalProperties": False,
        "if": {"type": "string"},
        "then": {"enum": sorted(members)},
        "description": description,
    }
    return schema if many else {**schema, "minProperties": 1, "maxProperties": 1}


def _override_schema(components: Mapping[str, Component]) -> Schema:
    """Return the schema of a stage's mitigation options: without defaults; null removes a mitigation."""
    members = {
        name: {
            **_object_schema(
                {key: _without_default(option) for key, option in component.options.items()}, (), component.summary
            ),
            "type": ["object", "null"],
        }
        for name, component in sorted(components.items())
    }
    return _object_schema(
        members, (), "Mitigation options that this stage overrides; null removes a mitigation from it."
    )


def _without_default(option: Mapping[str, Any]) -> Schema:
    return {key: value for key, value in option.items() if key != "default"}


# -- traversal of a value together with its schema ----------------------------------------------------------------


def resolve_ref(schema: Schema, root: Schema) -> Schema:
    """Return the schema, or the definition of the root that its `$ref` names."""
    reference = schema.get("$ref")
    return root["definitions"][reference.removeprefix("#/definitions/")] if reference else schema


def iter_children(schema: Schema, value: Any) -> Iterator[tuple[str | int, Schema]]:
    """Yield the keys or indices of a value, each with its schema. Keys that the schema does not know are skipped."""
    if isinstance(value, dict):
        extra = schema.get("additionalProperties")
        for key in value:
            known = schema.get("properties", {}).get(key)
            if known is not None:
                yield key, known
            elif isinstance(extra, dict):
                yield key, extra
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for index in range(len(value)):
            yield index, schema["items"]


def expand_shorthand(value: Any, schema: Schema, root: Schema) -> Any:
    """Return a copy in which a bare string in the place of a component is `{string: {}}`."""
    schema = resolve_ref(schema, root)
    if isinstance(value, str) and "slot" in schema:
        return {value: {}}
    result = copy.copy(value)
    for key, child in iter_children(schema, value):
        result[key] = expand_shorthand(value[key], child, root)
    return result


def fill_defaults(value: Any, schema: Schema, root: Schema) -> Any:
    """Return a copy with all defaults of the schema filled in. A float such as 8.0 becomes an integer where needed."""
    schema = resolve_ref(schema, root)
    result = copy.copy(value)
    if isinstance(value, float) and "integer" in schema.get("type", ()) and "number" not in schema["type"]:
        return int(value)
    if isinstance(result, dict) and "slot" not in schema:
        for key, child in schema.get("properties", {}).items():
            if key not in result and "default" in resolve_ref(child, root):
                result[key] = copy.deepcopy(resolve_ref(child, root)["default"])
    for key, child in iter_children(schema, result):
        result[key] = fill_defaults(result[key], child, root)
    return result


def iter_leaves(
    value: Any, schema: Schema, root: Schema, path: JsonPath = ()
) -> Iterator[tuple[JsonPath, Schema, Any]]:
    """Yield every leaf value with its path and schema."""
    schema = resolve_ref(schema, root)
    if not isinstance(value, (dict, list)):
        yield path, schema, value
    for key, child in iter_children(schema, value):
        yield from iter_leaves(value[key], child, root, (*path, key))


# -- errors in sentences ------------------------------------------------------------------------------------------


def find_schema_errors(
    document: Any, schema: Schema, located_json: LocatedJson, broken_plugins: Sequence[BrokenPlugin] = ()
) -> list[HarnessError]:
    """Return everything that is wrong with a document, in the order of the file.

    Args:
        document: The document, with shorthands expanded.
        schema: The composed schema.
        located_json: The file, for line and column.
        broken_plugins: Plugins that failed to load. An error about an unknown component names them.
    """
    errors = {
        str(error): error
        for schema_error in jsonschema.Draft7Validator(schema).iter_errors(document)
        for error in _explain_error(schema_error, located_json, broken_plugins)
    }
    return sorted(errors.values(), key=lambda error: _error_position(error, located_json))


def _error_position(error: HarnessError, located_json: LocatedJson) -> list[int]:
    line_and_column, _, _ = error.where.removeprefix(f"{located_json.name}:").partition(" ")
    return [int(part) for part in line_and_column.split(":")]


def _explain_error(
    error: ValidationError, located_json: LocatedJson, broken_plugins: Sequence[BrokenPlugin]
) -> Iterator[HarnessError]:
    path: JsonPath = tuple(error.absolute_path)
    key = ".".join(map(str, path)) or "spec"
    value: Any = error.instance
    expected: Any = error.validator_value
    schema: Schema = error.schema if isinstance(error.schema, dict) else {}

    def build_error(what: str, hint: str, at: JsonPath = path) -> HarnessError:
        return HarnessError(f"{located_json.where(at)} {key}", what, hint)

    match error.validator:
        case "additionalProperties":
            known = list(schema.get("properties", {}))
            for name in sorted(set(value) - set(known)):
                what, noun = f"unknown key {name!r}", "known"
                if "slot" in schema:
                    what, noun = f"no plugin provides {name!r}", "installed"
                near = get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"{noun}: {', '.join(sorted(known)) or 'none'}"
                if "slot" in schema and broken_plugins:
                    hint += f"; a plugin that may provide it failed to load: {', '.join(map(str, broken_plugins))}"
                yield build_error(what, hint, (*path, name))
        case "required":
            for name in expected:
                if name not in value:
                    yield build_error(
                        f"the key {name!r} is missing", f"add it: {_first_sentence(schema['properties'].get(name, {}))}"
                    )
        case "type":
            names = " or ".join(expected) if isinstance(expected, list) else expected
            article = "an" if names[0] in "aeio" else "a"
            yield build_error(
                f"{_shorten_json(value)} is not {article} {names}",
                f"write {article} {names}: {_first_sentence(schema)}",
            )
        case "enum":
            near = get_close_matches(str(value), [str(choice) for choice in expected], 1)
            allowed = ", ".join(_shorten_json(choice) for choice in expected)
            yield build_error(
                f"{_shorten_json(value)} is not one of: {allowed}", f"did you mean {near[0]!r}?" if near else ""
            )
        case "minProperties" | "maxProperties" if "slot" in schema or "additionalProperties" in schema:
            names = ", ".join(sorted(schema.get("properties", {})))
            what = "nothing is given" if not value else f"{len(value)} are given, but only one is allowed"
            yield build_error(what, f"choose one of: {names}" if names else "add at least one")
        case "minimum" | "exclusiveMinimum" | "maximum" | "exclusiveMaximum":
            words = {
                "minimum": "at least",
                "exclusiveMinimum": "above",
                "maximum": "at most",
                "exclusiveMaximum": "below",
            }
            what = f"{_shorten_json(value)} is out of range"
            yield build_error(what, f"it must be {words[error.validator]} {expected}")
        case "pattern" if expected == evaluation.NAME_PATTERN:
            yield build_error(
                f"{_shorten_json(value)} is not a valid name", "use letters, digits, dot, dash and underscore"
            )
        case "anyOf" if all("required" in branch for branch in schema["anyOf"]):
            keys = " or ".join(repr(name) for branch in schema["anyOf"] for name in branch["required"])
            yield build_error(f"one of the keys {keys} is missing", "add it")
        case "minItems" if not value:
            yield build_error("the list is empty", "name at least one")
        case _:
            yield build_error(error.message, _first_sentence(schema))


def _first_sentence(schema: Schema) -> str:
    """Return the first sentence of a schema's description."""
    sentence = re.split(r"(?<!e\.g)\. ", schema.get("description", "see `harness schema`"), maxsplit=1)[0]
    return sentence[:1].lower() + sentence[1:].rstrip(".")


def _shorten_json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
