"""What is declared of the mitigations that choose data."""

from __future__ import annotations

from harness import Component

COMPONENTS: dict[str, Component] = {
    "mixing": Component(
        summary="Mixes a stated share of general conversations into every stage.",
        factory="harness_mitigations.mixing:Mixing",
        options={
            "share": {
                "type": "number",
                "minimum": 0,
                "exclusiveMaximum": 1,
                "default": 0.1,
                "description": "Share of the final mixture, in `unit`; 0: no general row. Usual: 0.05 to 0.1.",
            },
            "unit": {
                "enum": ["loss_tokens", "tokens", "rows"],
                "default": "loss_tokens",
                "description": "What the share is a share of, counted after truncation.",
            },
            "source": {
                "type": ["string", "array", "null"],
                "format": "source",
                "items": {"type": "string", "format": "source"},
                "minItems": 1,
                "uniqueItems": True,
                "default": None,
                "description": "The general source, or several, for stages that have none of their own.",
            },
            "weights": {
                "type": ["object", "null"],
                "additionalProperties": {"type": "number", "exclusiveMinimum": 0},
                "minProperties": 1,
                "default": None,
                "description": "General source -> its part of the share, in any measure; null: evenly.",
            },
            "temperature": {
                "type": ["number", "null"],
                "exclusiveMinimum": 0,
                "default": None,
                "description": "Splits the share as size ** (1 / temperature) of each source. Usual: 1 to 5. "
                "1: in proportion to the sizes; null: evenly.",
            },
            "upsample": {
                "type": "boolean",
                "default": False,
                "description": "Repeat general rows within an epoch where there are too few for the share.",
            },
            "resample": {
                "type": "boolean",
                "default": False,
                "description": "Draw other general rows for every epoch, those not seen yet first.",
            },
        },
    ),
}
