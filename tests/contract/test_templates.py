"""The contract of every registered template, third parties' included: trained spans and control tokens."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
from support.full_mask_check import verify_mask

from harness import Example, HarnessError, Message, ToolCall, registry
from harness.data.tokenization.fingerprints import template_fingerprint
from harness.data.tokenization.prompts import encode_prompt
from harness.data.tokenization.tokenize import tokenize_example

REGISTRY = registry.discover_plugins()
templates = pytest.mark.parametrize("name", sorted(REGISTRY.components["templates"]))

TOKENS = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>"]
TOKENS += ["[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"]
TOKENS += ["[/TOOL_RESULTS]", "<start_of_turn>", "<end_of_turn>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
TOKENS += ["<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<tool_call>", "</tool_call>", "<tool_response>"]
TOKENS += [
    "</tool_response>",
    "<｜tool▁sep｜>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
]
TOKENS += ["<｜tool▁call▁end｜>", "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>"]
TOKENS += ["<｜tool▁output▁end｜>"]


@pytest.fixture(scope="module")
def tokenizer():
    """Return a byte-level tokenizer with the tokens of every format and a chat template with tools."""
    from importlib.resources import files

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<pad>", "<s>", "</s>", *TOKENS])
    source = (files("trl") / "chat_templates" / "qwen2_5.jinja").read_text(encoding="utf-8")
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template=source
    )


@pytest.fixture
def template(options):
    return lambda name: REGISTRY.create("templates", name, options(name, REGISTRY.get("templates", name)))


def conversations_with(word):
    """Return conversations of every shape, each with `word` at another position, and their tools."""
    user, answer = Message("user", "Go."), Message("assistant", "No.")
    call = Message("assistant", "", tool_calls=(ToolCall("f", {"x": "y"}),))
    hostile = dataclasses.replace(call, tool_calls=(ToolCall("f", {"x": word, "y": [{"z": word}]}),))
    result, tool_schema = Message("tool", "r", name="f"), {"name": "f", "description": "d", "parameters": {}}
    return {
        "user": ((Message("user", word), answer), ()),
        "response": ((user, Message("assistant", word)), ()),
        "system": ((Message("system", word), user, answer), ()),
        "input": ((Message("user", "Go.", input=word), answer), ()),
        "turns": ((Message("user", word), Message("assistant", word)) * 2, ()),
        "answer of a tool": ((user, call, Message("tool", word, name="f"), answer), ()),
        "call of a tool": ((user, hostile, result, answer), ()),
        "tool": (
            (user, call, result, answer),
            ({**tool_schema, "description": word, "parameters": {"x": {"y": word}}},),
        ),
    }


SUPPORTED_BY_ALL = ("user", "response", "turns")
"""Positions that every format supports."""


def example(messages, tools=()):
    return Example("id", tuple(messages), "rows.jsonl:7", tuple(tools))


def attack_text(template, tokenizer):
    """Return every special token, stop string and header of the template, and the end of a JSON string."""
    spans = template.render(conversations_with("w")["turns"][0], tokenizer)
    headers = [span.text for span in spans if span.markup and not span.train]
    return "x" + " y ".join([*tokenizer.added_tokens_encoder, *template.stop_strings(tokenizer), *headers]) + ' "}\nz'


def decoded(ids, tokenizer):
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


@templates
def test_render_takes_add_generation_prompt_and_tools(name, template):
    parameters = inspect.signature(template(name).render).parameters
    assert [parameters[key].kind for key in ("add_generation_prompt", "tools")] == [inspect.Parameter.KEYWORD_ONLY] * 2
    assert (parameters["add_generation_prompt"].default, parameters["tools"].default) == (False, ())


@pytest.mark.parametrize("position", sorted(conversations_with("")))
@templates
def test_row_text_never_becomes_a_control_token(name, position, template, tokenizer):
    template = template(name)
    harmless, harmless_tools = conversations_with("w")[position]
    messages, tools = conversations_with(attack_text(template, tokenizer))[position]
    try:
        template.render(harmless, tokenizer, tools=harmless_tools)
    except HarnessError as error:
        refusal = error
    else:
        refusal = None
    if refusal is not None:
        assert position not in SUPPORTED_BY_ALL
        assert refusal.hint
        with pytest.raises(HarnessError):
            template.render(messages, tokenizer, tools=tools)
        return
    row = tokenize_example(example(messages, tools), "s", template, tokenizer, 30_000)
    expected = tokenize_example(example(harmless, harmless_tools), "s", template, tokenizer, 30_000)
    special = set(tokenizer.added_tokens_encoder.values())
    for actual, plain in ((row.input_ids, expected.input_ids), (row.labels, expected.labels)):
        assert [token for token in actual if token in special] == [token for token in plain if token in special]
    text = "".join(span.text for span in template.render(messages, tokenizer, tools=tools))
    assert decoded(row.input_ids, tokenizer) == text
    prompt = encode_prompt(example(messages, tools), template, tokenizer, 30_000)
    assert prompt == list(row.input_ids[: len(prompt)])
    verify_mask(example(messages, tools), row, template, tokenizer)


@templates
def test_only_trained_responses_and_their_ends_are_trained(name, template, tokenizer):
    template, messages = template(name), conversations_with("w")["turns"][0]
    for wanted in ((True, True), (False, True), (True, False)):
        flags = iter(wanted)
        flagged = [
            dataclasses.replace(message, train=next(flags)) if message.role == "assistant" else message
            for message in messages
        ]
        row = tokenize_example(example(flagged), "s", template, tokenizer, 4096)
        trained = "".join(decoded([label for label in row.labels if label != -100], tokenizer).split())
        rest = trained.replace("w", "")
        for stop in sorted(template.stop_strings(tokenizer), key=len, reverse=True):
            assert rest.count(stop) in (0, 1, 2), rest
            rest = rest.replace(stop, "")
        assert (trained.count("w"), rest) == (sum(wanted), "")
        verify_mask(example(flagged), row, template, tokenizer)


@templates
def test_an_untrained_users_turn_stays_untrained(name, template, tokenizer):
    # `train` has an effect only on responses.
    plain = conversations_with("w")["turns"][0]
    flagged = [m if m.role == "assistant" else dataclasses.replace(m, train=False) for m in plain]
    assert template(name).render(flagged, tokenizer) == template(name).render(plain, tokenizer)


@templates
def test_every_beginning_renders_as_a_prompt_and_the_template_has_a_fingerprint(name, template, tokenizer):
    template, messages = template(name), conversations_with("w")["turns"][0]
    full_text = "".join(span.text for span in template.render(messages, tokenizer))
    for upto in (1, 3):
        opened = "".join(span.text for span in template.render(messages[:upto], tokenizer, add_generation_prompt=True))
        assert full_text.startswith(opened)
    assert template.stop_strings(tokenizer)
    assert all(stop.strip() for stop in template.stop_strings(tokenizer))
    assert template_fingerprint(template, tokenizer) == template_fingerprint(template, tokenizer)
