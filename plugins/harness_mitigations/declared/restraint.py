"""What is declared of the mitigations that keep weights from moving."""

from __future__ import annotations

from harness import Component

COMPONENTS: dict[str, Component] = {
    "freeze": Component(
        summary="Keeps the embeddings, the lowest layers or named weights out of training.",
        factory="harness_mitigations.freeze:Freeze",
        options={
            "embeddings": {
                "type": "boolean",
                "default": True,
                "description": "The input embeddings; where the head shares their weights, the head too.",
            },
            "layers": {
                "type": "integer",
                "minimum": 0,
                "default": 0,
                "description": "How many of the lowest layers.",
            },
            "patterns": {
                "type": "array",
                "items": {"type": "string"},
                "default": [],
                "description": 'Shell patterns of whole names of weights, e.g. "*.mlp.*"; each must match one.',
            },
        },
    ),
}
