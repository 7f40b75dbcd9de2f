"""Spec keys of suites and of gate conditions."""

from __future__ import annotations

from typing import Any

_FRACTION: dict[str, Any] = {"type": ["number", "null"], "minimum": 0, "maximum": 1, "default": None}

SERVER_KEYS: dict[str, Any] = {
    "url": {
        "type": "string",
        "pattern": "^https?://",
        "description": "Base URL of its API, e.g. http://127.0.0.1:8000/v1.",
    },
    "model": {
        "type": "string",
        "minLength": 1,
        "description": "The model's name on the server; {stage} is replaced by the stage number, 0 for the base model.",
    },
    "key_env": {
        "type": ["string", "null"],
        "pattern": "^[A-Za-z_][A-Za-z0-9_]*$",
        "default": None,
        "description": "The environment variable that contains the API key. Never write the key itself into a spec.",
    },
    "prompts": {
        "enum": ["tokens", "text"],
        "default": "tokens",
        "description": "Send prompts as token ids, equal to those of training, or as text.",
    },
    "chat": {
        "type": "boolean",
        "default": False,
        "description": "Send messages to /chat/completions, so that the server renders them by its own chat template. "
        "The number of tokens of each prompt and a sample of greedy answers must equal those of the run. `prompts` is "
        "not used.",
    },
    "tolerance": {
        "type": ["number", "null"],
        "minimum": 0,
        "default": 0.5,
        "description": "With `chat`: nats by which a token of a sampled answer may be less likely than the run's own "
        "choice, because the server rounds otherwise. null: answers are not compared.",
    },
    "concurrency": {"type": "integer", "minimum": 1, "default": 8, "description": "Number of concurrent requests."},
    "timeout": {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 300,
        "description": "Seconds to wait for an answer.",
    },
    "retries": {
        "type": "integer",
        "minimum": 0,
        "default": 4,
        "description": "Number of retries after a temporary failure, with growing pauses.",
    },
    "body": {
        "type": "object",
        "default": {},
        "description": 'Additional fields of each request, e.g. {"stop_token_ids": [2]} for vLLM.',
    },
}

SUITE_KEYS: dict[str, Any] = {
    "source": {
        "type": "string",
        "format": "source",
        "description": "The source of the held-out rows: its held_out fraction, or all its rows if it has none.",
    },
    "role": {
        "enum": ["domain", "general"],
        "default": "domain",
        "description": "Whether the suite measures what the model should learn, or what it should not forget.",
    },
    "primary": {
        "type": ["string", "null"],
        "minLength": 1,
        "default": None,
        "description": "The score by which the verdict of a run judges the suite. null: the first score that has a "
        "better direction; in a general suite the NLL of the responses, if that score only compares wording.",
    },
    "margin": {
        "type": ["number", "null"],
        "exclusiveMinimum": 0,
        "default": None,
        "description": "The largest loss of the primary score that does not count as forgetting, in its own units. "
        "null: the metric's default, e.g. 0.02 of an accuracy or ROUGE, 0.05 nats of an NLL, 5 % of a perplexity.",
    },
    "group": {
        "type": ["string", "null"],
        "minLength": 1,
        "default": None,
        "description": "The column that names the group of each row, such as its document, customer or template. Items "
        "of one group may depend on each other; intervals, tests and the 30-item rule then count groups. null: all "
        "items are independent.",
    },
    "slice_by": {
        "type": "array",
        "items": {"type": "string", "minLength": 1},
        "uniqueItems": True,
        "default": [],
        "description": "Columns of the rows, such as the language or the topic. The report has the primary score for "
        "each of their values.",
    },
    "limit": {
        "type": ["integer", "null"],
        "minimum": 1,
        "default": None,
        "description": "Evaluate at most this many rows, selected by the seed. null: all.",
    },
    "max_new_tokens": {
        "type": "integer",
        "minimum": 1,
        "default": 512,
        "description": "Maximum length of an answer, in tokens; longer answers are cut and counted as truncated.",
    },
    "batch_size": {
        "type": "integer",
        "minimum": 1,
        "default": 64,
        "description": "Answers generated at once, and rows in a padded batch; halved when memory runs out.",
    },
    "plain": {
        "type": "boolean",
        "default": False,
        "description": "Prompt with the plain text instead of the template, as for base models; for generation and "
        "multiple choice.",
    },
    "stop": {
        "type": "array",
        "items": {"type": "string", "minLength": 1},
        "default": [],
        "description": "Additional strings that end an answer, besides the template's stop strings.",
    },
    "temperature": {
        "type": "number",
        "minimum": 0,
        "default": 0,
        "description": "0: greedy decoding. Above 0: sampling; each item has its own seed, independent of its batch.",
    },
    "top_p": {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 1,
        "default": 1,
        "description": "Sample from the most likely tokens with this total probability.",
    },
    "samples": {
        "type": "integer",
        "minimum": 1,
        "default": 1,
        "description": "Number of answers to each prompt, for metrics such as pass_at_k. Several need a temperature "
        "above 0. The first is the answer of all other metrics.",
    },
    "delimiter": {
        "type": "string",
        "default": " ",
        "description": "The text between question and choice if the template is not used.",
    },
    "lang": {
        "type": "string",
        "pattern": "^(auto|[a-z]{2,3})$",
        "default": "auto",
        "description": "Language of the references, e.g. zh, for metrics with a `lang` option. auto: detected by "
        "script.",
    },
    "max_empty": {**_FRACTION, "description": "Fraction of empty answers above which the run fails. null: any."},
    "max_truncated": {
        **_FRACTION,
        "description": "Fraction of answers truncated at max_new_tokens above which the run fails. null: any.",
    },
    "max_unparsed": {
        **_FRACTION,
        "description": "Fraction of answers that a metric could not parse above which the run fails. null: any.",
    },
    "max_cut": {
        **_FRACTION,
        "description": "Fraction of items with a prompt or reference truncated at max_length above which the run "
        "fails. "
        "null: any.",
    },
    "server": {
        "type": ["object", "null"],
        "properties": SERVER_KEYS,
        "required": ["url", "model"],
        "additionalProperties": False,
        "default": None,
        "description": "Let an OpenAI-compatible server (vLLM, llama.cpp, …) generate the answers. null: generate "
        "locally.",
    },
}

