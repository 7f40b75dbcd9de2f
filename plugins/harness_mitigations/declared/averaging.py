"""What is declared of the mitigations that average weights."""

from __future__ import annotations

from harness import Component

COMPONENTS: dict[str, Component] = {
    "wise_ft": Component(
        summary="Interpolates the weights with those a stage began with (WiSE-FT, arXiv:2109.01903).",
        factory="harness_mitigations.wise_ft:WiseFt",
        options={
            "alpha": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "default": 0.5,
                "description": "Share of what the stage learned that stays; 1: all of it, 0: nothing.",
            },
            "alphas": {
                "type": "array",
                "items": {"type": "number", "minimum": 0, "maximum": 1},
                "uniqueItems": True,
                "default": [],
                "description": "A sweep: the suites are evaluated at each of these too, e.g. [0, 0.25, 0.5, 0.75, 1].",
            },
        },
    ),
    "ema": Component(
        summary="Ends each stage with an exponential moving average of its weights.",
        factory="harness_mitigations.ema:Ema",
        options={
            "decay": {
                "type": "number",
                "minimum": 0,
                "exclusiveMaximum": 1,
                "default": 0.99,
                "description": "What the average keeps at an update; it reaches back about 1 / (1 - decay) updates.",
            },
        },
    ),
}
