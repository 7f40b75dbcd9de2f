"""Spec keys of the run: top level, `arms` and `track`."""

from __future__ import annotations

from typing import Any

from harness.spec_keys.evaluation import NAME_PATTERN
from harness.utils.formats import SPEC_FORMAT

ARMS_KEYS: dict[str, Any] = {
    "named": {
        "type": "object",
        "propertyNames": {"pattern": NAME_PATTERN},
        "additionalProperties": {"type": "object", "description": "Dotted key of the spec -> its value in this arm."},
        "default": {},
        "description": 'Name of an arm -> what it changes, e.g. {"lower_lr": {"train.learning_rate": 1e-5}}; '
        "null removes a mitigation or a suite.",
    },
    "matrix": {
        "type": "object",
        "additionalProperties": {
            "type": "array",
            "minItems": 1,
            "description": "The values of this key; each value is an arm.",
        },
        "default": {},
        "description": "Dotted key -> its values; each combination is an arm, e.g. "
        '{"train.learning_rate": [1e-5, 3e-5]}.',
    },
    "seeds": {
        "type": ["array", "integer", "null"],
        "items": {"type": "integer", "minimum": 0},
        "minItems": 1,
        "uniqueItems": True,
        "minimum": 1,
        "maximum": 1000,
        "default": None,
        "description": "Every arm runs once with each seed, e.g. [0, 1, 2]; a number n means 0 to n - 1. The runs "
        "of one arm are pooled: the intervals cover seeds and items. null: once, with the spec's seed.",
    },
    "baseline": {
        "type": ["string", "array", "null"],
        "items": {"type": "string"},
        "minItems": 1,
        "uniqueItems": True,
        "default": None,
        "description": "The arm that the others are compared with, by the same seed. Several arms are controls: the "
        "first is the baseline, and every other arm is also compared with the best of them. null: the first arm.",
    },
    "gate": {
        "type": ["string", "null"],
        "default": None,
        "description": "The arm that the gate judges. null: the recommended arm, with intervals that are widened for "
        "the choice among all arms.",
    },
    "gain_margin": {
        "type": ["number", "null"],
        "exclusiveMinimum": 0,
        "default": None,
        "description": "An arm gains about as much as the best if it is shown to gain less by at most this, in units "
        "of the gain score. null: the suite's margin, else that of its metric, e.g. 0.05 nats of an NLL.",
    },
    "forgetting_margin": {
        "type": ["number", "null"],
        "exclusiveMinimum": 0,
        "default": None,
        "description": "A value is enough if it is shown to forget more than the best by at most this, in units of the "
        "forgetting score. null: the suite's margin, else that of its metric.",
    },
    "joint": {
        "type": ["string", "null"],
        "default": None,
        "description": "An arm that trains on all tasks together. How much less another arm reaches on its tasks is "
        "that arm's "
        "intransigence. The joint arm is a reference and never recommended. null: none.",
    },
    "gain": {
        "type": ["string", "null"],
        "default": None,
        "description": 'The score to improve, as "suite/score". null: the primary score of the first domain suite.',
    },
    "forgetting": {
        "type": ["string", "null"],
        "default": None,
        "description": 'What must not be lost: a score against the base model, as "suite/score", or a summary of the '
        "stage "
        'x suite matrix, as "summary:score", e.g. "forgetting:response_nll". null: of the first general suite, the '
        "score that is named like the gain if it measures more than wording, else the primary score.",
    },
}

TRACK_KEYS: dict[str, Any] = {
    "enabled": {"type": "boolean", "default": True, "description": "Whether the run is tracked."},
}

TOP_LEVEL_KEYS: dict[str, Any] = {
    "extends": {
        "type": ["string", "array"],
        "items": {"type": "string"},
        "minItems": 1,
        "description": "The spec, or the specs, that this one builds on; its own keys override theirs, and null "
        "removes a source, a mitigation or a suite.",
    },
    "profiles": {
        "type": "object",
        "additionalProperties": {"type": "object", "description": "Keys of the spec that this profile overrides."},
        "description": 'Name of a machine or a purpose -> what it overrides, e.g. {"gpu": {"train": {"batch_size": '
        "32}}}.",
    },
    "profile": {
        "type": ["string", "null"],
        "description": "The chosen profile, usually set as `--set profile=gpu`. null: none.",
    },
    "$schema": {"type": "string", "description": "The schema, for editors."},
    "format": {
        "type": "integer",
        "minimum": 1,
        "maximum": SPEC_FORMAT,
        "default": SPEC_FORMAT,
        "description": "The format of the spec. Set it in specs that you keep: another version of harness then names "
        "the version that reads it.",
    },
    "name": {"type": "string", "pattern": NAME_PATTERN, "description": "Names the run's folder and its MLflow run."},
    "description": {"type": "string", "default": "", "description": "The purpose of this run, in your words."},
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
        "description": "Folder in which run folders are created, relative to the working directory.",
    },
}
