"""Templates as text between turns and as Jinja chat templates: both render what the template renders."""

from __future__ import annotations

import pytest

from harness.data.tokenization.turn_separators import (
    PROBES,
    build_chat_template,
    compare_with_tokenizer,
    find_turn_separators,
    render_text,
    serving_chat_template,
    tokenizer_template,
)
from harness.registry import discover_plugins
from harness.spec.component_options import fill_component_options
from harness.testing.tiny_model import build_tokenizer

TOKENS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
    "qwen": ("<|im_start|>", "<|im_end|>"),
    "mistral": ("[INST]", "[/INST]"),
}
NAMES = ("chatml", "llama2", "llama3", "gemma", "alpaca", "instruction_zh", "vicuna", "zephyr", "mistral", "qwen")


@pytest.fixture(scope="module")
def create():
    registry = discover_plugins()

    def create(name, **options):
        return registry.create("templates", name, fill_component_options(registry, "templates", name, options))

    return create


@pytest.mark.parametrize("name", NAMES)
def test_a_chat_template_renders_what_the_template_renders(create, name):
    template, tokenizer = create(name), build_tokenizer(TOKENS.get(name, ("<a>",)))
    separators = find_turn_separators(template, tokenizer)
    assert separators is not None
    tokenizer.chat_template = build_chat_template(separators)
    compared = 0
    for messages in PROBES:
        expected = render_text(template, tokenizer, messages)
        if expected is None or (messages[0].role == "system" and separators.start_system is None):
            continue
        compared += 1
        turns = [{"role": message.role, "content": message.content} for message in messages]
        assert separators.render_prompt(turns) == expected
        assert tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False) == expected
        complete = [*messages, type(messages[0])("assistant", "Yes.")]
        turns.append({"role": "assistant", "content": "Yes."})
        expected = render_text(template, tokenizer, complete, is_prompt=False)
        assert tokenizer.apply_chat_template(turns, tokenize=False) == expected
    assert compared >= 3
    assert (separators.start_system is None) == (name == "mistral")  # which writes it before the last user message


def test_a_begin_token_of_the_tokenizer_is_written_once(create):
    separators = find_turn_separators(create("chatml"), build_tokenizer())
    assert build_chat_template(separators, "<s>").count("<s>") == 2  # before a system message, before the user's
    started = find_turn_separators(create("llama2"), build_tokenizer())
    assert build_chat_template(started, started.start_user[:3]) == build_chat_template(started)


def test_the_chat_template_of_the_tokenizer_is_kept_where_it_renders_alike(create):
    tokenizer, chatml = build_tokenizer(), create("chatml")
    separators = find_turn_separators(chatml, tokenizer)
    kept = serving_chat_template(chatml, create("tokenizer"), tokenizer, separators, "")
    assert kept == tokenizer.chat_template
    alpaca = create("alpaca")
    other = serving_chat_template(alpaca, create("tokenizer"), tokenizer, find_turn_separators(alpaca, tokenizer), "")
    assert "### Response:" in other


def test_variables_of_a_chat_template_are_part_of_it(create):
    tokenizer = build_tokenizer()
    template = create("jinja", template="{{ mood }}{{ messages[0]['content'] }}", variables={"mood": "calm"})
    tokenizer.chat_template = serving_chat_template(template, None, tokenizer, None, "")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "calmx"


def test_a_template_without_a_fixed_form_has_no_separators(create):
    template = create("jinja", template="{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}")
    assert find_turn_separators(template, build_tokenizer()) is None


def test_the_chat_template_of_a_tokenizer_is_compared_with_that_of_a_run(create):
    registry, tokenizer = discover_plugins(), build_tokenizer(TOKENS["chatml"])
    tokenizer.chat_template = None
    assert tokenizer_template(registry, tokenizer) is None
    assert compare_with_tokenizer(create("chatml"), None, tokenizer) == "none"
    tokenizer.chat_template = build_chat_template(find_turn_separators(create("chatml"), tokenizer))
    own_template = tokenizer_template(registry, tokenizer)
    results = [
        compare_with_tokenizer(create(name), own_template, tokenizer) for name in ("chatml", "tokenizer", "alpaca")
    ]
    assert results == ["same", "same", "other"]
