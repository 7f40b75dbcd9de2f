"""Write the page of a run with the sections of plugins, and its model card."""

from __future__ import annotations

from pathlib import Path

from harness.events import WarningRaised
from harness.registry import Registry
from harness.report import model_card
from harness.report.html import write
from harness.report.plugin_sections import collect_sections


def write_run_page(registry: Registry, folder: Path) -> Path:
    """Write report.html and the model card of a finished run; plugins whose sections are left out are warnings."""
    sections, warnings = collect_sections(registry, folder)
    for text in warnings:
        registry.emit(WarningRaised(text=text))
    page = write.write_run_page(folder, sections)
    model_card.write_model_card(folder)
    return page
