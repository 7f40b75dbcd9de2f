"""What is declared of the mitigations that go over old rows again."""

from __future__ import annotations

from harness import Component

COMPONENTS: dict[str, Component] = {
    "replay": Component(
        summary="Trains later stages on some rows of the earlier ones again.",
        factory="harness_mitigations.replay:Replay",
        options={
            "share": {
                "type": "number",
                "exclusiveMinimum": 0,
                "exclusiveMaximum": 1,
                "default": 0.1,
                "description": "Share of a later stage's final mixture, of all earlier stages together, in `unit`.",
            },
            "unit": {
                "enum": ["loss_tokens", "tokens", "rows"],
                "default": "loss_tokens",
                "description": "What the share is a share of, counted after truncation.",
            },
            "buffer": {
                "type": ["integer", "null"],
                "minimum": 1,
                "default": None,
                "description": "Rows kept of each earlier source at most, chosen by the seed; null: all.",
            },
        },
    ),
}
