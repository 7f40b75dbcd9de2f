"""Create metrics from their names and options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from harness.interfaces.metric import Metric
from harness.registry import Registry
from harness.spec.component_options import fill_component_options


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
    all_options = fill_component_options(registry, "metrics", name, options)
    if all_options.get("lang") == "auto":
        all_options["lang"] = lang
    metric: Metric = registry.create("metrics", name, all_options)
    return metric


def create_metrics_of_specs(registry: Registry, specs: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Metric]]:
    """Return suite -> name -> metric of finished runs: those of the first spec, then those that only others have.

    Args:
        registry: Has the metrics.
        specs: The filled specs of the runs.
    """
    metrics: dict[str, dict[str, Metric]] = {}
    for spec in specs:
        for suite, settings in spec["evaluate"].items():
            for name, options in settings["metrics"].items():
                if name not in metrics.setdefault(suite, {}):
                    metrics[suite][name] = create_metric(registry, name, options, lang=settings.get("lang", "auto"))
    return metrics
