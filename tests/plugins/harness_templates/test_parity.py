"""Each format compared token for token with the family's chat template, and its mask with TRL's."""

from __future__ import annotations

import json

import pytest

from harness import Message
from harness.data.tokenization.prompts import encode_prompt, encode_user_turn
from harness.data.tokenization.tokenize import tokenize_example
from harness.testing.full_mask_check import verify_mask

SHAPES = ["single", "multi", "system", "system_multi"]
PLAIN = [
    # template, options, tokenizer, chat template from TRL, whether it supports a system message
    ("llama3", {"version": "3"}, "llama3", "llama3", True),
    ("llama3", {}, "llama3", "llama3_1", True),
    ("llama3", {}, "llama3", "llama3_2", True),
    ("qwen", {}, "qwen", "qwen2_5", True),
    ("qwen", {"system": None}, "qwen", "qwen3_instruct_2507", True),
    ("chatml", {}, "qwen", "qwen3_instruct_2507", True),
    ("gemma", {}, "gemma", "gemma", False),
    ("gemma", {}, "gemma", "gemma3", True),
    ("phi", {}, "phi", "phi3", True),
    ("phi", {}, "phi", "phi3_5", True),
    ("deepseek", {}, "deepseek", "deepseekv3", True),
]
CASES = [(*case[:4], shape) for case in PLAIN for shape in SHAPES if case[4] or "system" not in shape]
PADDED = {"": "as they are", " \n": "padded"}


def published_tokens(tokenizer, dicts, source, **options):
    """Return the tokens of the family's chat template, with the date of Llama 3.1's in Llama 3.2's."""
    source = source.replace("strftime_now is defined", "false")
    return tokenizer.apply_chat_template(dicts, chat_template=source, return_dict=False, **options)


@pytest.mark.parametrize("padding", PADDED, ids=PADDED.values())
@pytest.mark.parametrize(("name", "options", "tokenizer", "source", "shape"), CASES)
def test_parity_token_for_token(
    name, options, tokenizer, source, shape, padding, make, family, shipped, conversations, as_dicts, example
):
    template, tokenizer = make(name, **options), family(tokenizer)
    # A padded system message is stripped by some and not by others; each format does as its family does.
    messages = [Message(m.role, padding + m.content + padding) for m in conversations[shape]]
    theirs = published_tokens(tokenizer, as_dicts(messages), shipped(source))
    row = tokenize_example(example(messages), "s", template, tokenizer, 4096)
    assert list(row.input_ids) == theirs
    verify_mask(example(messages), row, template, tokenizer)

    prompt = published_tokens(tokenizer, as_dicts(messages[:-1]), shipped(source), add_generation_prompt=True)
    if source == "deepseekv3":  # TRL's file is that of a model that reasons; DeepSeek-V3's prompt ends at its header
        opened = tokenizer("<think>\n", add_special_tokens=False).input_ids
        assert prompt[-len(opened) :] == opened
        prompt = prompt[: -len(opened)]
    assert encode_prompt(example(messages), template, tokenizer, 4096) == prompt


@pytest.mark.parametrize(("name", "options", "tokenizer", "source", "_"), PLAIN)
def test_the_header_of_a_users_turn_is_that_of_the_family(
    name, options, tokenizer, source, _, make, family, shipped, as_dicts
):
    template, tokenizer = make(name, **options), family(tokenizer)
    dicts = as_dicts([Message("user", "Hello"), Message("assistant", "Bye")])
    header, rest = published_tokens(tokenizer, dicts, shipped(source), tokenize=False).split("Hello")
    turn = encode_user_turn(template, tokenizer)
    assert list(turn.header_ids) == tokenizer(header, add_special_tokens=False).input_ids
    assert turn.end
    assert rest.startswith(turn.end)


TOOLED = [
    ("llama3", {}, "llama3", "llama3_1"),
    ("llama3", {}, "llama3", "llama3_2"),
    ("qwen", {}, "qwen", "qwen2_5"),
    ("qwen", {"system": None}, "qwen", "qwen3_instruct_2507"),
    ("deepseek", {}, "deepseek", "deepseekv3"),
]


