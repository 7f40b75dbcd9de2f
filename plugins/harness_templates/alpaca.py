"""Stanford Alpaca's prompt (Taori et al., 2023, github.com/tatsu-lab/stanford_alpaca), both of its variants.

The published prompt ends at "### Response:" and the answer follows at once, where a tokenizer may join the colon and
the first letters of the answer into one token. As in most later uses of the format, a line break stands between them.
"""

from __future__ import annotations

from harness_templates.base import Headings


class Alpaca(Headings):
    """Alpaca's English prompt."""

    name = "alpaca"
    instruction = "### Instruction:\n"
    input = "### Input:\n"
    response = "### Response:\n"
    preface = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    )
    preface_with_input = (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
    )


class InstructionZh(Headings):
    """The prompt with Chinese headings."""

    name = "instruction_zh"
    instruction = "### 指令:\n"
    input = "### 输入:\n"
    response = "### 回答:\n"
