"""The rows that models write in a run: which mitigation, which source, which model, and where they are recorded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from harness.data.written_rows import sources_with_written_rows
from harness.interfaces.mitigation import Mitigation
from harness.registry import Registry
from harness.spec import plan as plan_module
from harness.spec.row_writers import find_writer
from harness.types import Plan

Writer = Literal["base", "current"]


@dataclass(frozen=True)
class RowsToWrite:
    """The rows of one source of one stage that a model is to write.

    Attributes:
        stage_index: The stage, from 1.
        mitigation: The name of the mitigation.
        source: The name of the source.
        limit: Maximum number of prompts; None: all.
        is_mixed: Whether the stage trains on them; otherwise they are the mitigation's own.
        model: The model that writes them.
        folder: The folder of their record, relative to the run's folder.
    """

    stage_index: int
    mitigation: str
    source: str
    limit: int | None
    is_mixed: bool
    model: Writer
    folder: str


def list_rows_to_write(plan: Plan, registry: Registry) -> list[RowsToWrite]:
    """Return everything that models write in a run, stage by stage."""
    todo = []
    folders: dict[tuple[str, str], dict[str, str]] = {}  # mitigation and source -> settings -> folder of the record
    for stage_index, stage in enumerate(plan.stages, start=1):
        options = plan_module.stage_mitigations(plan, stage)
        mitigations: dict[str, Mitigation] = dict(plan_module.create_mitigations(options, registry))
        marked = sources_with_written_rows(stage)
        parts = [(find_writer(part, mitigations), part.source, part.limit) for part in marked]
        own = [
            (name, source, each.unmixed_limit) for name, each in mitigations.items() for source in each.unmixed_sources
        ]
        for index, (name, source, limit) in enumerate([*parts, *own]):
            model, folder = mitigations[name].generates_with, f"stages/{stage.name}/written"
            if model == "base":
                settings = mitigations[name].generation_settings()
                depends_on = [options[name] if settings is None else settings, limit, stage.train["max_length"]]
                known = folders.setdefault((name, source), {})
                folder = known.setdefault(json.dumps(depends_on, sort_keys=True), folder if known else "written")
            todo.append(RowsToWrite(stage_index, name, source, limit, index < len(parts), model, folder))
    return todo
