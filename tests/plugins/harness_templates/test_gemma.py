"""Gemma's format, to the letter; token for token in `test_parity`."""

from __future__ import annotations

import pytest

from harness import HarnessError, Message


@pytest.fixture
def gemma(make):
    return make("gemma")


@pytest.fixture
def tokenizer(family):
    return family("gemma")


def test_the_assistant_is_called_model_and_contents_are_stripped(gemma, tokenizer, marked):
    messages = (Message("user", " Name a river. "), Message("assistant", "\nThe Elbe. "))
    assert marked(gemma.render(messages, tokenizer)) == (
        "<bos><start_of_turn>user\nName a river.<end_of_turn>\n<start_of_turn>model\n⟦The Elbe.<end_of_turn>⟧\n"
    )


def test_a_system_message_begins_the_first_user_turn(gemma, tokenizer, multi, marked):
    assert marked(gemma.render((Message("system", "Be brief."), *multi), tokenizer)) == (
        "<bos><start_of_turn>user\nBe brief.\n\nName a river.<end_of_turn>\n"
        "<start_of_turn>model\n⟦The Elbe.<end_of_turn>⟧\n"
        "<start_of_turn>user\n再说一条河。<end_of_turn>\n<start_of_turn>model\n⟦长江 🙂<end_of_turn>⟧\n"
    )


def test_generation_prompt_stop_strings_and_refused_conversations(
    gemma, tokenizer, family, single, calling, weather, marked
):
    assert marked(gemma.render(single[:1], tokenizer, add_generation_prompt=True)).endswith(
        "<end_of_turn>\n<start_of_turn>model\n"
    )
    assert gemma.stop_strings(tokenizer) == ("<end_of_turn>", "<eos>")
    with pytest.raises(HarnessError, match="instead of"):
        gemma.render((single[0], *single), tokenizer)
    with pytest.raises(HarnessError, match="does not support tools"):
        gemma.render(single, tokenizer, tools=[weather])
    with pytest.raises(HarnessError, match="does not support tool calls"):
        gemma.render(calling, tokenizer)
    with pytest.raises(HarnessError, match="no token <start_of_turn>"):
        gemma.render(single, family("llama3"))
