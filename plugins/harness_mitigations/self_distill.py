"""Mitigation `self_distill`: the base model rewrites the responses of the domain's rows in its own words.

Self-distillation fine-tuning (SDFT, Yang et al., 2024, arXiv:2402.13669): responses that are likely under the base
model change it less. A rewritten response is used only where it agrees with that of the data; the others stay as they
are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from harness_metrics.numeric_match import final_number

from harness import (
    Component,
    Example,
    HarnessError,
    InvalidRecord,
    Message,
    Mitigation,
    PromptRows,
    Stage,
    WrittenResponse,
)
from harness_mitigations.response_writer import WRITING_PROPERTIES, ResponseWriter, word_f1

INSTRUCTION = (
    "Below are an instruction and a reference answer to it. With the reference answer as a guide, write your own "
    "response to the instruction.\n\n"
    "### Instruction:\n{prompt}\n\n### Reference answer:\n{response}\n\n### Response:"
)
"""What the base model is asked, after the authors' prompt (github.com/sail-sg/sdft)."""

ECHOES = ("reference answer", "your own response", "### ")
"""Texts of a response that repeats the instruction instead of following it."""

COMPONENTS: dict[str, Component] = {
    "self_distill": Component(
        summary="Lets the base model rewrite the domain's responses, where the result agrees with them (SDFT).",
        factory="harness_mitigations.self_distill:SelfDistill",
        options={
            "min_f1": {
                "type": "number",
                "minimum": 0,
                "maximum": 1,
                "default": 0.4,
                "description": "A rewritten response is used if the F1 of its words and those of the data's response "
                "is at least this; 0: any.",
            },
            "same_number": {
                "type": "boolean",
                "default": True,
                "description": "A rewritten response is used only if its last number is that of the data's response; "
                "both may have none.",
            },
            "instruction": {
                "type": "string",
                "default": INSTRUCTION,
                "description": "What the base model is asked, with {prompt} and {response} of the row.",
            },
            **{name: WRITING_PROPERTIES[name] for name in ("max_new_tokens", "temperature", "top_p", "max_repetition")},
        },
    ),
}


class SelfDistill(Mitigation):
    """Train on the base model's rewriting of the domain's responses, where it agrees with them.

    Args:
        min_f1: smallest F1 of the words of both responses, in [0, 1].
        same_number: whether the last numbers of both responses must be equal.
        instruction: what the base model is asked, with `{prompt}` and `{response}`.
        max_new_tokens: see `ResponseWriter`.
        temperature: see `ResponseWriter`.
        top_p: see `ResponseWriter`.
        max_repetition: see `ResponseWriter`.

    Raises:
        HarnessError: `instruction` lacks the prompt or the response.
    """

    works_on_shards = True

    def __init__(
        self,
        min_f1: float,
        same_number: bool,
        instruction: str,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        max_repetition: float,
    ) -> None:
        missing = [field for field in ("{prompt}", "{response}") if field not in instruction]
        if missing:
            what = f"the instruction does not contain {' and '.join(missing)}"
            raise HarnessError("mitigations.self_distill.instruction", what, f"write {missing[0]} where it belongs")
        self.min_f1, self.same_number, self.instruction = min_f1, same_number, instruction
        self.writer = ResponseWriter(None, max_new_tokens, temperature, top_p, max_repetition)

    def transform_stages(self, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        """Return the stages, whose domain rows are written by the base model."""
        return tuple(
            replace(
                stage,
                sources=tuple(
                    replace(part, written_by="self_distill") if part.role == "domain" else part
                    for part in stage.sources
                ),
            )
            for stage in stages
        )

    def generation_settings(self) -> Mapping[str, Any]:
        """Return what is asked, how the base model writes, and what is used."""
        checks = {"min_f1": self.min_f1, "same_number": self.same_number, "instruction": self.instruction}
        return {**self.writer.settings(), "writer": "self_distill|version:1", **checks}

    def generate_rows(
        self, stage: Stage, model: Any, prompts: PromptRows, *, seed: int
    ) -> Iterator[Example | InvalidRecord]:
        """Yield each row with the rewritten response, or why that is not used and the row of the data."""
        examples = list(prompts.examples)
        asked = {
            index: question
            for index, example in enumerate(examples)
            if (question := self._rewriting_prompt(example)) is not None
        }
        responses = replace(prompts, examples=list(asked.values())).write_responses(
            model,
            max_new_tokens=self.writer.max_new_tokens,
            temperature=self.writer.temperature,
            top_p=self.writer.top_p,
            seed=seed,
        )
        rewritten = dict(zip(asked, responses, strict=True))
        for index, example in enumerate(examples):
            response = rewritten.get(index)
            reason = "not a plain request" if response is None else self._why_unused(response)
            if response is not None and reason is None:
                last = replace(example.messages[-1], content=response.text.strip())
                yield replace(example, messages=(*example.messages[:-1], last))
            else:
                yield InvalidRecord(example.location, str(reason), raw=response and response.text)
                yield example

    def _rewriting_prompt(self, example: Example) -> Example | None:
        """Return the row with the question that asks to rewrite its response; None if it has another form."""
        if len(example.messages) < 2 or example.tools or example.choices:
            return None
        request, response = example.messages[-2:]
        if request.role != "user" or response.tool_calls or response.reasoning is not None:
            return None
        texts = {
            "{prompt}": f"{request.content}\n\n{request.input}" if request.input else request.content,
            "{response}": response.content,
        }
        question = re.sub(r"\{prompt\}|\{response\}", lambda match: texts[match[0]], self.instruction)
        return replace(example, messages=(*example.messages[:-2], Message("user", question), response))

    def _why_unused(self, response: WrittenResponse) -> str | None:
        """Return why a rewritten response is not used, as the report counts it; None if it is."""
        if reason := self.writer.why_unused(response):
            return reason
        if any(echo in response.text.lower() for echo in ECHOES):
            return "repeats the instruction"
        reference = response.example.messages[-1].content
        if self.same_number and final_number(response.text) != final_number(reference):
            return "another last number"
        return f"F1 below {self.min_f1:g}" if word_f1(response.text, reference) < self.min_f1 else None
