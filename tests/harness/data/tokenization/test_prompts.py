"""The header and the end of a user's turn, found in the template."""

from __future__ import annotations

import pytest

from harness import HarnessError, Span, Template, registry
from harness.data.tokenization.prompts import encode_user_turn
from harness.data.tokenization.tokenize import tokenize_example
from harness.types import Example, Message

PREFACE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
CASES = [
    ("chatml", {"system": None}, "<|im_start|>user\n", "<|im_end|>"),
    ("chatml", {"system": "A Qw!"}, "<|im_start|>system\nA Qw!<|im_end|>\n<|im_start|>user\n", "<|im_end|>"),
    ("tokenizer", {"variables": {}, "date": "2024-07-26"}, "<|im_start|>user\n", "<|im_end|>"),
    ("alpaca", {}, f"{PREFACE}\n\n### Instruction:\n", "### Response:"),
]


@pytest.mark.parametrize(("name", "options", "header", "end"), CASES)
def test_header_and_end_are_exactly_those_of_the_template(tokenizer, name, options, header, end):
    template = registry.discover_plugins().create("templates", name, options)
    turn = encode_user_turn(template, tokenizer)
    assert tokenizer.decode(turn.header_ids) == header
    assert turn.end == end
    row = Example("1", (Message("user", "Why?"), Message("assistant", "So.")), "x:1")
    trained = tokenize_example(row, "x", template, tokenizer, 1000).input_ids
    assert trained[: len(turn.header_ids)] == turn.header_ids


class Bare(Template):
    """Writes nothing before the user's text."""

    name = "bare"

    def render(self, messages, tokenizer, *, add_generation_prompt=False, tools=()):
        return tuple(Span(message.content, train=message.role == "assistant") for message in messages)

    def stop_strings(self, tokenizer):
        return ("</s>",)


def test_a_template_without_a_header_is_refused(tokenizer):
    with pytest.raises(HarnessError, match="the template bare writes nothing before a user's text"):
        encode_user_turn(Bare(), tokenizer)
