"""Create metrics from their names and options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jsonschema

from harness.errors import HarnessError
from harness.interfaces.metric import Metric
from harness.registry import Registry
from harness.spec.schema import fill_defaults


def create_metric(registry: Registry, name: str, options: Mapping[str, Any], *, lang: str = "auto") -> Metric:
    """Create a metric; missing options get their defaults.

    Args:
        registry: Has the metrics.
        name: Name of the metric.
        options: Its options.
        lang: Replaces the value `auto` of the metric's option `lang`.

    Raises:
        HarnessError: The metric or an option does not exist, or the value of an option is not valid.
    """
    component = registry.get("metrics", name)
    schema: dict[str, Any] = {
        "type": "object",
        "properties": dict(component.options),
        "required": list(component.required),
        "additionalProperties": False,
    }
    for error in jsonschema.Draft7Validator(schema).iter_errors(dict(options)):
        where = ".".join([f"metric {name}", *map(str, error.absolute_path)])
        raise HarnessError(where, error.message, f"its options are: {', '.join(component.options) or 'none'}")
    all_options = fill_defaults(dict(options), schema, schema)
    if all_options.get("lang") == "auto":
        all_options["lang"] = lang
    metric: Metric = registry.create("metrics", name, all_options)
    return metric
