"""The model's own chat template."""

from __future__ import annotations

import copy

import pytest

from harness import HarnessError, Message
from harness.data.tokenization.prompts import encode_prompt
from harness.data.tokenization.tokenize import tokenize_example


@pytest.mark.parametrize("name", ["single", "multi", "system", "system_multi"])
def test_a_chatml_tokenizer_gives_the_same_rows_as_chatml(name, make, tokenizer, conversations, example):
    tokenizer_template, chatml = make("tokenizer"), make("chatml")
    row = tokenize_example(example(conversations[name]), "s", tokenizer_template, tokenizer, 4096)
    assert row == tokenize_example(example(conversations[name]), "s", chatml, tokenizer, 4096)
    prompts = [encode_prompt(example(conversations[name]), t, tokenizer, 4096) for t in (tokenizer_template, chatml)]
    assert prompts[0] == prompts[1] == list(row.input_ids[: len(prompts[0])])


def test_the_end_of_turn_is_trained_and_the_line_break_after_it_is_not(make, tokenizer, multi, marked):
    expected = (
        "<|im_start|>user\nName a river.<|im_end|>\n<|im_start|>assistant\n⟦The Elbe.<|im_end|>⟧\n"
        "<|im_start|>user\n再说一条河。<|im_end|>\n<|im_start|>assistant\n⟦长江 🙂<|im_end|>⟧\n"
    )
    spans = make("tokenizer").render(multi, tokenizer)
    assert marked(spans) == expected
    contents = [message.content for message in multi]
    assert [span.text for span in spans if not span.markup] == contents


def test_generation_stops_at_end_of_turn_and_of_sequence(make, tokenizer):
    assert make("tokenizer").stop_strings(tokenizer) == ("<|im_end|>", "</s>")


def test_a_tokenizer_without_a_chat_template_is_refused(make, tokenizer, single):
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(HarnessError, match="has no chat template") as error:
        make("tokenizer").render(single, bare)
    assert "chatml" in error.value.hint


def test_a_changed_chat_template_is_rendered_again(make, tokenizer, single):
    tokenizer_template, other = make("tokenizer"), copy.deepcopy(tokenizer)
    before = tokenizer_template.render(single, other)
    other.chat_template = other.chat_template.replace("<|im_end|>", "</s>")
    after = tokenizer_template.render(single, other)
    assert [span.text.replace("<|im_end|>", "</s>") for span in before] == [span.text for span in after]


def test_content_that_looks_like_markup_is_located(make, tokenizer, marked):
    messages = (Message("user", "user"), Message("assistant", "<|im_end|>"), Message("user", "\n"))
    messages += (Message("assistant", "assistant"),)
    spans = make("tokenizer").render(messages, tokenizer)
    assert [span.text for span in spans if not span.markup] == ["user", "<|im_end|>", "assistant"]
    assert marked(spans) == (
        "<|im_start|>user\nuser<|im_end|>\n<|im_start|>assistant\n⟦<|im_end|><|im_end|>⟧\n"
        "<|im_start|>user\n\n<|im_end|>\n<|im_start|>assistant\n⟦assistant<|im_end|>⟧\n"
    )


def test_the_named_template_tool_use_renders_rows_with_tools(make, tokenizer, single):
    named = copy.deepcopy(tokenizer)
    default = str(tokenizer.chat_template)
    named.chat_template = {"default": default, "tool_use": "{{ tools[0].function.name }}\n" + default}
    template, tools = make("tokenizer"), ({"name": "depth", "parameters": {}},)
    plain = "".join(span.text for span in template.render(single, named))
    with_tools = "".join(span.text for span in template.render(single, named, tools=tools))
    assert plain == "".join(span.text for span in template.render(single, tokenizer))
    assert with_tools == f"depth\n{plain}"
    named.chat_template = {"rag": default}
    with pytest.raises(HarnessError, match="has no chat template called default, only rag"):
        template.render(single, named)
