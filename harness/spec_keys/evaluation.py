"""Words for suites, and for the conditions that their scores must meet."""

from __future__ import annotations

from typing import Any

_FRACTION: dict[str, Any] = {"type": ["number", "null"], "minimum": 0, "maximum": 1, "default": None}

SERVER_KEYS: dict[str, Any] = {
    "url": {
        "type": "string",
        "pattern": "^https?://",
        "description": "Where its API begins, e.g. http://127.0.0.1:8000/v1.",
    },
    "model": {
        "type": "string",
        "minLength": 1,
        "description": "The model's name there; {stage} in it becomes the number of the stage, 0 for the base.",
    },
    "key_env": {
        "type": ["string", "null"],
        "pattern": "^[A-Za-z_][A-Za-z0-9_]*$",
        "default": None,
        "description": "The environment variable that holds the API key. The key itself never stands in a spec.",
    },
    "prompts": {
        "enum": ["tokens", "text"],
        "default": "tokens",
        "description": "Send prompts as the token ids that training sees, or as their text.",
    },
    "concurrency": {"type": "integer", "minimum": 1, "default": 8, "description": "Requests under way at once."},
    "timeout": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 300,
        "description": "Seconds to wait for one answer.",
    },
    "retries": {
        "type": "integer",
        "minimum": 0,
        "default": 4,
        "description": "Further tries after a failure that may pass, with growing pauses.",
    },
    "body": {
        "type": "object",
        "default": {},
        "description": 'Further fields of each request, e.g. {"stop_token_ids": [2]} for vLLM.',
    },
}

SUITE_KEYS: dict[str, Any] = {
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
        "default": 512,
        "description": "Longest answer that is generated, in tokens; what is cut here is counted as truncated.",
    },
    "batch_size": {
        "type": "integer",
        "minimum": 1,
        "default": 32,
        "description": "Rows evaluated at once; halved where memory runs out.",
    },
    "plain": {
        "type": "boolean",
        "default": False,
        "description": "Ask with the plain text and not by the template, as base models are asked; for generation and "
        "multiple choice.",
    },
    "stop": {
        "type": "array",
        "items": {"type": "string", "minLength": 1},
        "default": [],
        "description": "Further strings that end an answer, beside the template's own; none is implied.",
    },
    "temperature": {
        "type": "number",
        "minimum": 0,
        "default": 0,
        "description": "0: the likeliest token each time. Above: drawn, each item by its own seed, whatever its batch.",
    },
    "top_p": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 1,
        "default": 1,
        "description": "Draw from the likeliest tokens that hold this probability together.",
    },
    "delimiter": {
        "type": "string",
        "default": " ",
        "description": "Stands between question and choice where the template is off.",
    },
    "lang": {
        "type": "string",
        "pattern": "^(auto|[a-z]{2,3})$",
        "default": "auto",
        "description": "Language of the references, e.g. zh, for the metrics that have `lang`. auto: told by script.",
    },
    "max_empty": {**_FRACTION, "description": "Share of empty answers over which the run fails. null: any."},
    "max_truncated": {
        **_FRACTION,
        "description": "Share of answers cut off at max_new_tokens over which the run fails. null: any.",
    },
    "max_unparsed": {
        **_FRACTION,
        "description": "Share of answers that a metric could not read over which the run fails. null: any.",
    },
    "max_cut": {
        **_FRACTION,
        "description": "Share of items with a prompt or reference cut at max_length over which the run fails. "
        "null: any.",
    },
    "server": {
        "type": ["object", "null"],
        "properties": SERVER_KEYS,
        "required": ["url", "model"],
        "additionalProperties": False,
        "default": None,
        "description": "Let an OpenAI-compatible server (vLLM, llama.cpp, …) generate the answers. null: here.",
    },
}

GATE_DESCRIPTION = (
    """One condition: a score, and one test of it, e.g. {"score": "general/response_nll", "rises_at_most": 0.05}."""
)

GATE_KEYS: dict[str, Any] = {
    "score": {
        "type": "string",
        "minLength": 1,
        "description": 'The score that is judged, as "suite/score"; of a summary the score\'s name alone.',
    },
    "summary": {
        "type": ["string", "null"],
        "enum": [
            None,
            "average_accuracy",
            "learning_accuracy",
            "backward_transfer",
            "forward_transfer",
            "forgetting",
            "forgetting_since_learned",
            "forgetting_from_best",
            "general_ability_delta",
            "relative_forgetting",
        ],
        "default": None,
        "description": "A number drawn from the stage x suite matrix of the score, in place of one suite's score.",
    },
    "judge_by": {
        "enum": ["bound", "value"],
        "default": "bound",
        "description": "bound: the end of the 95 % interval that is nearest to breaking it; value: the score itself.",
    },
    **{
        name: {"type": "number", "description": description}
        for name, description in {
            "rises_at_most": "The score may rise by at most this over the base model.",
            "rises_at_least": "The score must rise by at least this over the base model.",
            "falls_at_most": "The score may fall by at most this below the base model.",
            "falls_at_least": "The score must fall by at least this below the base model.",
            "gains_at_least": "The score must get better by at least this, up or down as the metric has it.",
            "loses_at_most": "The score may get worse by at most this, up or down as the metric has it.",
            "at_least": "The score must end at this or above.",
            "at_most": "The score must end at this or below.",
        }.items()
    },
}


NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
