"""Prompt rows with fixed responses, for the tests of `Mitigation.generate_rows` without generation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harness.interfaces.prompt_rows import PromptRows
from harness.types import Example, Message, WrittenPrompt, WrittenResponse

FINISHES = ("eos", "stop", "length", "empty", "no_prompt")


class FixedPromptRows(PromptRows):
    """Rows whose prompts and responses do not depend on the model; they end for each reason in turn.

    The text of a prompt or response has the seed, so that another seed writes other rows.
    """

    def write_responses(
        self,
        model: Any,
        *,
        max_new_tokens: int,
        temperature: float,
        top_p: float = 1.0,
        batch_size: int = 32,
        seed: int,
    ) -> Iterator[WrittenResponse]:
        """Yield one response for each row."""
        for index, example in enumerate(self.examples):
            finish = FINISHES[index % len(FINISHES)]
            text = "" if finish in ("empty", "no_prompt") else f"answer {index} of seed {seed}"
            yield WrittenResponse(example, text, finish, len(text.split()))

    def write_prompts(
        self,
        model: Any,
        count: int,
        *,
        max_new_tokens: int,
        temperature: float,
        top_p: float = 1.0,
        batch_size: int = 32,
        seed: int,
    ) -> Iterator[WrittenPrompt]:
        """Yield prompts; the last one is cut."""
        for index in range(count):
            text = f"What is {index} in seed {seed}?"
            yield WrittenPrompt(text, "length" if index == count - 1 else "eos", len(text.split()), -1.0)


def build_prompt_rows(source: str = "chat", count: int = 10) -> FixedPromptRows:
    """Return rows of one question and one answer each."""
    examples = [
        Example(
            f"{index:016x}",
            (Message("user", f"Question {index}?"), Message("assistant", f"Answer {index}.")),
            f"{source}.jsonl:{index + 1}",
        )
        for index in range(count)
    ]
    return FixedPromptRows(source, examples)
