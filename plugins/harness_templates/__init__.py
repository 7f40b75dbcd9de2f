"""The templates that come with harness: ways to render a conversation as text with its trained spans."""

from __future__ import annotations

from typing import Any

from harness import Component, hookimpl

__all__ = ["harness_templates"]

VICUNA_SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
QWEN_SYSTEM_PROMPT = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."


def system_option(default: str | None, null_meaning: str) -> dict[str, Any]:
    """The option for conversations without a system message. null_meaning: what null means."""
    description = f"The system message of conversations that have none. null: {null_meaning}."
    return {"system": {"type": ["string", "null"], "default": default, "description": description}}


def date_option(shown_by: str) -> dict[str, Any]:
    """The option for today's date, which would make a run depend on the day."""
    return {
        "date": {
            "type": "string",
            "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$",
            "default": "2024-07-26",
            "description": f"What {shown_by} tells as today's date, so that a run does not depend on the day.",
        }
    }


# What the two templates that run a Jinja chat template have in common.
CHAT_TEMPLATE_OPTIONS: dict[str, Any] = {
    "variables": {
        "type": "object",
        "default": {},
        "description": 'Further variables for the chat template, e.g. {"enable_thinking": false}.',
    },
    **date_option("a chat template that prints it"),
}


@hookimpl
def harness_templates() -> dict[str, Component]:
    return {
        "alpaca": Component(
            summary="Stanford Alpaca's instruction prompt, with and without an input, several turns included.",
            factory="harness_templates.alpaca:Alpaca",
        ),
        "chatml": Component(
            summary="ChatML: <|im_start|>role … <|im_end|>, for tokenizers that have these two tokens.",
            factory="harness_templates.chatml:ChatML",
            options=system_option(None, "no system turn"),
        ),
        "qwen": Component(
            summary="Qwen's format: ChatML with a default system message, tools as <tool_call> and <tool_response>.",
            factory="harness_templates.qwen:Qwen",
            options=system_option(QWEN_SYSTEM_PROMPT, "none of its own, as in Qwen3's chat template"),
        ),
        "llama2": Component(
            summary="Llama 2's chat format: [INST] … [/INST] with a <<SYS>> block, one <s> … </s> a turn.",
            factory="harness_templates.llama:Llama2",
        ),
        "llama3": Component(
            summary="Llama 3's format, by default as of 3.1 to 3.3 with its dated system turn and tools.",
            factory="harness_templates.llama:Llama3",
            options={
                "version": {
                    "enum": ["3.1", "3"],
                    "default": "3.1",
                    "description": "3.1: of Llama 3.1, 3.2 and 3.3: each conversation begins with a system turn that "
                    "tells the date, and tools have a place. 3: of Llama 3, the turns alone.",
                },
                **date_option("the system turn of 3.1"),
            },
        ),
        "mistral": Component(
            summary="Mistral's [INST] format of the v3 tokenizers, with tools as [AVAILABLE_TOOLS] and [TOOL_CALLS].",
            factory="harness_templates.mistral:Mistral",
            options={
                "version": {
                    "enum": ["v3", "v3-tekken"],
                    "default": "v3",
                    "description": "v3: of SentencePiece tokenizers (Mistral 7B v0.3, Mixtral 8x22B). "
                    "v3-tekken: of Tekken tokenizers (Mistral Nemo, Ministral 8B), without spaces.",
                },
                "system_turn": {
                    "enum": ["last", "first"],
                    "default": "last",
                    "description": "The user message that carries the system message and the tools. "
                    "last: as published, but responses before it cannot be trained. first: every response can.",
                },
            },
        ),
        "gemma": Component(
            summary="Gemma's format, of 1 to 3: <start_of_turn>user … <end_of_turn>, the assistant called model.",
            factory="harness_templates.gemma:Gemma",
        ),
        "phi": Component(
            summary="Phi-3's format: <|user|> … <|end|>, the end-of-sequence token after the last response.",
            factory="harness_templates.phi:Phi",
        ),
        "zephyr": Component(
            summary="Zephyr's format: <|user|> … </s>, its headers plain text.",
            factory="harness_templates.zephyr:Zephyr",
            options=system_option(None, "no system turn"),
        ),
        "vicuna": Component(
            summary="Vicuna's format, of v1.1 to v1.5: USER: … ASSISTANT: … </s>, its headers plain text.",
            factory="harness_templates.vicuna:Vicuna",
            options=system_option(VICUNA_SYSTEM_PROMPT, "nothing stands first"),
        ),
        "deepseek": Component(
            summary="DeepSeek-V3's format: <｜User｜> … <｜Assistant｜> …, with calls of tools and their answers.",
            factory="harness_templates.deepseek:DeepSeek",
        ),
        "instruction_zh": Component(
            summary="Chinese instruction prompt: ### 指令: / ### 输入: / ### 回答:, with and without an input.",
            factory="harness_templates.alpaca:InstructionZh",
        ),
        "tokenizer": Component(
            summary="The chat template that the model's own tokenizer carries, tools included.",
            factory="harness_templates.jinja:TokenizerTemplate",
            options=CHAT_TEMPLATE_OPTIONS,
        ),
        "jinja": Component(
            summary="A chat template given in the spec, in the Jinja dialect of Hugging Face tokenizers, sandboxed.",
            factory="harness_templates.jinja:JinjaTemplate",
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
                **CHAT_TEMPLATE_OPTIONS,
            },
        ),
    }
