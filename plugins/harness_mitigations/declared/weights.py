"""What is declared of the mitigations that hold weights where they are."""

from __future__ import annotations

from typing import Any

from harness import Component

COUPLING_OPTION: dict[str, Any] = {
    "enum": ["gradient", "loss", "proximal"],
    "default": "gradient",
    "description": "Where the pull enters: after the task's gradient is clipped, within the clipped loss as papers "
    "write it, or after the optimizer's step.",
}
PLACE_OPTION: dict[str, Any] = {
    "enum": ["device", "cpu"],
    "default": "device",
    "description": "Where what is remembered lies: beside the weights, or in main memory, fetched at every update.",
}

COMPONENTS: dict[str, Component] = {
    "ewc": Component(
        summary="Pulls each weight to where it was by its Fisher information (EWC, arXiv:1612.00796).",
        factory="harness_mitigations.ewc:Ewc",
        options={
            "source": {
                "type": "string",
                "format": "source",
                "description": "Whose rows the Fisher of the base model is measured on: what is to be kept.",
            },
            "strength": {
                "type": "number",
                "minimum": 0,
                "default": 1.0,
                "description": "Factor of the pull; with a normalised Fisher in units of L2-SP.",
            },
            "coupling": COUPLING_OPTION,
            "labels": {
                "enum": ["sampled", "empirical", "exact"],
                "default": "sampled",
                "description": "Targets of the Fisher: drawn from the model (the true one), those of the data, or all "
                "tokens of a small vocabulary by their probability.",
            },
            "samples": {
                "type": "integer",
                "minimum": 1,
                "default": 64,
                "description": "Rows that each Fisher is measured on, chosen by the seed.",
            },
            "batch_size": {
                "type": "integer",
                "minimum": 1,
                "default": 8,
                "description": "Rows in one pass of the Fisher with sampled labels; the others go row by row.",
            },
            "normalise": {
                "type": "boolean",
                "default": True,
                "description": "Divide the Fisher by its mean, so that strength means the same for every model.",
            },
            "clip": {
                "type": ["number", "null"],
                "exclusiveMinimum": 0,
                "exclusiveMaximum": 1,
                "default": None,
                "description": "Cut the Fisher at this quantile before it is normalised, e.g. 0.999. null: never.",
            },
            "decay": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "default": 1.0,
                "description": "Weight of the Fisher of earlier stages when a stage's own is added.",
            },
            "dtype": {
                "enum": ["float32", "bfloat16"],
                "default": "float32",
                "description": "Number format that the Fisher is kept in; it is measured in float32.",
            },
            "place": PLACE_OPTION,
            "cache": {
                "type": "boolean",
                "default": True,
                "description": "Keep the base model's Fisher on disk, so that the next run need not measure it.",
            },
        },
        required=("source",),
    ),
    "l2sp": Component(
        summary="Pulls every weight to where it started, all alike (L2-SP, arXiv:1802.01483).",
        factory="harness_mitigations.l2sp:L2Sp",
        options={
            "strength": {
                "type": "number",
                "minimum": 0,
                "default": 1.0,
                "description": "Factor of the pull, in the unit of a normalised EWC.",
            },
            "coupling": COUPLING_OPTION,
            "anchor": {
                "enum": ["base", "stage"],
                "default": "base",
                "description": "What weights are pulled to: where they were before the first stage, or before each.",
            },
            "place": PLACE_OPTION,
        },
    ),
    "lr_scale": Component(
        summary="Trains with a lower learning rate: the control that every other mitigation must beat.",
        factory="harness_mitigations.lr_scale:LrScale",
        options={
            "factor": {
                "type": "number",
                "exclusiveMinimum": 0,
                "default": 0.3,
                "description": "Every stage's learning rate is multiplied by it. Usual: 0.1 to 0.3.",
            },
        },
    ),
}
