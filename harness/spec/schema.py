"""Compose the JSON Schema of specs from the core and every plugin, and phrase its errors as sentences.

The schema is draft-07, since editors support 2020-12 only in part. A component is tagged by its key,
`{"ewc": {"strength": 1}}`: composition is a union of `properties`, and an error names the exact key. A bare string is
a component without options, if none is required.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness.errors import HarnessError
from harness.interfaces.component import Component
from harness.registry import Registry
from harness.spec.json_locations import JsonPath
from harness.spec_keys import data, evaluation, run, training
from harness.spec_keys.examples import EXAMPLES

Schema = dict[str, Any]


def compose_schema(registry: Registry) -> Schema:
    """Compose the schema of specs from the core's keys and the options of every component of the registry."""
    components = registry.components

    def choice(component_type: str, description: str, many: bool = False) -> Schema:
        members = {
            name: _component_schema(component, {}) for name, component in sorted(components[component_type].items())
        }
        return _with_names(_tagged_union_schema(members, description, many), registry, component_type)

    source_keys = {**data.SOURCE_KEYS, "form": _form_schema(registry)}
    sources = {
        name: _component_schema(component, source_keys) for name, component in sorted(components["sources"].items())
    }
    metrics = choice("metrics", "Metrics of the suite: name -> options.", many=True)
    suite_template = _nullable_schema(choice("templates", "The suite's own template. null: the template of training."))
    properties = {**evaluation.SUITE_KEYS, "template": suite_template, "metrics": {**metrics, "minProperties": 1}}
    suite = _suite_schema(properties, registry)
    near = _object_schema(data.NEAR_DUPLICATES_KEYS, (), "Near-duplicates among training rows. null: not searched.")
    contamination = _object_schema(
        data.CONTAMINATION_KEYS, (), "Held-out rows that overlap with training rows. null: not searched."
    )
    checks = {
        "near_duplicates": {**_nullable_schema(near), "default": {}},
        "contamination": {**_nullable_schema(contamination), "default": {}},
        **data.CHECKS_KEYS,
        **{
            name: _component_schema(component, data.PLUGIN_CHECK_KEYS)
            for name, component in sorted(components["checks"].items())
        },
    }
    train_keys = {
        **training.TRAIN_KEYS,
        **{
            key: {**choice(slot["type"], slot["description"]), "default": slot["default"]}
            for key, slot in training.TRAIN_COMPONENTS.items()
        },
    }
    overrides = {
        key: _without_default(option) for key, option in train_keys.items() if key not in training.TRAIN_KEYS_OF_RUN
    }
    properties = {
        **run.TOP_LEVEL_KEYS,
        "model": _object_schema(
            {**training.MODEL_KEYS, "quantization": _quantization_schema()}, ("path",), "The model to start from."
        ),
        "template": {
            **choice("templates", "How conversations are rendered as text."),
            "default": {"tokenizer": {}},
        },
        "sources": {
            "type": "object",
            "minProperties": 1,
            "propertyNames": {"pattern": evaluation.NAME_PATTERN},
            "additionalProperties": _with_names(
                _tagged_union_schema(sources, "One source, tagged by its type."), registry, "sources"
            ),
            "description": "Your name for a source -> the source of its rows.",
        },
        "mode": choice("modes", "How the sources are arranged as training stages."),
        "mitigations": {
            **choice("mitigations", "Forgetting mitigations: name -> options. They compose.", many=True),
            "default": {},
        },
        "train": _object_schema(train_keys, (), "Training settings.", default={}),
        "evaluate": {
            "type": "object",
            "propertyNames": {"pattern": evaluation.NAME_PATTERN},
            "additionalProperties": suite,
            "presets": _preset_documents(registry),
            "default": {},
            "description": "Your name for a suite -> held-out rows and metrics, evaluated before and after every "
            "stage; or the name of a preset of several suites.",
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
        "checks": _with_names(
            _object_schema(checks, (), "Data checks that must pass before the model is loaded.", default={}),
            registry,
            "checks",
        ),
        "track": _track_schema(registry),
    }
    schema = _object_schema(properties, (), "A run of harness.")
    for path, values in EXAMPLES.items():
        schema = _with_examples(schema, path.split("."), values)
    overridden = _override_schema(components["mitigations"])
    composed = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "harness spec",
        **schema,
        **_required_unless("extends", ("name", "model", "sources", "mode"), properties),
        "definitions": {
            "train_overrides": _object_schema(overrides, (), "Settings of this stage that override `train`."),
            "mitigation_overrides": _with_names(overridden, registry, "mitigations"),
        },
    }
    _add_alias_properties(composed, "#")
    return composed


