"""The hooks that a plugin package may implement: the table of contents for plugin authors.

A package names a module under the entry-point group `harness`. That module implements any of these hooks. The built-in
components are registered through the same entry-point group.
"""

from __future__ import annotations

from pathlib import Path

import pluggy

from harness.events import Event
from harness.interfaces.command import Command
from harness.interfaces.component import Component
from harness.interfaces.preset import Preset
from harness.interfaces.report_section import ReportSection

hookspec = pluggy.HookspecMarker("harness")
hookimpl = pluggy.HookimplMarker("harness")


@hookspec
def harness_templates() -> dict[str, Component]:  # type: ignore[empty-body]
    """Return templates: they render a conversation as text and mark the trained spans."""


@hookspec
def harness_sources() -> dict[str, Component]:  # type: ignore[empty-body]
    """Return sources: they yield raw rows."""


@hookspec
def harness_row_formats() -> dict[str, Component]:  # type: ignore[empty-body]
    """Return row formats: they turn the columns of a row into a conversation."""


@hookspec
def harness_modes() -> dict[str, Component]:  # type: ignore[empty-body]
    """Return modes: they arrange sources as training stages."""


@hookspec
def harness_mitigations() -> dict[str, Component]:  # type: ignore[empty-body]
    """Return mitigations: they reduce forgetting."""


@hookspec
def harness_metrics() -> dict[str, Component]:  # type: ignore[empty-body]
    """Return metrics: they compute scores from a model and held-out rows."""


@hookspec
def harness_optimizers() -> dict[str, Component]:  # type: ignore[empty-body]
    """Return optimizers: they build the torch optimizer of a stage."""


@hookspec
def harness_schedulers() -> dict[str, Component]:  # type: ignore[empty-body]
    """Return schedulers: they set the learning rate of each step."""


@hookspec
def harness_checks() -> dict[str, Component]:  # type: ignore[empty-body]
    """Return checks: they look for issues in the rows before a model is loaded."""


@hookspec
def harness_trackers() -> dict[str, Component]:  # type: ignore[empty-body]
    """Return trackers: they record the course of a run."""


@hookspec
def harness_exporters() -> dict[str, Component]:  # type: ignore[empty-body]
    """Return exporters: they write the model of a run in another form."""


@hookspec
def harness_presets() -> dict[str, Preset]:  # type: ignore[empty-body]
    """Return presets by name: suites that a spec uses as `"evaluate": {"general": "NAME"}`."""


@hookspec
def harness_commands() -> dict[str, Command]:  # type: ignore[empty-body]
    """Return commands by name: subcommands of the `harness` program."""


@hookspec
def harness_report_sections(folder: Path) -> list[ReportSection]:  # type: ignore[empty-body]
    """Return sections for the report of a run. Called whenever its page or its summary in Markdown is written.

    Args:
        folder: The folder of the finished run; `harness.load_run` reads it.
    """


@hookspec
def harness_on_event(event: Event) -> None:
    """Receive each event of a run.

    The MLflow tracker and the console are listeners like any other. A listener that raises is reported once and not
    called again.

    Args:
        event: An instance of one of the classes in `harness.events`.
    """
