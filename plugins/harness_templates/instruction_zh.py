"""The Chinese instruction prompt: 指令 (instruction), 输入 (input), 回答 (response), without a preface."""

from __future__ import annotations

from harness_templates.headings import Headings


class InstructionZh(Headings):
    """The prompt with Chinese headings."""

    name = "instruction_zh"
    instruction = "### 指令:\n"
    input = "### 输入:\n"
    response = "### 回答:\n"