def _with_examples(schema: Schema, path: Sequence[str], values: Sequence[Any]) -> Schema:
    """Return a copy of the schema with examples at a path."""
    if not path:
        return {**schema, "examples": list(values)}
    key, *rest = path
    if key == "*":
        return {**schema, "additionalProperties": _with_examples(schema["additionalProperties"], rest, values)}
    properties = schema["properties"]
    return {**schema, "properties": {**properties, key: _with_examples(properties[key], rest, values)}}


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


def _quantization_schema() -> Schema:
    summary = "Quantizes every linear layer but the output head with bitsandbytes while the model is loaded."
    members = {"bitsandbytes": _object_schema(training.BITSANDBYTES_KEYS, (), summary)}
    description = (
        "Load the weights quantized, and train an adapter on them (QLoRA). The base model of every evaluation is "
        "the quantized one. null: as the model's files have them."
    )
    return _nullable_schema(_tagged_union_schema(members, description))


def _component_schema(component: Component, core_keys: Mapping[str, Any]) -> Schema:
    return _object_schema({**component.options, **core_keys}, component.required, component.summary)


def _tagged_union_schema(members: Mapping[str, Schema], description: str, many: bool = False) -> Schema:
    schema: Schema = {
        "type": ["object", "string"],
        "slot": "many" if many else "one",
        "properties": dict(members),
        "additionalProperties": False,
        "if": {"type": "string"},
        "then": {"enum": sorted(name for name, member in members.items() if not member["required"])},
        "description": description,
    }
    return schema if many else {**schema, "minProperties": 1, "maxProperties": 1}


def _suite_schema(properties: Mapping[str, Any], registry: Registry) -> Schema:
    """Return the schema of a suite: its keys, or the name of a preset, or an object that names one."""
    presets = sorted(registry.presets)
    preset_keys = {**evaluation.PRESET_KEYS, "preset": {**evaluation.PRESET_KEYS["preset"], "enum": presets}}
    return {
        **_object_schema({**properties, **preset_keys}, ()),
        "type": ["object", "string"],
        "if": {"type": "string"},
        "then": {"enum": presets},
        "else": _required_unless("preset", ("source", "metrics"), properties),
    }


def _required_unless(key: str, required: Sequence[str], properties: Mapping[str, Any]) -> Schema:
    """Return the part of an object's schema that requires keys, unless another key names where they come from."""
    described = {name: {"description": properties[name]["description"]} for name in required}
    return {"if": {"required": [key]}, "else": {"required": list(required), "properties": described}}


def _preset_documents(registry: Registry) -> Schema:
    """Return preset -> kind -> `source` and `settings` of the suite; see `harness.spec.presets`."""
    return {
        name: {
            kind: {"source": dict(suite.source), "settings": dict(suite.settings)}
            for kind, suite in preset.suites.items()
        }
        for name, (preset, _) in sorted(registry.presets.items())
    }


def _form_schema(registry: Registry) -> Schema:
    """Return the schema of a source's `form`: the name of a built-in row format, or a component with its options."""
    formats = registry.components["row_formats"]
    members = {name: _component_schema(component, {}) for name, component in sorted(formats.items())}
    bare = [name for name, member in members.items() if not member["required"]]
    schema = {
        **_object_schema(members, ()),
        **data.SOURCE_KEYS["form"],
        "type": ["string", "object"],
        "minProperties": 1,
        "maxProperties": 1,
        "if": {"type": "string"},
        "then": {"enum": [*data.BUILT_IN_FORMS, *bare]},
    }
    return _with_names(schema, registry, "row_formats")


