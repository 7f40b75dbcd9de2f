"""The mitigations that come with harness: ways to forget less."""

from __future__ import annotations

from harness import Component, hookimpl

__all__ = ["harness_mitigations"]


@hookimpl
def harness_mitigations() -> dict[str, Component]:
    return {
        "mixing": Component(
            summary="Mixes a stated share of general conversations into every stage.",
            load="harness_mitigations.mixing:Mixing",
            options={
                "share": {
                    "type": "number",
                    "exclusiveMinimum": 0,
                    "exclusiveMaximum": 1,
                    "default": 0.1,
                    "description": "Share of the final mixture, in `unit`. Usual: 0.05 to 0.1.",
                },
                "unit": {
                    "enum": ["loss_tokens", "tokens", "rows"],
                    "default": "loss_tokens",
                    "description": "What the share is a share of, counted after truncation.",
                },
                "source": {
                    "type": ["string", "null"],
                    "format": "source",
                    "default": None,
                    "description": "The general source, for stages that have none of their own.",
                },
            },
        ),
        "lora": Component(
            summary="Trains low-rank adapters beside frozen weights (LoRA, arXiv:2106.09685).",
            load="harness_mitigations.lora:Lora",
            options={
                "rank": {
                    "type": "integer",
                    "minimum": 1,
                    "default": 16,
                    "description": "Rank of each adapter. Usual: 8 to 64.",
                },
                "alpha": {
                    "type": ["number", "null"],
                    "exclusiveMinimum": 0,
                    "default": None,
                    "description": "The adapter's output is scaled by alpha / rank. null: twice the rank.",
                },
                "dropout": {
                    "type": "number",
                    "minimum": 0,
                    "exclusiveMaximum": 1,
                    "default": 0.0,
                    "description": "Dropout before each adapter while training.",
                },
                "target": {
                    "type": ["string", "array"],
                    "items": {"type": "string"},
                    "minItems": 1,
                    "default": "all-linear",
                    "description": 'Names of the modules that get an adapter; "all-linear": all but the output head.',
                },
            },
            usual={"train.learning_rate": (5e-5, 1e-3), "train.epochs": (1, 5)},
        ),
        "ewc": Component(
            summary="Pulls each weight to where it was by its Fisher information (EWC, arXiv:1612.00796).",
            load="harness_mitigations.ewc:Ewc",
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
                "labels": {
                    "enum": ["sampled", "empirical"],
                    "default": "sampled",
                    "description": "Targets of the Fisher: drawn from the model (the true one), or those of the data.",
                },
                "samples": {
                    "type": "integer",
                    "minimum": 1,
                    "default": 64,
                    "description": "Rows that each Fisher is measured on, chosen by the seed.",
                },
                "normalise": {
                    "type": "boolean",
                    "default": True,
                    "description": "Divide the Fisher by its mean, so that strength means the same for every model.",
                },
                "decay": {
                    "type": "number",
                    "minimum": 0,
                    "maximum": 1,
                    "default": 1.0,
                    "description": "Weight of the Fisher of earlier stages when a stage's own is added.",
                },
            },
            required=("source",),
        ),
    }
