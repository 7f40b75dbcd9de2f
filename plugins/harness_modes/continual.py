"""Mode `continual`: several stages in order, on the same weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness import Component, Mode, Stage, StageSource
from harness.types import Role
from harness_modes.source_list import source_list_option

STAGE_SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name"],
    "anyOf": [{"required": ["domain"]}, {"required": ["general"]}],
    "properties": {
        "name": {
            "type": "string",
            "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]*$",
            "description": "Names the stage in folders, logs and reports.",
        },
        "domain": source_list_option("Sources of what this stage teaches."),
        "general": source_list_option("Sources of general conversations trained in the same stage."),
        "train": {"$ref": "#/definitions/train_overrides"},
        "mitigations": {"$ref": "#/definitions/mitigation_overrides"},
        "adapter": {
            "enum": ["continue", "merge", "new"],
            "description": "What happens to the adapter of the previous stage. continue (the default): it is trained "
            "further. merge: it is merged into the weights below a new one; these may also have been trained without "
            "an adapter. new: it is discarded for a new one on the base model.",
        },
        "suites": {
            "type": "array",
            "items": {"type": "string"},
            "uniqueItems": True,
            "description": "The suites that test what this stage teaches. "
            "Default: those on its sources, or with its name.",
        },
    },
    "description": "One stage: its sources, and the settings and mitigations in which it differs.",
}

COMPONENTS: dict[str, Component] = {
    "continual": Component(
        summary="Several stages in order, each evaluated on every suite when it ends.",
        factory="harness_modes.continual:ContinualMode",
        options={
            "stages": {
                "type": "array",
                "minItems": 1,
                "items": STAGE_SCHEMA,
                "description": "The stages in order.",
            },
        },
        required=("stages",),
    ),
}

ROLES: tuple[Role, ...] = ("domain", "general")


class ContinualMode(Mode):
    """The stages in the order of the spec; each may override training settings and mitigations."""

    def __init__(self, stages: Sequence[Mapping[str, Any]]) -> None:
        self.stage_specs = tuple(stages)

    def stages(self) -> tuple[Stage, ...]:
        """Return the stages in the order of the spec."""
        return tuple(
            Stage(
                name=stage["name"],
                sources=tuple(StageSource(source, role) for role in ROLES for source in stage.get(role, ())),
                train=stage.get("train", {}),
                suites=tuple(stage.get("suites", ())),
                mitigations=stage.get("mitigations"),
                **({"adapter": stage["adapter"]} if "adapter" in stage else {}),
            )
            for stage in self.stage_specs
        )
