"""The templates that come with harness: ways to render a conversation as text with its trained spans."""

from __future__ import annotations

from typing import Any

from harness import Component, hookimpl

__all__ = ["harness_templates"]

# What the two templates that run a Jinja chat template have in common.
CHAT: dict[str, Any] = {
    "variables": {
        "type": "object",
        "default": {},
        "description": 'Further variables for the chat template, e.g. {"enable_thinking": false}.',
    },
    "date": {
        "type": "string",
        "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$",
        "default": "2024-07-26",
        "description": "The date for chat templates that print today's, so that a run does not depend on the day.",
    },
    "train_on": {
        "enum": ["all", "last"],
        "default": "all",
        "description": "Which responses of a conversation are trained. last: for chat templates that rewrite earlier "
        "turns, such as those that drop earlier reasoning.",
    },
}


@hookimpl
def harness_templates() -> dict[str, Component]:
    return {
        "alpaca": Component(
            summary="Stanford Alpaca's instruction prompt, with and without an input, several turns included.",
            load="harness_templates.alpaca:Alpaca",
        ),
        "chatml": Component(
            summary="ChatML: <|im_start|>role … <|im_end|>, for tokenizers that have these two tokens.",
            load="harness_templates.chatml:ChatML",
            options={
                "system": {
                    "type": ["string", "null"],
                    "default": None,
                    "description": "The system message of conversations that have none. null: no system turn.",
                },
            },
        ),
        "llama2": Component(
            summary="Llama 2's chat format: [INST] … [/INST] with a <<SYS>> block, one <s> … </s> a turn.",
            load="harness_templates.llama2:Llama2",
        ),
        "instruction_zh": Component(
            summary="Chinese instruction prompt: ### 指令: / ### 输入: / ### 回答:, with and without an input.",
            load="harness_templates.instruction_zh:InstructionZh",
        ),
        "tokenizer": Component(
            summary="The chat template that the model's own tokenizer carries.",
            load="harness_templates.tokenizer:TokenizerTemplate",
            options=CHAT,
        ),
        "jinja": Component(
            summary="A chat template given in the spec, in the Jinja dialect of Hugging Face tokenizers, sandboxed.",
            load="harness_templates.jinja:JinjaTemplate",
            options={
                "template": {
                    "type": ["string", "null"],
                    "minLength": 1,
                    "default": None,
                    "description": "The chat template itself. Give this or `file`.",
                },
                "file": {
                    "type": ["string", "null"],
                    "format": "path",
                    "default": None,
                    "description": "A UTF-8 file that holds the chat template. Give this or `template`.",
                },
                **CHAT,
            },
        ),
    }
