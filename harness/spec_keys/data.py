"""Spec keys of a source's rows and of `checks`."""

from __future__ import annotations

from typing import Any

BUILT_IN_FORMS = ("auto", "alpaca", "messages", "sharegpt", "prompt_completion", "choices", "text")
"""The values of `form` that are not components of plugins."""

HELD_OUT_KEYS: dict[str, Any] = {
    "share": {
        "type": ["number", "null"],
        "exclusiveMinimum": 0,
        "maximum": 0.9,
        "default": None,
        "description": "Fraction of the rows to hold out, with `group` or `near_duplicates` as nearly as whole groups "
        "allow.",
    },
    "group": {
        "type": ["string", "null"],
        "minLength": 1,
        "default": None,
        "description": "Column of the data whose equal values are held out together, such as a customer. A dot selects "
        "a nested key.",
    },
    "near_duplicates": {
        "type": "boolean",
        "default": False,
        "description": "Whether near duplicates are held out together. `checks.near_duplicates.threshold` says which "
        "rows are.",
    },
    "column": {
        "type": ["string", "null"],
        "minLength": 1,
        "default": None,
        "description": "Column of the data with a date, a time or a number, which `from` is compared with. A dot "
        "selects a nested key.",
    },
    "from": {
        "type": ["string", "number", "null"],
        "default": None,
        "description": "Rows whose `column` is at least this are held out: an ISO 8601 date or time, such as "
        "2026-01-31 (UTC without an offset), or a number.",
    },
}
"""The keys of a source's `held_out` as an object."""

SOURCE_KEYS: dict[str, Any] = {
    "form": {
        "default": "auto",
        "description": "The row format: a built-in one, or one of a plugin with its options. auto: a built-in one, "
        "detected from the keys of the first 1,000 rows.",
    },
    "columns": {
        "type": "object",
        "additionalProperties": {"type": "string"},
        "default": {},
        "description": 'Standard name -> column of the data, e.g. {"instruction": "question", "output": "answer"}. '
        "`role` and `content` name the keys of a message.",
    },
    "roles": {
        "type": "object",
        "additionalProperties": {"enum": ["system", "user", "assistant", "tool", "function_call"]},
        "default": {},
        "description": 'Role in the data -> standard role, e.g. {"customer": "user", "agent": "assistant"}.',
    },
    "reasoning": {
        "enum": ["keep", "drop"],
        "default": "keep",
        "description": "Whether the reasoning of a message (reasoning_content, reasoning or thinking) is passed to the "
        "template and trained.",
    },
    "system": {
        "enum": ["keep", "drop"],
        "default": "keep",
        "description": "Whether the system messages of the data are part of the conversation.",
    },
    "filter": {
        "type": "object",
        "additionalProperties": {
            "type": ["string", "number", "boolean", "null", "array"],
            "items": {"type": ["string", "number", "boolean", "null"]},
            "minItems": 1,
        },
        "default": {},
        "description": "Column of the data -> the value, or list of values, of the rows to keep, "
        'e.g. {"meta.language": ["en", "de"]}. A dot selects a nested key; null: the column is null or missing.',
    },
    "keep": {
        "type": "array",
        "items": {"type": "string", "minLength": 1},
        "uniqueItems": True,
        "default": [],
        "description": "Other columns of the data that metrics receive as `Item.data`, such as the arguments of a "
        "checker. A dot selects a nested key; a row without the column has null.",
    },
    "head": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": None,
        "description": "Read at most this many raw rows, starting with the first, for data too large to read "
        "completely. "
        "null: all.",
    },
    "incomplete": {
        "enum": ["error", "drop"],
        "default": "error",
        "description": "A conversation whose last turn is not the assistant's: it is invalid, or the turns after the "
        "last response are dropped.",
    },
    "first_assistant": {
        "enum": ["error", "context", "drop"],
        "default": "error",
        "description": "A conversation that begins with the assistant: it is invalid, its first turn is kept and not "
        "trained, or that turn is dropped.",
    },
    "merge_turns": {
        "type": "boolean",
        "default": False,
        "description": "Whether successive turns of the user, or of the assistant, are joined with a line break. "
        "false: such a conversation is invalid.",
    },
    "rejected": {
        "type": "number",
        "minimum": 0,
        "exclusiveMaximum": 1,
        "default": 0,
        "description": "Allowed fraction of invalid rows (rows that the filter drops are not counted). "
        "All are listed in <output>/<name>-rejected/<source>.jsonl.",
    },
    "limit": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": None,
        "description": "Use at most this many of the rows. null: all.",
    },
    "shuffle": {
        "type": "boolean",
        "default": True,
        "description": "Whether the seed selects the rows that `limit` keeps. false: the first rows.",
    },
    "held_out": {
        "type": ["number", "object"],
        "minimum": 0,
        "maximum": 0.9,
        "default": 0,
        "additionalProperties": False,
        "properties": HELD_OUT_KEYS,
        "description": "Rows held out of training for evaluation. A number: this fraction, selected by the hash of the "
        "prompt (all turns before the first response). An object: by group, by near duplicates, or by time.",
    },
    "train_on": {
        "enum": ["all", "last", "each"],
        "default": "all",
        "description": "Train every response of a conversation, or only the last one. each: one row for each response, "
        "which ends with it and trains only it, for chat templates that rewrite earlier turns. A message with "
        '"train": false, "loss": false, "weight": 0 or "loss_weight": 0 is not trained.',
    },
}

