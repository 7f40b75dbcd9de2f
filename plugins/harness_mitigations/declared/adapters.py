"""What is declared of the mitigations that put an adapter on the model."""

from __future__ import annotations

from harness import Component

COMPONENTS: dict[str, Component] = {
    "lora": Component(
        summary="Trains low-rank adapters beside frozen weights (LoRA, arXiv:2106.09685, and its variants).",
        factory="harness_mitigations.lora:Lora",
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
            "rslora": {
                "type": "boolean",
                "default": False,
                "description": "Scale by alpha / sqrt(rank), which suits high ranks (rsLoRA, arXiv:2312.03732).",
            },
            "dora": {
                "type": "boolean",
                "default": False,
                "description": "Learn magnitude and direction of each output apart (DoRA, arXiv:2402.09353).",
            },
            "start": {
                "enum": ["zero", "pissa", "olora", "corda"],
                "default": "zero",
                "description": "What the adapter starts from: no change, or a part of the weight that is then trained.",
            },
            "source": {
                "type": ["string", "null"],
                "format": "source",
                "default": None,
                "description": "For corda: whose rows keep their outputs, usually general conversations.",
            },
            "samples": {
                "type": "integer",
                "minimum": 1,
                "default": 256,
                "description": "For corda: rows that the inputs' covariance is measured on, chosen by the seed.",
            },
        },
        typical_ranges={"train.learning_rate": (5e-5, 1e-3), "train.epochs": (1, 5)},
    ),
    "orthogonal_lora": Component(
        summary="Gives every stage an adapter of its own, orthogonal to earlier ones (O-LoRA, arXiv:2310.14152).",
        factory="harness_mitigations.orthogonal_lora:OrthogonalLora",
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
            "strength": {
                "type": "number",
                "minimum": 0,
                "default": 0.5,
                "description": "Factor of the summed overlap with earlier stages' directions; the paper's is 0.5.",
            },
        },
        typical_ranges={"train.learning_rate": (5e-5, 1e-3), "train.epochs": (1, 5)},
    ),
    "osf": Component(
        summary="Trains each weight within the directions that it uses least (OSF, arXiv:2504.07097).",
        factory="harness_mitigations.osf:Osf",
        options={
            "preserve": {
                "type": "number",
                "exclusiveMinimum": 0,
                "exclusiveMaximum": 1,
                "default": 0.5,
                "description": "Share of each weight's singular values, the largest, that is frozen.",
            },
            "target": {
                "type": ["string", "array"],
                "items": {"type": "string"},
                "minItems": 1,
                "default": "all-linear",
                "description": 'Names of the modules that get an adapter; "all-linear": all but the output head.',
            },
        },
        typical_ranges={"train.learning_rate": (1e-6, 2e-4)},
    ),
    "oft": Component(
        summary="Trains a rotation of each layer's inputs, block by block (OFT, arXiv:2306.07280).",
        factory="harness_mitigations.oft:Oft",
        options={
            "block": {
                "type": "integer",
                "minimum": 2,
                "default": 32,
                "description": "Size of the blocks; must divide the width of every adapted layer's input.",
            },
            "exact": {
                "type": "boolean",
                "default": False,
                "description": "Rotate exactly, by a matrix inverse, instead of by five terms of its series.",
            },
            "dropout": {
                "type": "number",
                "minimum": 0,
                "exclusiveMaximum": 1,
                "default": 0.0,
                "description": "Share of the blocks that do not rotate in a training step.",
            },
            "target": {
                "type": ["string", "array"],
                "items": {"type": "string"},
                "minItems": 1,
                "default": "all-linear",
                "description": 'Names of the modules that get an adapter; "all-linear": all but the output head.',
            },
        },
        typical_ranges={"train.learning_rate": (5e-5, 2e-3)},
    ),
}
