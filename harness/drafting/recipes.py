"""Recipes: what a drafted spec changes for a common task. `harness recipes` lists them.

A recipe is merged into the spec that `harness init` drafts for your files, so it has only what differs.

`$domain` is the name of the first file, `$general_suite` the suite of forgetting, `"$stages"` one stage for each file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LARGE_MODEL = {"path": "Qwen/Qwen3-4B-Instruct-2507"}
LORA = {"rank": 16}


@dataclass(frozen=True)
class Recipe:
    """A common task.

    Attributes:
        summary: One sentence.
        spec: What it changes in the drafted spec; null removes a mitigation or a suite.
        goal: The goal of the draft.
        min_files: Number of files that it needs.
    """

    summary: str
    spec: Mapping[str, Any]
    goal: str = "ship"
    min_files: int = 1


RECIPES: dict[str, Recipe] = {
    "own-file": Recipe("Your file with LoRA, and a gate: the default of --goal ship.", {}),
    "laptop": Recipe(
        "A small model on a CPU: short rows, one row at a time, two passes.",
        {"train": {"batch_size": 1, "accumulation": 8, "epochs": 2, "max_length": 512}},
    ),
    "lora-24gb": Recipe(
        "A model with 4 billion weights on a GPU with 24 GB, LoRA in bfloat16.",
        {
            "model": LARGE_MODEL,
            "template": "tokenizer",
            "train": {"batch_size": 2, "accumulation": 8, "learning_rate": 1e-4, "gradient_checkpointing": "auto"},
        },
    ),
    "full-fine-tuning": Recipe(
        "All weights with a low learning rate, no adapter.",
        {"mitigations": {"lora": None}, "train": {"learning_rate": 1e-5}},
    ),
    "keep-general": Recipe(
        "A low learning rate, a quarter general conversations, and predictions kept near the base model's.",
        {
            "mitigations": {"mixing": {"share": 0.25}, "kl": {"source": "general"}, "lora": LORA},
            "train": {"learning_rate": 5e-5},
        },
    ),
    "compare-mitigations": Recipe(
        "Which method forgets least: full fine-tuning at three learning rates, LoRA, mixing, and kl.",
        {},
        goal="compare",
    ),
    "compare-shares": Recipe(
        "How much general data is enough: 0, 5, 10 and 25 % of the trained tokens.",
        {
            "gate": [],
            "arms": {
                "matrix": {"mitigations.mixing.share": [0, 0.05, 0.1, 0.25]},
                "gain": "$domain/response_nll",
                "forgetting": "$general_suite/response_nll",
            },
        },
    ),
    "monthly-update": Recipe(
        "One stage for each file, in their order, with a replay of the earlier ones.",
        {
            "gate": [],
            "mode": {"continual": {"stages": "$stages"}},
            "mitigations": {"mixing": None, "replay": {"share": 0.1}},
        },
        min_files=2,
    ),
    "support-desk-zh": Recipe(
        "Chinese customer service: a model that knows Chinese, its own chat template, likelihood and chrF.",
        {
            "model": {"path": "Qwen/Qwen3-0.6B"},
            "template": {"tokenizer": {"variables": {"enable_thinking": False}}},
            "train": {"learning_rate": 1e-4},
        },
    ),
    "tool-calls": Recipe(
        "Conversations with tools: rows in OpenAI's messages with tools and tool_calls.",
        {"model": LARGE_MODEL, "template": "tokenizer", "train": {"max_length": 4096, "learning_rate": 1e-4}},
    ),
    "reasoning": Recipe(
        "Responses with their reasoning, with the chat template of a reasoning model.",
        {
            "model": {"path": "Qwen/Qwen3-1.7B"},
            "template": "tokenizer",
            "train": {"max_length": 4096, "learning_rate": 1e-4},
        },
    ),
}
"""Name -> recipe, in the order of the list."""


def fill_placeholders(value: Any, domains: Sequence[str], general_suite: str) -> Any:
    """Return a part of a recipe for the sources `domains` and the suite `general_suite`: see the module."""
    if isinstance(value, Mapping):
        return {key: fill_placeholders(child, domains, general_suite) for key, child in value.items()}
    if isinstance(value, list):
        return [fill_placeholders(child, domains, general_suite) for child in value]
    if value == "$stages":
        return [{"name": name, "domain": [name]} for name in domains]
    if not isinstance(value, str):
        return value
    return value.replace("$domain", domains[0]).replace("$general_suite", general_suite)
