"""Words for a run as a whole: its name, its arms, where it is tracked."""

from __future__ import annotations

from typing import Any

from harness.spec_keys.evaluation import NAME_PATTERN

ARMS_KEYS: dict[str, Any] = {
    "named": {
        "type": "object",
        "propertyNames": {"pattern": NAME_PATTERN},
        "additionalProperties": {"type": "object", "description": "Dotted key of the spec -> its value in this arm."},
        "default": {},
        "description": 'Name of an arm -> what it changes, e.g. {"lower_lr": {"train.learning_rate": 1e-5}}; '
        "null takes a mitigation or a suite out.",
    },
    "matrix": {
        "type": "object",
        "additionalProperties": {
            "type": "array",
            "minItems": 1,
            "description": 'The values of this key, e.g. "seed": [0, 1]; each makes an arm.',
        },
        "default": {},
        "description": 'Dotted key -> its values; an arm for each combination, e.g. {"seed": [0, 1, 2]}.',
    },
    "baseline": {
        "type": ["string", "null"],
        "default": None,
        "description": "The arm that the others are compared with. null: the first.",
    },
    "joint": {
        "type": ["string", "null"],
        "default": None,
        "description": "An arm that trains on all tasks together: what its stages reach less than it is each other "
        "arm's intransigence. It is a reference, and never recommended. null: there is none.",
    },
    "gain": {
        "type": ["string", "null"],
        "default": None,
        "description": 'What an arm is to gain, as "suite/score". null: the first score of the first domain suite.',
    },
    "forgetting": {
        "type": ["string", "null"],
        "default": None,
        "description": 'What it is not to lose: against the base model, as "suite/score"; or by a summary of the stage '
        'x suite matrix, as "summary:score", e.g. "forgetting:response_nll". null: the first score of the first '
        "general suite.",
    },
}

TRACK_KEYS: dict[str, Any] = {
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
    "system_metrics": {
        "type": "boolean",
        "default": True,
        "description": "Whether CPU, memory, disk, network and GPUs are watched, as system metrics of the run.",
    },
    "model": {
        "enum": ["none", "files", "transformers"],
        "default": "none",
        "description": "Whether the trained model goes to MLflow too: its files as artifacts, or in the form of "
        "mlflow.transformers, which loads it once more at the end of the run.",
    },
    "register": {
        "type": ["string", "null"],
        "minLength": 1,
        "default": None,
        "description": "Name in MLflow's model registry that the logged model becomes a version of. null: none.",
    },
}

TOP_LEVEL_KEYS: dict[str, Any] = {
    "$schema": {"type": "string", "description": "Where an editor finds this schema."},
    "name": {"type": "string", "pattern": NAME_PATTERN, "description": "Names the run's folder and its MLflow run."},
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
