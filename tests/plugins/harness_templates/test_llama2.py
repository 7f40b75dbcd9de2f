"""Llama 2's chat format, to the letter, and token for token as published."""

from __future__ import annotations

import pytest

from harness import HarnessError, Message
from harness.data.tokenization.prompts import encode_prompt
from harness.data.tokenization.tokenize import tokenize_example
from harness.testing.full_mask_check import verify_mask


@pytest.fixture
def llama2(make):
    return make("llama2")


def test_a_single_turn_has_the_published_text(llama2, tokenizer, single, marked):
    assert marked(llama2.render(single, tokenizer)) == "<s>[INST] Name a river. [/INST]⟦ The Elbe. </s>⟧"


def test_several_turns_and_a_system_block(llama2, tokenizer, multi, marked):
    expected = (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nName a river. [/INST]⟦ The Elbe. </s>⟧"
        "<s>[INST] 再说一条河。 [/INST]⟦ 长江 🙂 </s>⟧"
    )
    assert marked(llama2.render((Message("system", "Be brief."), *multi), tokenizer)) == expected


def test_an_input_is_below_the_content(llama2, tokenizer, with_input, marked):
    expected = "<s>[INST] Sum up.\n\nA long story. [/INST]⟦ A story. </s>⟧"
    assert marked(llama2.render(with_input, tokenizer)) == expected


def test_the_generation_prompt_ends_with_the_header(llama2, tokenizer, multi, marked):
    expected = "<s>[INST] Name a river. [/INST]⟦ The Elbe. </s>⟧<s>[INST] 再说一条河。 [/INST]"
    assert marked(llama2.render(multi[:3], tokenizer, add_generation_prompt=True)) == expected


@pytest.mark.parametrize("name", ["single", "multi", "system", "system_multi"])
@pytest.mark.parametrize("padding", ["", "\n ", " "])
def test_parity_with_the_published_template_token_for_token(
    name, padding, llama2, tokenizer, conversations, llama2_jinja, example
):
    messages = [Message(m.role, padding + m.content + padding) for m in conversations[name]]
    dicts = [{"role": message.role, "content": message.content} for message in messages]
    theirs = tokenizer.apply_chat_template(dicts, chat_template=llama2_jinja, return_dict=False)
    assert list(tokenize_example(example(messages), "s", llama2, tokenizer, 4096).input_ids) == theirs
    prompt = tokenizer.apply_chat_template(
        dicts[:-1], chat_template=llama2_jinja, add_generation_prompt=True, return_dict=False
    )
    assert encode_prompt(example(messages), llama2, tokenizer, 4096) == prompt


@pytest.mark.parametrize("name", ["single", "multi", "system", "system_multi"])
def test_parity_with_a_tokenizer_that_adds_a_begin_of_sequence_token(
    name, llama2, family, conversations, llama2_jinja, example
):
    tokenizer, messages = family("llama2"), conversations[name]
    dicts = [{"role": message.role, "content": message.content} for message in messages]
    theirs = tokenizer.apply_chat_template(dicts, chat_template=llama2_jinja, return_dict=False)
    row = tokenize_example(example(messages), "s", llama2, tokenizer, 4096)
    assert list(row.input_ids) == theirs
    verify_mask(example(messages), row, llama2, tokenizer)


def test_each_turn_has_one_begin_of_sequence_token(llama2, tokenizer, conversations, example):
    ids = tokenize_example(example(conversations["system_multi"]), "s", llama2, tokenizer, 4096).input_ids
    assert ids.count(tokenizer.bos_token_id) == ids.count(tokenizer.eos_token_id) == 2
    assert ids[0] == tokenizer.bos_token_id


def test_generation_stops_at_the_end_of_sequence(llama2, tokenizer):
    assert llama2.stop_strings(tokenizer) == ("</s>",)


def test_turns_that_do_not_alternate_are_refused(llama2, tokenizer, single):
    with pytest.raises(HarnessError, match="'user' instead of 'assistant'") as error:
        llama2.render((single[0], *single), tokenizer)
    assert error.value.hint
