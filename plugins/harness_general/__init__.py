"""Presets that measure general ability without own data, and general rows for training, in English and Chinese.

The rows are files of this package, `v1/README.md` describes them. Rows of a published version never change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness import Preset, PresetSuite, hookimpl

__all__ = ["VERSION", "harness_presets"]

VERSION = "v1"
"""Folder of the rows that the presets use."""

LIKELIHOOD: Mapping[str, Any] = {"response_perplexity": {}}


def _preset(lang: str, summary: str) -> Preset:
    """Return the preset of one language."""

    def suite(kind: str, metrics: Mapping[str, Any], *, keep: tuple[str, ...] = (), max_new_tokens: int) -> PresetSuite:
        options: dict[str, Any] = {"path": f"pkg://{__name__}/{VERSION}/{lang}/{kind}.jsonl"}
        if keep:
            options["keep"] = list(keep)
        settings = {"role": "general", "lang": lang, "max_new_tokens": max_new_tokens, "metrics": dict(metrics)}
        return PresetSuite({"jsonl": options}, settings)

    exact = {"exact_match": {"normalise": [], "extract": None}, **LIKELIHOOD}
    return Preset(
        summary,
        {
            "everyday": suite("everyday", LIKELIHOOD, max_new_tokens=64),
            "instructions": suite(
                "instructions", {"instructions": {}}, keep=("instruction_id_list", "kwargs"), max_new_tokens=96
            ),
            "knowledge": suite("knowledge", {"multiple_choice": {}}, max_new_tokens=16),
            "arithmetic": suite("arithmetic", {"numeric_match": {}, **LIKELIHOOD}, max_new_tokens=24),
            "reading": suite("reading", {"token_f1": {}, **LIKELIHOOD}, max_new_tokens=24),
            "safety": suite("safety", {"refusal": {"column": "refuse"}}, keep=("refuse",), max_new_tokens=48),
            "code": suite("code", exact, max_new_tokens=24),
        },
    )


@hookimpl
def harness_presets() -> dict[str, Preset]:
    """Return the presets `general` (English) and `general-zh` (Chinese)."""
    kinds = "everyday tasks, instructions, knowledge, arithmetic, reading, safety and code"
    return {
        "general": _preset("en", f"General ability in English: {kinds}."),
        "general-zh": _preset("zh", f"General ability in Chinese: {kinds}."),
    }