PRESET_KEYS: dict[str, Any] = {
    "preset": {
        "type": "string",
        "description": "A preset: ready-made suites with their rows and metrics, instead of `source` and `metrics`. "
        "They are called by your name, a dash and their kind, e.g. general-arithmetic. Other keys of the suite apply "
        "to each of them.",
    },
    "suites": {
        "type": "array",
        "items": {"type": "string", "minLength": 1},
        "minItems": 1,
        "uniqueItems": True,
        "description": "The suites of the preset to evaluate. Without it: all.",
    },
}

KEYS_OF_PRESET_SUITES = ("source", "metrics", "primary", "margin")
"""Keys that each suite of a preset has for itself."""

GATE_DESCRIPTION = (
    """One condition: a score and one test, e.g. {"score": "general/response_nll", "rises_at_most": 0.05}."""
)

GATE_KEYS: dict[str, Any] = {
    "score": {
        "type": "string",
        "minLength": 1,
        "description": 'The score to judge, as "suite/score"; for a summary the score\'s name alone.',
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
        "description": "Judge a summary of the score's stage x suite matrix instead of one suite's score.",
    },
    "judge_by": {
        "enum": ["bound", "value"],
        "default": "bound",
        "description": "bound: the end of the 95 % interval that is nearest to failing; value: the score itself.",
    },
    "tier": {
        "enum": ["blocks", "warns"],
        "default": "blocks",
        "description": "blocks: the gate passes only if this condition does; warns: it is only reported.",
    },
    **{
        name: {"type": "number", "description": description}
        for name, description in {
            "rises_at_most": "The score may rise by at most this over the base model.",
            "rises_at_least": "The score must rise by at least this over the base model.",
            "falls_at_most": "The score may fall by at most this below the base model.",
            "falls_at_least": "The score must fall by at least this below the base model.",
            "gains_at_least": "The score must improve by at least this, in the metric's direction.",
            "loses_at_most": "The score may get worse by at most this, in the metric's direction. A primary score "
            "without any test may get worse by at most its margin.",
            "at_least": "The score must end at this or above.",
            "at_most": "The score must end at this or below.",
        }.items()
    },
}


MAX_NAME_LENGTH = 100
"""Characters of a name. Names become names of files, which have at most 255 bytes with what is added to them."""

NAME_PATTERN = rf"^[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME_LENGTH - 1}}}$"
