"""Words for the rows of a source, and for what the data must stand."""

from __future__ import annotations

from typing import Any

SOURCE_KEYS: dict[str, Any] = {
    "form": {
        "enum": ["auto", "alpaca", "messages", "sharegpt", "prompt_completion", "choices", "text"],
        "default": "auto",
        "description": "How a row holds a conversation. auto: told from the keys of the first 1,000 rows.",
    },
    "columns": {
        "type": "object",
        "additionalProperties": {"type": "string"},
        "default": {},
        "description": 'Standard name -> column of the data, e.g. {"instruction": "question", "output": "answer"}.',
    },
    "filter": {
        "type": "object",
        "additionalProperties": {
            "type": ["string", "number", "boolean", "null", "array"],
            "items": {"type": ["string", "number", "boolean", "null"]},
            "minItems": 1,
        },
        "default": {},
        "description": "Column of the data -> the value, or one of the values, of the rows that are kept, "
        'e.g. {"meta.language": ["en", "de"]}. A dot leads into an object; null: the column is null or not there.',
    },
    "head": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": None,
        "description": "Read no more than this many raw rows, from the first on, for data too large to be read whole. "
        "null: all.",
    },
    "rejected": {
        "type": "number",
        "minimum": 0,
        "exclusiveMaximum": 1,
        "default": 0,
        "description": "Share of bad rows (those that the filter leaves aside not counted) that a run goes on with. "
        "All are named in <output>/<name>-rejected/<source>.jsonl.",
    },
    "limit": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": None,
        "description": "Use this many different rows of those read. null: all.",
    },
    "shuffle": {
        "type": "boolean",
        "default": True,
        "description": "Whether the seed chooses the rows that `limit` leaves. false: they are the first ones.",
    },
    "held_out": {
        "type": "number",
        "minimum": 0,
        "maximum": 0.9,
        "default": 0,
        "description": "Share of the rows kept out of training for evaluation, chosen by the hash of all that is said "
        "before the first response.",
    },
    "train_on": {
        "enum": ["all", "last"],
        "default": "all",
        "description": "Train every response of a conversation, or the last one only. A message's own "
        '"train": false or "weight": 0 takes it out.',
    },
}

NEAR_DUPLICATES_KEYS: dict[str, Any] = {
    "threshold": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 1,
        "default": 0.8,
        "description": "Rows whose wording overlaps at least so much (Jaccard similarity of shingles of 5 letters, or "
        "of 2 to 3 characters in scripts without spaces) are near duplicates.",
    },
    "rows": {
        "type": ["integer", "null"],
        "minimum": 2,
        "default": 50_000,
        "description": "Training rows that are compared. Of more, so many are chosen by the seed, and it is said. "
        "A row takes about 0.2 ms and 6 kB. null: all.",
    },
    "allowed": {
        "type": ["number", "null"],
        "minimum": 0,
        "maximum": 1,
        "default": None,
        "description": "Share of the compared rows that may nearly repeat an earlier one. null: any, with a warning.",
    },
}

CONTAMINATION_KEYS: dict[str, Any] = {
    "ngram": {
        "type": "integer",
        "minimum": 2,
        "default": 13,
        "description": "So many words in a row that also stand in a training row are an overlap.",
    },
    "characters": {
        "type": "integer",
        "minimum": 2,
        "default": 20,
        "description": "The same for texts in scripts without spaces, in characters: 20 say about as much as 13 words.",
    },
    "common": {
        "type": "integer",
        "minimum": 1,
        "default": 10,
        "description": "Words in a row that stand in more training rows than this are a common phrase, and no overlap.",
    },
    "covered": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 1,
        "default": 0.5,
        "description": "A prompt or a response counts when overlaps cover at least this share of its words.",
    },
    "allowed": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": 0.0,
        "description": "Share of a suite's rows whose prompts, or plain texts, may stand in training so. One that "
        "is trained on word for word is an error all the same.",
    },
    "allowed_responses": {
        "type": ["number", "null"],
        "minimum": 0,
        "maximum": 1,
        "default": None,
        "description": "The same for responses. null: any, with a warning: a response may be what is to be learned.",
    },
}

CHECKS_KEYS: dict[str, Any] = {
    "untrained": {
        "type": ["number", "null"],
        "minimum": 0,
        "maximum": 1,
        "default": 0.01,
        "description": "Share of a source's training rows that may have no trained token left within max_length; such "
        "rows are left out, with a warning. null: any.",
    },
    "other_template": {
        "type": "boolean",
        "default": False,
        "description": "Whether a suite may have a template that renders otherwise than that of training, and a model "
        "that a run trained may go on with another one than that run's.",
    },
}
"""Beside `near_duplicates` and `contamination`."""
