"""ChatML, to the letter, and token for token as the models' chat templates render it."""

from __future__ import annotations

import pytest

from harness import HarnessError, Message
from harness.data.tokenization.prompts import encode_prompt
from harness.data.tokenization.tokenize import tokenize_example


@pytest.fixture
def chatml(make):
    return make("chatml")


def test_a_single_turn_has_the_published_text(chatml, tokenizer, single, marked):
    expected = "<|im_start|>user\nName a river.<|im_end|>\n<|im_start|>assistant\n⟦The Elbe.<|im_end|>⟧\n"
    assert marked(chatml.render(single, tokenizer)) == expected


def test_several_turns_and_a_system_message(chatml, tokenizer, multi, marked):
    expected = (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nName a river.<|im_end|>\n<|im_start|>assistant\n⟦The Elbe.<|im_end|>⟧\n"
        "<|im_start|>user\n再说一条河。<|im_end|>\n<|im_start|>assistant\n⟦长江 🙂<|im_end|>⟧\n"
    )
    assert marked(chatml.render((Message("system", "Be brief."), *multi), tokenizer)) == expected


def test_an_input_is_below_the_content(chatml, tokenizer, with_input, marked):
    expected = "<|im_start|>user\nSum up.\n\nA long story.<|im_end|>\n<|im_start|>assistant\n⟦A story.<|im_end|>⟧\n"
    assert marked(chatml.render(with_input, tokenizer)) == expected


def test_the_generation_prompt_ends_with_the_header(chatml, tokenizer, single, marked):
    expected = "<|im_start|>user\nName a river.<|im_end|>\n<|im_start|>assistant\n"
    assert marked(chatml.render(single[:1], tokenizer, add_generation_prompt=True)) == expected


def test_the_option_system_does_not_replace_a_system_message(make, chatml, tokenizer, single, multi):
    filled = make("chatml", system="Be brief.")
    assert filled.render(single, tokenizer) == chatml.render((Message("system", "Be brief."), *single), tokenizer)
    with_system = (Message("system", "Be long."), *multi)
    assert filled.render(with_system, tokenizer) == chatml.render(with_system, tokenizer)


@pytest.mark.parametrize("name", ["single", "multi", "system", "system_multi"])
def test_parity_with_qwen3_token_for_token(name, chatml, tokenizer, conversations, shipped, example):
    messages = conversations[name]
    dicts = [{"role": message.role, "content": message.content} for message in messages]
    source = shipped("qwen3_instruct_2507")
    theirs = tokenizer.apply_chat_template(dicts, chat_template=source, return_dict=False)
    assert list(tokenize_example(example(messages), "s", chatml, tokenizer, 4096).input_ids) == theirs
    prompt = tokenizer.apply_chat_template(
        dicts[:-1], chat_template=source, add_generation_prompt=True, return_dict=False
    )
    assert encode_prompt(example(messages), chatml, tokenizer, 4096) == prompt


@pytest.mark.parametrize("name", ["single", "multi", "system", "system_multi"])
def test_labels_equal_those_of_trl_except_the_line_break_after_the_end_of_turn(
    name, chatml, tokenizer, conversations, shipped, example
):
    messages = conversations[name]
    dicts = [{"role": message.role, "content": message.content} for message in messages]
    theirs = tokenizer.apply_chat_template(
        dicts,
        chat_template=shipped("qwen3_instruct_2507_training"),
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    row = tokenize_example(example(messages), "s", chatml, tokenizer, 4096)
    assert list(row.input_ids) == theirs["input_ids"]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    # TRL trains the line break after <|im_end|> too; no model ever has to write it.
    after = [index for index, token in enumerate(row.input_ids, 1) if token == end]
    mask = [0 if index in after else value for index, value in enumerate(theirs["assistant_masks"])]
    assert [int(label != -100) for label in row.labels] == mask


def test_generation_stops_at_end_of_turn_and_of_sequence(chatml, tokenizer):
    assert chatml.stop_strings(tokenizer) == ("<|im_end|>", "</s>")


def test_tools_are_refused(chatml, tokenizer, calling, weather):
    with pytest.raises(HarnessError, match="does not support tools") as error:
        chatml.render(calling, tokenizer, tools=[weather])
    assert "qwen" in error.value.hint


def test_a_tokenizer_without_the_two_tokens_is_refused(chatml, single):
    other = type("Tokenizer", (), {"added_tokens_encoder": {"<|im_start|>": 1}})()
    with pytest.raises(HarnessError, match=r"no token <\|im_end\|>"):
        chatml.render(single, other)
