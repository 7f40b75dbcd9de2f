"""Validate the options of a component that is named outside a spec, and fill in their defaults."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jsonschema

from harness.errors import HarnessError
from harness.registry import Registry
from harness.spec.schema import compose_schema, fill_defaults


def fill_component_options(registry: Registry, kind: str, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a component with the defaults of those that are missing.

    Args:
        registry: Has the component.
        kind: Its kind, e.g. `metrics`.
        name: Its name.
        options: Its options.

    Raises:
        HarnessError: The component or an option does not exist, or the value of an option is not valid.
    """
    component = registry.get(kind, name)
    schema: dict[str, Any] = {
        "type": "object",
        "properties": dict(component.options),
        "required": list(component.required),
        "additionalProperties": False,
    }
    if "#/definitions/" in json.dumps(schema):  # parts of the spec's own schema, such as the stages of a mode
        schema["definitions"] = compose_schema(registry)["definitions"]
    for error in jsonschema.Draft7Validator(schema).iter_errors(dict(options)):
        where = ".".join([f"{kind.removesuffix('s')} {name}", *map(str, error.absolute_path)])
        raise HarnessError(where, error.message, f"its options are: {', '.join(component.options) or 'none'}")
    filled: dict[str, Any] = fill_defaults(dict(options), schema, schema)
    return filled
