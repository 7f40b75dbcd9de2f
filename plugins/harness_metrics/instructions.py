"""Verifiable instructions, as in IFEval: the share of them that the answers follow."""

from __future__ import annotations

from typing import Any

from harness import Component, ComponentExample, HarnessError, Item
from harness_metrics.base import RatioMetric
from harness_metrics.instruction_checks import bind_checks, loose_variants

COMPONENTS: dict[str, Component] = {
    "instructions": Component(
        summary="Fraction of instructions that the answers follow, checked by rules as in IFEval, 0 to 1.",
        factory="harness_metrics.instructions:Instructions",
        example=ComponentExample(
            data={
                "instruction_id_list": ["keywords:existence", "punctuation:no_comma"],
                "kwargs": [{"keywords": ["cat"]}, {}],
            },
            worse="dogs, run",
        ),
    ),
}


class Instructions(RatioMetric):
    """Accuracy of following verifiable instructions, 0 to 1 (Zhou et al., 2023, IFEval, arXiv:2311.07911).

    `instruction_prompt` counts the prompts of which all instructions are followed, `instruction_single` the
    instructions. Both are strict: they judge the answer as it is. `instruction_prompt_loose` and
    `instruction_single_loose` also accept an answer that follows them without its first or last line, or without
    asterisks. They are IFEval's `prompt_level_strict_acc`, `inst_level_strict_acc` and their loose counterparts. A
    blank answer follows nothing.

    Each row has `instruction_id_list`, the types of its instructions, and `kwargs`, the arguments of each; the source
    keeps both. The types and arguments of IFEval's published prompts are known, and some more; see
    `harness_metrics.instruction_checks`. The reference is not used.

    Statistics of each: followed prompts or instructions, their number.
    """

    requires = "answer"
    score_names = (
        "instruction_prompt",
        "instruction_single",
        "instruction_prompt_loose",
        "instruction_single_loose",
    )

    def signature(self) -> str:
        """Return version of the checks."""
        return "instructions|checks:ifeval+added|sentences:harness1|language:harness2|version:1"

    def statistics(self, item: Item) -> dict[str, tuple[float, ...]]:
        """Return followed and all prompts and instructions of the item, strict and loose.

        Raises:
            HarnessError: The item has no answer, or no instructions that are known.
        """
        if item.answer is None:
            raise HarnessError(f"item {item.id}", "has no answer to score", "generate answers for its suite first")
        ids, arguments = (_kept(item, column) for column in ("instruction_id_list", "kwargs"))
        checks = bind_checks(f"item {item.id}", ids, arguments)
        strict = [check(item.answer) for check in checks]
        loose = [any(check(variant) for variant in loose_variants(item.answer)) for check in checks]
        return {
            "instruction_prompt": (float(all(strict)), 1.0),
            "instruction_single": (float(sum(strict)), float(len(strict))),
            "instruction_prompt_loose": (float(all(loose)), 1.0),
            "instruction_single_loose": (float(sum(loose)), float(len(loose))),
        }


def _kept(item: Item, column: str) -> Any:
    """Return a kept column, which may be nested: `document.kwargs` for `kwargs`."""
    return next((value for key, value in item.data.items() if key.rpartition(".")[2] == column), None)
