"""The rows that models write in a run: which mitigation, which source, which model, and where they are recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from harness.data.written_rows import sources_with_written_rows
from harness.errors import HarnessError
from harness.interfaces.mitigation import Mitigation
from harness.registry import Registry
from harness.spec import plan as plan_module
from harness.spec.row_writers import find_writer
from harness.spec.spec import Spec
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
        writes_prompts: Whether the model writes the prompts too.
    """

    stage_index: int
    mitigation: str
    source: str
    limit: int | None
    is_mixed: bool
    model: Writer
    folder: str
    writes_prompts: bool = False

    def describe(self) -> str:
        """Return what is written, e.g. "the responses of chat (mixing)"."""
        what = "prompts and responses" if self.writes_prompts else "responses"
        return f"the {what} of {self.source} ({self.mitigation})"


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
            writes_prompts = mitigations[name].writes_prompts
            is_mixed = index < len(parts)
            todo.append(RowsToWrite(stage_index, name, source, limit, is_mixed, model, folder, writes_prompts))
    return todo


def missing_chat_template_errors(spec: Spec, plan: Plan, registry: Registry, tokenizer: Any) -> Iterator[HarnessError]:
    """Yield an error if a mitigation lets the model write prompts, and its tokenizer has no chat template.

    Such a model has not learned what follows the header of a user's turn.
    """
    if tokenizer.chat_template:
        return
    for stage in plan.stages:
        for name, mitigation in plan_module.create_mitigations(plan_module.stage_mitigations(plan, stage), registry):
            if mitigation.writes_prompts:
                what = "the model's tokenizer has no chat template, so the model cannot write what a user would ask"
                hint = f'set prompts of {name} to "data", or give a model that is trained on conversations'
                yield HarnessError(spec.where(("mitigations", name)), what, hint)
                return