NEAR_DUPLICATES_KEYS: dict[str, Any] = {
    "threshold": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 1,
        "default": 0.8,
        "description": "Rows are near duplicates if their text overlaps at least this much (Jaccard similarity of "
        "shingles of "
        "5 letters, or of 2 to 3 characters in scripts without spaces).",
    },
    "rows": {
        "type": ["integer", "null"],
        "minimum": 2,
        "default": 50_000,
        "description": "Maximum number of training rows to compare. Of more rows, the seed selects a sample, which "
        "is reported. "
        "A row takes about 0.2 ms and 6 kB. null: all.",
    },
    "allowed": {
        "type": ["number", "null"],
        "minimum": 0,
        "maximum": 1,
        "default": None,
        "description": "Allowed fraction of near duplicates among the compared rows. null: any, with a warning.",
    },
}

CONTAMINATION_KEYS: dict[str, Any] = {
    "ngram": {
        "type": "integer",
        "minimum": 2,
        "default": 13,
        "description": "N-gram length, in words, that counts as overlap with a training row.",
    },
    "characters": {
        "type": "integer",
        "minimum": 2,
        "default": 20,
        "description": "The same in characters, for scripts without spaces; 20 characters correspond to about 13 "
        "words.",
    },
    "common": {
        "type": "integer",
        "minimum": 1,
        "default": 10,
        "description": "An n-gram that occurs in more training rows than this is a common phrase and is not an "
        "overlap.",
    },
    "covered": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 1,
        "default": 0.5,
        "description": "A prompt or response is contaminated if overlaps cover at least this fraction of its words.",
    },
    "allowed": {
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "default": 0.0,
        "description": "Allowed fraction of a suite's rows with a contaminated prompt or plain text. A row that is "
        "trained "
        "word for word is always an error.",
    },
    "drop": {
        "type": ["boolean", "string"],
        "enum": [False, True, "training"],
        "default": False,
        "description": "Whether contaminated rows are left out of their suite (true), counted and named, instead of "
        "compared with `allowed`. training: the training rows that share text with them are left out of training "
        "instead. Responses count only if `allowed_responses` is set.",
    },
    "allowed_responses": {
        "type": ["number", "null"],
        "minimum": 0,
        "maximum": 1,
        "default": None,
        "description": "The same for responses. null: any, with a warning, since a response may be what the model "
        "should learn.",
    },
}

PLUGIN_CHECK_KEYS: dict[str, Any] = {
    "allowed": {
        "type": ["number", "null"],
        "minimum": 0,
        "maximum": 1,
        "default": None,
        "description": "Allowed fraction of rows with a finding, in each source and suite. More is an error. 0: none. "
        "null: any, with a warning.",
    },
}

CHECKS_KEYS: dict[str, Any] = {
    "duplicates": {
        "enum": ["warn", "drop"],
        "default": "warn",
        "description": "Training rows that are equal in two sources: a warning, or only the row of the source that "
        "the stages name first is trained. Equal rows of one source always count once.",
    },
    "untrained": {
        "type": ["number", "null"],
        "minimum": 0,
        "maximum": 1,
        "default": 0.01,
        "description": "Allowed fraction of a source's training rows without a trained token within max_length; such "
        "rows are dropped, with a warning. null: any.",
    },
    "other_template": {
        "type": "boolean",
        "default": False,
        "description": "Whether a suite may use a template that renders differently from that of training, and a "
        "continued "
        "run a different template from the earlier run.",
    },
}
"""The keys of `checks` other than `near_duplicates` and `contamination`."""
