"""Collect the sections that plugins add to the report of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.interfaces.guard import describe_exception, distribution_and_version
from harness.interfaces.report_section import ReportSection
from harness.registry import Registry


def collect_sections(registry: Registry, folder: Path) -> tuple[tuple[ReportSection, ...], list[str]]:
    """Return the sections of all plugins, in the order of the distributions.

    Args:
        registry: The loaded plugins.
        folder: The folder of a finished run, with `report.json`.

    Returns:
        The sections, and a warning for each plugin that failed; it has no section.
    """
    sections: list[ReportSection] = []
    warnings: list[str] = []
    for distribution, modules in registry.modules.items():
        for module in modules:
            function = getattr(module, "harness_report_sections", None)
            if function is None:
                continue
            try:
                sections += _require_sections(function(folder=folder))
            except (Exception, SystemExit) as error:
                name = distribution_and_version(distribution)
                warnings.append(f"the report sections of {name} are left out: {describe_exception(error)}")
    return tuple(sections), warnings


def _require_sections(result: Any) -> list[ReportSection]:
    if not isinstance(result, list | tuple) or not all(isinstance(section, ReportSection) for section in result):
        raise TypeError("harness_report_sections returned something else than a list of harness.ReportSection")
    return list(result)
