"""Compose the JSON Schema of specs from the core and every plugin, and phrase its errors as sentences.

The schema is draft-07, since editors support 2020-12 only in part. A component is tagged by its key,
`{"ewc": {"strength": 1}}`: composition is a union of `properties`, and an error names the exact key. A bare string is
a component without options.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from harness.interfaces.component import Component
from harness.registry import Registry
from harness.spec.json_locations import JsonPath
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


def remove_defaults(value: Any, schema: Schema, root: Schema) -> Any:
    """Return a copy without the keys whose values are the schema's defaults: the inverse of `fill_defaults`."""
    schema = resolve_ref(schema, root)
    if not isinstance(value, dict):
        return value
    children = dict(iter_children(schema, value))
    return {
        key: remove_defaults(element, children[key], root) if key in children else element
        for key, element in value.items()
        if "slot" in schema or key not in children or not _is_default(element, resolve_ref(children[key], root), root)
    }


def _is_default(value: Any, schema: Schema, root: Schema) -> bool:
    return "default" in schema and value == fill_defaults(copy.deepcopy(schema["default"]), schema, root)


def iter_leaves(
    value: Any, schema: Schema, root: Schema, path: JsonPath = ()
) -> Iterator[tuple[JsonPath, Schema, Any]]:
    """Yield every leaf value with its path and schema."""
    schema = resolve_ref(schema, root)
    if not isinstance(value, (dict, list)):
        yield path, schema, value
    for key, child in iter_children(schema, value):
        yield from iter_leaves(value[key], child, root, (*path, key))
