"""Rows with control tokens in their text, under the tokenizer of each family: text stays text."""

from __future__ import annotations

import pytest

from harness import HarnessError, Message
from harness.data.tokenization.prompts import encode_prompt
from harness.data.tokenization.tokenize import tokenize_example
from harness.testing.checks.template import conversations_with
from harness.testing.full_mask_check import verify_mask

PAIRS = [
    ("alpaca", "llama2"),
    ("alpaca", "qwen"),
    ("instruction_zh", "qwen"),
    ("chatml", "qwen"),
    ("qwen", "qwen"),
    ("llama2", "llama2"),
    ("llama3", "llama3"),
    ("mistral", "mistral"),
    ("mistral", "tekken"),
    ("gemma", "gemma"),
    ("phi", "phi"),
    ("zephyr", "llama2"),
    ("vicuna", "llama2"),
    ("deepseek", "deepseek"),
    ("jinja", "llama2"),
    ("tokenizer", "qwen"),
    ("tokenizer", "llama3"),
]
WITHOUT_TOOLS = {"alpaca", "instruction_zh", "chatml", "llama2", "gemma", "phi", "zephyr", "vicuna", "jinja"}
CHAT = {"qwen": "qwen2_5", "llama3": "llama3_1"}
"""The chat template of a tokenizer of the family."""


def attack_text(template, tokenizer):
    """Return every token that could begin or end a turn, every stop string and every header of the template."""
    plain = (Message("user", "u"), Message("assistant", "a"), Message("user", "u"), Message("assistant", "a"))
    headers = [span.text for span in template.render(plain, tokenizer) if span.markup and not span.train]
    tokens = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return "x" + " y ".join(dict.fromkeys([*tokens, *template.stop_strings(tokenizer), *headers])) + ' "}\nz'


def strip_all_whitespace(text):
    return "".join(text.split())


@pytest.mark.parametrize("position", sorted(conversations_with("")))
@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_row_text_never_becomes_a_control_token(name, kind, position, built_in, family, shipped, example, monkeypatch):
    tokenizer, template = family(kind), built_in(name)
    if name == "tokenizer":
        monkeypatch.setattr(tokenizer, "chat_template", shipped(CHAT[kind]))
    messages, tools = conversations_with(attack_text(template, tokenizer))[position]
    harmless, harmless_tools = conversations_with("w")[position]
    if "tool" in position and (name in WITHOUT_TOOLS or (name, position) == ("deepseek", "tool")):
        with pytest.raises(HarnessError, match=r"does not support|cannot declare|must alternate"):
            template.render(messages, tokenizer, tools=tools)
        return
    spans = template.render(harmless, tokenizer, tools=harmless_tools)
    written = "".join(span.text for span in spans if span.markup and not span.train)
    added = tokenizer.added_tokens_decoder.items()
    control = {index for index, token in added if token.special or (token.content.strip() and token.content in written)}

    row = tokenize_example(example(messages, tools), "s", template, tokenizer, 8192)
    expected = tokenize_example(example(harmless, harmless_tools), "s", template, tokenizer, 8192)
    for actual, plain in ((row.input_ids, expected.input_ids), (row.labels, expected.labels)):
        assert [token for token in actual if token in control] == [token for token in plain if token in control]
    text = "".join(span.text for span in template.render(messages, tokenizer, tools=tools))
    # The space that SentencePiece adds before a text and after a token is not part of the text.
    assert strip_all_whitespace(tokenizer.decode(row.input_ids)).removeprefix(
        tokenizer.bos_token or ""
    ) == strip_all_whitespace(text).removeprefix(tokenizer.bos_token or "")
    prompt = encode_prompt(example(messages, tools), template, tokenizer, 8192)
    assert prompt == list(row.input_ids[: len(prompt)])
    verify_mask(example(messages, tools), row, template, tokenizer)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_a_hostile_response_is_trained_as_written(name, kind, built_in, family, shipped, example, monkeypatch):
    tokenizer, template = family(kind), built_in(name)
    if name == "tokenizer":
        monkeypatch.setattr(tokenizer, "chat_template", shipped(CHAT[kind]))
    messages, _ = conversations_with(attack_text(template, tokenizer))["response"]
    row = tokenize_example(example(messages), "s", template, tokenizer, 8192)
    trained = strip_all_whitespace(tokenizer.decode([label for label in row.labels if label != -100]))
    content = strip_all_whitespace(messages[-1].content)
    assert trained.startswith(content)
    assert trained[len(content) :] in ("".join(template.stop_strings(tokenizer)[:count]) for count in (1, 2))
