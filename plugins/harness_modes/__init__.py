"""The modes that come with harness: ways to lay sources out as training stages."""

from __future__ import annotations

from typing import Any

from harness import Component, hookimpl

__all__ = ["harness_modes"]


def _sources_option(description: str) -> dict[str, Any]:
    items = {"type": "string", "format": "source"}
    return {"type": "array", "items": items, "minItems": 1, "uniqueItems": True, "description": description}


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
        "domain": _sources_option("Sources of what this stage is to learn."),
        "general": _sources_option("Sources of general conversations trained beside them."),
        "train": {"$ref": "#/definitions/train_overrides"},
        "mitigations": {"$ref": "#/definitions/mitigation_overrides"},
        "adapter": {
            "enum": ["continue", "merge", "new"],
            "description": "What becomes of the adapter of the stage before: it is trained on (unless this says "
            "otherwise), merged into the weights below a new one (before which the weights themselves may have been "
            "trained), or put aside for a new one on the base model.",
        },
        "suites": {
            "type": "array",
            "items": {"type": "string"},
            "uniqueItems": True,
            "description": "The suites that examine what this stage teaches. Unnamed: those on its sources, or of its "
            "name.",
        },
    },
    "description": "One stage: its sources, and the settings and mitigations in which it differs.",
}


@hookimpl
def harness_modes() -> dict[str, Component]:
    return {
        "general": Component(
            summary="One stage on general conversations: instruction tuning.",
            factory="harness_modes.modes:GeneralMode",
            options={"sources": _sources_option("Sources of general conversations.")},
            required=("sources",),
        ),
        "domain": Component(
            summary="One stage on conversations of a domain, with nothing general beside them.",
            factory="harness_modes.modes:DomainMode",
            options={"sources": _sources_option("Sources of the domain.")},
            required=("sources",),
        ),
        "mixed": Component(
            summary="One stage on conversations of a domain with general ones mixed in.",
            factory="harness_modes.modes:MixedMode",
            options={
                "domain": _sources_option("Sources of the domain."),
                "general": _sources_option(
                    "Sources of general conversations; the mitigation `mixing` states their share."
                ),
            },
            required=("domain", "general"),
        ),
        "continual": Component(
            summary="Several stages in order, each evaluated on every suite when it ends.",
            factory="harness_modes.modes:ContinualMode",
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