@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize(("name", "options", "tokenizer", "source"), TOOLED)
def test_parity_with_tools_token_for_token(
    name, options, tokenizer, source, system, make, family, shipped, calling, weather, as_dicts, example
):
    template, tokenizer = make(name, **options), family(tokenizer)
    messages = (*([Message("system", "Be brief.")] if system else []), *calling)
    declared_tools = () if name == "deepseek" else (weather, {**weather, "name": "get_time"})
    write = (lambda arguments: json.dumps(arguments, ensure_ascii=False)) if name == "deepseek" else None
    dicts = as_dicts(messages, json=write)
    wrapped = [{"type": "function", "function": tool} for tool in declared_tools] or None
    theirs = published_tokens(tokenizer, dicts, shipped(source), tools=wrapped)
    row = tokenize_example(example(messages, declared_tools), "s", template, tokenizer, 4096)
    assert list(row.input_ids) == theirs
    verify_mask(example(messages, declared_tools), row, template, tokenizer)
    prompt = published_tokens(tokenizer, dicts[:-1], shipped(source), tools=wrapped, add_generation_prompt=True)
    assert encode_prompt(example(messages, declared_tools), template, tokenizer, 4096) == prompt
    before = len(messages) - 3  # up to the message that calls
    earlier = example(messages[: before + 1], declared_tools)
    prompt = published_tokens(tokenizer, dicts[:before], shipped(source), tools=wrapped, add_generation_prompt=True)
    if name == "deepseek":
        prompt = prompt[: -len(tokenizer("<think>\n", add_special_tokens=False).input_ids)]
    assert encode_prompt(earlier, template, tokenizer, 4096) == prompt


MASKED = [
    ("llama3", {"version": "3"}, "llama3", "llama3_training", ""),
    ("qwen", {}, "qwen", "qwen2_5_training", "\n\n"),
    ("gemma", {}, "gemma", "gemma_training", "\n"),
    ("phi", {}, "phi", "phi3_training", ""),
    ("deepseek", {}, "deepseek", "deepseekv3_training", "<｜Assistant｜>"),
]


@pytest.mark.parametrize("shape", ["single", "multi"])
@pytest.mark.parametrize(("name", "options", "tokenizer", "source", "more"), MASKED)
def test_the_mask_equals_that_of_trl_except_text_that_no_model_writes(
    name, options, tokenizer, source, more, shape, make, family, shipped, conversations, as_dicts, example
):
    # TRL trains the line break after an end of turn, Qwen's before a response, and the header of DeepSeek's.
    template, tokenizer, messages = make(name, **options), family(tokenizer), conversations[shape]
    theirs = tokenizer.apply_chat_template(
        as_dicts(messages), chat_template=shipped(source), return_dict=True, return_assistant_tokens_mask=True
    )
    row = tokenize_example(example(messages), "s", template, tokenizer, 4096)
    assert list(row.input_ids) == theirs["input_ids"]
    pairs = list(zip(row.input_ids, row.labels, theirs["assistant_masks"], strict=True))
    only_theirs = [token for token, label, mask in pairs if mask and label == -100]
    assert [token for token, label, mask in pairs if label != -100 and not mask] == []
    assert tokenizer.decode(only_theirs) == more * (len(messages) // 2)


BEGUN = ["llama3", "gemma", "deepseek", "mistral", "vicuna", "zephyr", "alpaca", "instruction_zh"]


@pytest.mark.parametrize("name", BEGUN)
def test_there_is_one_begin_of_sequence_token_if_the_tokenizer_adds_one(name, make, family, conversations, example):
    tokenizer = family(name if name in ("llama3", "gemma", "deepseek", "mistral") else "llama2")
    assert tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    ids = tokenize_example(example(conversations["multi"]), "s", make(name), tokenizer, 4096).input_ids
    assert [index for index, token in enumerate(ids) if token == tokenizer.bos_token_id] == [0]