def _track_schema(registry: Registry) -> Schema:
    """Return the schema of `track`: `enabled`, and each tracker by name. Without a tracker it is `mlflow`."""
    trackers = registry.components["trackers"]
    members = {name: _component_schema(component, {}) for name, component in sorted(trackers.items())}
    description = "Where the run is tracked: name of a tracker -> its options. Without one: mlflow."
    schema = _object_schema({**run.TRACK_KEYS, **members}, (), description, default={})
    default_component = {"default_component": "mlflow"} if "mlflow" in trackers else {}
    return _with_names({**schema, **default_component}, registry, "trackers")


def _with_names(schema: Schema, registry: Registry, component_type: str) -> Schema:
    """Add other names of the components: `aliases`, long name -> name, and `ambiguous`, name -> long names."""
    ambiguous = {
        name: list(long_names)
        for (kind, name), long_names in registry.clashes.items()
        if kind == component_type and name not in registry.components[kind]
    }
    return {**schema, "aliases": registry.aliases(component_type), **({"ambiguous": ambiguous} if ambiguous else {})}


def _add_alias_properties(schema: Any, pointer: str) -> None:
    """Add a reference for each alias, in place, so that editors accept it like the name.

    Args:
        schema: A schema of the composed document, or a part of one.
        pointer: The JSON pointer of that schema.
    """
    if not isinstance(schema, dict):
        return
    for key, part in schema.items():
        _add_alias_properties(part, f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}")
    aliases = schema.get("aliases")
    if isinstance(aliases, dict) and "properties" in schema:
        for alias, name in aliases.items():
            schema["properties"][alias] = {"$ref": f"{pointer}/properties/{name}"}
        if "then" in schema:
            bare = set(schema["then"]["enum"])
            schema["then"] = {"enum": sorted(bare | {alias for alias, name in aliases.items() if name in bare})}


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
    """Return the schema, or the part of the root that its `$ref` points to."""
    if "$ref" not in schema:
        return schema
    target = root
    for step in schema["$ref"].removeprefix("#/").split("/"):
        target = target[step.replace("~1", "/").replace("~0", "~")]
    return target


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
    """Return a copy in which a component is named by the key under which its options are.

    A bare string in the place of a component becomes `{string: {}}`, and `distribution/name` the component's own name.
    """
    schema = resolve_ref(schema, root)
    aliases = schema.get("aliases", {})
    if isinstance(value, str) and ("slot" in schema or value in {*aliases, *aliases.values()}):
        value = {value: {}}
    result = copy.copy(value)
    if isinstance(value, dict) and "aliases" in schema:
        for alias in value.keys() & schema["aliases"].keys():
            if schema["aliases"][alias] in value:
                what = f"{alias!r} and {schema['aliases'][alias]!r} are the same component"
                raise HarnessError("spec", what, "write it once")
        value = result = {schema["aliases"].get(key, key): options for key, options in value.items()}
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
    if isinstance(result, dict) and "default_component" in schema and not _component_names(result, schema):
        result[schema["default_component"]] = {}
    for key, child in iter_children(schema, result):
        result[key] = fill_defaults(result[key], child, root)
    return result


def remove_defaults(value: Any, schema: Schema, root: Schema) -> Any:
    """Return a copy without the keys whose values are the schema's defaults: the inverse of `fill_defaults`."""
    schema = resolve_ref(schema, root)
    if not isinstance(value, dict):
        return value
    value = _without_default_component(value, schema, root)
    children = dict(iter_children(schema, value))
    return {
        key: remove_defaults(element, children[key], root) if key in children else element
        for key, element in value.items()
        if "slot" in schema or key not in children or not _is_default(element, resolve_ref(children[key], root), root)
    }


def _component_names(value: Mapping[str, Any], schema: Schema) -> set[str]:
    """Return the components among the keys of a value."""
    return value.keys() & set(schema["aliases"].values())


def _without_default_component(value: Mapping[str, Any], schema: Schema, root: Schema) -> Mapping[str, Any]:
    """Return the value without the component that `fill_defaults` adds if none is named."""
    name = schema.get("default_component")
    if name is None or _component_names(value, schema) != {name}:
        return value
    is_filled = value[name] == fill_defaults({}, schema["properties"][name], root)
    return {key: element for key, element in value.items() if key != name} if is_filled else value


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
