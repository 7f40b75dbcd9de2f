"""What holds for every registered template, third parties' included: what is trained, and what nobody can write."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from harness import Example, HarnessError, Message, ToolCall, registry
from harness.data.tokenization.fingerprints import template_fingerprint
from harness.data.tokenization.mask_verification import verify_mask
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
    """A byte-level tokenizer that knows the tokens of every format, and carries a chat template with tools."""
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


def conversations(word):
    """Conversations of every shape, `word` in one place of each; and which tools they have."""
    user, answer = Message("user", "Go."), Message("assistant", "No.")
    call = Message("assistant", "", tool_calls=(ToolCall("f", {"x": "y"}),))
    hostile = dataclasses.replace(call, tool_calls=(ToolCall("f", {"x": word, "y": [{"z": word}]}),))
    result, told = Message("tool", "r", name="f"), {"name": "f", "description": "d", "parameters": {}}
    return {
        "user": ((Message("user", word), answer), ()),
        "response": ((user, Message("assistant", word)), ()),
        "system": ((Message("system", word), user, answer), ()),
        "input": ((Message("user", "Go.", input=word), answer), ()),
        "turns": ((Message("user", word), Message("assistant", word)) * 2, ()),
        "answer of a tool": ((user, call, Message("tool", word, name="f"), answer), ()),
        "call of a tool": ((user, hostile, result, answer), ()),
        "tool": ((user, call, result, answer), ({**told, "description": word, "parameters": {"x": {"y": word}}},)),
    }


ANYWHERE = ("user", "response", "turns")
"""Every format has a place for these."""


def example(messages, tools=()):
    return Example("id", tuple(messages), "rows.jsonl:7", tuple(tools))


def attack(template, tokenizer):
    """Every special token, every stop and every header of the template, and what ends a string of JSON."""
    spans = template.render(conversations("w")["turns"][0], tokenizer)
    headers = [span.text for span in spans if span.markup and not span.train]
    return "x" + " y ".join([*tokenizer.added_tokens_encoder, *template.stop_strings(tokenizer), *headers]) + ' "}\nz'


def decoded(ids, tokenizer):
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


@templates
def test_its_render_takes_add_generation_prompt_and_tools(name, template):
    parameters = inspect.signature(template(name).render).parameters
    assert [parameters[key].kind for key in ("add_generation_prompt", "tools")] == [inspect.Parameter.KEYWORD_ONLY] * 2
    assert (parameters["add_generation_prompt"].default, parameters["tools"].default) == (False, ())


@pytest.mark.parametrize("place", sorted(conversations("")))
@templates
def test_nobodys_text_writes_a_control_token(name, place, template, tokenizer):
    template = template(name)
    harmless, harmless_tools = conversations("w")[place]
    messages, tools = conversations(attack(template, tokenizer))[place]
    try:
        template.render(harmless, tokenizer, tools=harmless_tools)
    except HarnessError as error:
        refusal = error
    else:
        refusal = None
    if refusal is not None:
        assert place not in ANYWHERE
        assert refusal.hint
        with pytest.raises(HarnessError):
            template.render(messages, tokenizer, tools=tools)
        return
    row = tokenize_example(example(messages, tools), "s", template, tokenizer, 30_000)
    expected = tokenize_example(example(harmless, harmless_tools), "s", template, tokenizer, 30_000)
    special = set(tokenizer.added_tokens_encoder.values())
    for given, plain in ((row.input_ids, expected.input_ids), (row.labels, expected.labels)):
        assert [token for token in given if token in special] == [token for token in plain if token in special]
    text = "".join(span.text for span in template.render(messages, tokenizer, tools=tools))
    assert decoded(row.input_ids, tokenizer) == text
    prompt = encode_prompt(example(messages, tools), template, tokenizer, 30_000)
    assert prompt == list(row.input_ids[: len(prompt)])
    verify_mask(example(messages, tools), row, template, tokenizer)


@templates
def test_a_response_and_its_end_are_trained_where_the_message_is_and_nothing_else(name, template, tokenizer):
    template, messages = template(name), conversations("w")["turns"][0]
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
    # `train` of a message that is no response means nothing.
    plain = conversations("w")["turns"][0]
    flagged = [m if m.role == "assistant" else dataclasses.replace(m, train=False) for m in plain]
    assert template(name).render(flagged, tokenizer) == template(name).render(plain, tokenizer)


@templates
def test_it_can_be_prompted_with_every_beginning_and_has_a_fingerprint(name, template, tokenizer):
    template, messages = template(name), conversations("w")["turns"][0]
    whole = "".join(span.text for span in template.render(messages, tokenizer))
    for upto in (1, 3):
        opened = "".join(span.text for span in template.render(messages[:upto], tokenizer, add_generation_prompt=True))
        assert whole.startswith(opened)
    assert template.stop_strings(tokenizer)
    assert all(stop.strip() for stop in template.stop_strings(tokenizer))
    assert template_fingerprint(template, tokenizer) == template_fingerprint(template, tokenizer)
