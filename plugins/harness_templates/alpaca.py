"""Stanford Alpaca's prompt (Taori et al., 2023, github.com/tatsu-lab/stanford_alpaca), with and without an input.

The published prompt ends at "### Response:", and the answer follows directly. A tokenizer may then join the colon and
the first letters of the answer into one token. As in most later uses of the format, a line break separates them here.
"""

from __future__ import annotations

from harness import Component
from harness_templates.base import HeadingsTemplate

COMPONENTS: dict[str, Component] = {
    "alpaca": Component(
        summary="Stanford Alpaca's instruction prompt, with and without an input; supports several turns.",
        factory="harness_templates.alpaca:Alpaca",
    ),
    "instruction_zh": Component(
        summary="Chinese instruction prompt: ### 指令: / ### 输入: / ### 回答:, with and without an input.",
        factory="harness_templates.alpaca:InstructionZh",
    ),
}


class Alpaca(HeadingsTemplate):
    """Alpaca's English prompt."""

    name = "alpaca"
    instruction_heading = "### Instruction:\n"
    input_heading = "### Input:\n"
    response_heading = "### Response:\n"
    preface = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    )
    preface_with_input = (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
    )


class InstructionZh(HeadingsTemplate):
    """The prompt with Chinese headings."""

    name = "instruction_zh"
    instruction_heading = "### 指令:\n"
    input_heading = "### 输入:\n"
    response_heading = "### 回答:\n"
