"""Mistral's format, compared with its reference: mistral-common 1.13.1, tokenizers v3 (SentencePiece, Tekken).

The texts are the output of `MistralTokenizer.encode_chat_completion` of that package for these conversations, with the
call ids used here, `▁` and `<0x0A>` read as space and line break. A response ends with `</s>`.
"""

from __future__ import annotations

import dataclasses

import pytest

from harness import HarnessError, Message, ToolCall
from harness.data.tokenization.prompts import encode_prompt
from harness.data.tokenization.tokenize import tokenize_example
from harness.testing.full_mask_check import verify_mask

SYSTEM, USER, ANSWER = (
    Message("system", "Be brief."),
    Message("user", "Name a river."),
    Message("assistant", "The Elbe."),
)
MORE, WARM = Message("user", "And one more."), Message("assistant", "Warm.")
CALLS = Message(
    "assistant", "", tool_calls=(ToolCall("get_weather", {"city": "Köln"}), ToolCall("get_weather", {"city": "Rom"}))
)
RESULTS = (Message("tool", '22 "C"', name="get_weather"), Message("tool", '{"temp": 30}', name="get_weather"))
TOOL = {
    "name": "get_weather",
    "description": "The weather.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "Köln"}},
        "required": ["city"],
    },
}
DECLARED_TOOLS = (
    '[AVAILABLE_TOOLS] [{"type": "function", "function": {"name": "get_weather", "description": "The weather.", '
    '"parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Köln"}}, '
    '"required": ["city"]}}}][/AVAILABLE_TOOLS]'
)
RENDERED_CALLS = (
    '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Köln"}, "id": "call00001"}, '
    '{"name": "get_weather", "arguments": {"city": "Rom"}, "id": "call00002"}]</s>'
    '[TOOL_RESULTS] {"content": "22 \\"C\\"", "call_id": "call00001"}[/TOOL_RESULTS]'
    '[TOOL_RESULTS] {"content": {"temp": 30}, "call_id": "call00002"}[/TOOL_RESULTS]'
)
PUBLISHED = {
    "single": ((USER,), (), "<s>[INST] Name a river.[/INST]"),
    "system": ((SYSTEM, USER), (), "<s>[INST] Be brief.\n\nName a river.[/INST]"),
    "multi": ((USER, ANSWER, MORE), (), "<s>[INST] Name a river.[/INST] The Elbe.</s>[INST] And one more.[/INST]"),
    "system_multi": (
        (SYSTEM, USER, ANSWER, MORE),
        (),
        "<s>[INST] Name a river.[/INST] The Elbe.</s>[INST] Be brief.\n\nAnd one more.[/INST]",
    ),
    "tools": (
        (SYSTEM, USER, CALLS, *RESULTS),
        (TOOL,),
        f"<s>{DECLARED_TOOLS}[INST] Be brief.\n\nName a river.[/INST]{RENDERED_CALLS}",
    ),
    "tools_multi": (
        (SYSTEM, USER, CALLS, *RESULTS, WARM, MORE),
        (TOOL,),
        f"<s>[INST] Name a river.[/INST]{RENDERED_CALLS} Warm.</s>{DECLARED_TOOLS}"
        "[INST] Be brief.\n\nAnd one more.[/INST]",
    ),
}
"""Messages and tools up to the last response, and the prompt for it under v3."""


def without_marker_spaces(text):
    """Return the prompt under v3-tekken: without the spaces that v3 writes after its markers."""
    for marker in ("[INST]", "[AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/INST]", "[/TOOL_RESULTS]"):
        text = text.replace(f"{marker} ", marker)
    return text


def train_only_last(messages):
    return (*(dataclasses.replace(message, train=False) for message in messages[:-1]), messages[-1])


@pytest.mark.parametrize("version", ["v3", "v3-tekken"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_parity_with_the_published_reference_token_for_token(name, version, make, family, example):
    template = make("mistral", version=version)
    tokenizer = family("mistral" if version == "v3" else "tekken")
    messages, tools, text = PUBLISHED[name]
    prompt = text if version == "v3" else without_marker_spaces(text)
    full_text = f"{prompt}{' ' if version == 'v3' else ''}The Oder.</s>"
    expected_example = example(train_only_last((*messages, Message("assistant", "The Oder."))), tools)
    row = tokenize_example(expected_example, "s", template, tokenizer, 4096)
    assert list(row.input_ids) == tokenizer(full_text, add_special_tokens=False).input_ids
    assert encode_prompt(expected_example, template, tokenizer, 4096) == list(row.input_ids[: row.labels.count(-100)])
    assert (
        "".join(span.text for span in template.render(messages, tokenizer, add_generation_prompt=True, tools=tools))
        == prompt
    )
    assert tokenizer.decode([label for label in row.labels if label != -100]).strip() == "The Oder.</s>"
    verify_mask(expected_example, row, template, tokenizer)


DATA_IDS = ("aB3dE6gH9", "kL2mN5pQ8")
"""Ids as Mistral's models write them. The published reference accepts such ids and refuses all others."""


def with_ids(messages, ids):
    """Return the conversation with ids for its two calls and for their answers."""
    calls = tuple(dataclasses.replace(call, id=message) for call, message in zip(CALLS.tool_calls, ids, strict=True))
    changed = {
        id(CALLS): dataclasses.replace(CALLS, tool_calls=calls),
        **{
            id(message): dataclasses.replace(message, tool_call_id=key)
            for message, key in zip(RESULTS, ids, strict=True)
        },
    }
    return tuple(changed.get(id(message), message) for message in messages)


@pytest.mark.parametrize("version", ["v3", "v3-tekken"])
@pytest.mark.parametrize("name", ["tools", "tools_multi"])
def test_parity_with_the_published_reference_with_the_datas_own_ids(name, version, make, family, example):
    template = make("mistral", version=version)
    tokenizer = family("mistral" if version == "v3" else "tekken")
    messages, tools, text = PUBLISHED[name]
    text = text.replace("call00001", DATA_IDS[0]).replace("call00002", DATA_IDS[1])
    prompt = text if version == "v3" else without_marker_spaces(text)
    expected_example = example(
        train_only_last((*with_ids(messages, DATA_IDS), Message("assistant", "The Oder."))), tools
    )
    row = tokenize_example(expected_example, "s", template, tokenizer, 4096)
    full_text = f"{prompt}{' ' if version == 'v3' else ''}The Oder.</s>"
    assert list(row.input_ids) == tokenizer(full_text, add_special_tokens=False).input_ids
    verify_mask(expected_example, row, template, tokenizer)


@pytest.mark.parametrize(
    "ids", [("call_Kq2", "call_Kq3"), ("aB3dE6gH9", "aB3dE6gH90"), ("aB3dE6gH9", None), ("é" * 9, "b" * 9)]
)
def test_ids_of_another_form_are_replaced_and_still_match_answers(ids, make, family):
    messages, tools, text = PUBLISHED["tools"]
    first, second = with_ids(RESULTS, ids) if None not in ids else RESULTS
    said = (*with_ids(messages, ids)[:-2], second, first)
    spans = make("mistral").render(said, family("mistral"), add_generation_prompt=True, tools=tools)
    answers = text.index("[TOOL_RESULTS]"), text.index("[TOOL_RESULTS]", text.index("[TOOL_RESULTS]") + 1)
    swapped = text[: answers[0]] + text[answers[1] :] + text[answers[0] : answers[1]]
    if None in ids:  # nothing says which call they answer but their order
        swapped = swapped.replace('"call_id": "call00002"', "?").replace(
            '"call_id": "call00001"', '"call_id": "call00002"'
        )
        swapped = swapped.replace("?", '"call_id": "call00001"')
    assert "".join(span.text for span in spans) == swapped


def test_calls_are_trained_with_the_end_of_sequence(make, family, marked):
    messages, tools, _ = PUBLISHED["tools"]
    text = marked(make("mistral").render((*messages, WARM), family("mistral"), tools=tools))
    assert '[/INST]⟦[TOOL_CALLS] [{"name"' in text
    assert '"id": "call00002"}]</s>⟧[TOOL_RESULTS]' in text
    assert text.endswith("[/TOOL_RESULTS]⟦ Warm.</s>⟧")


@pytest.mark.parametrize(("system", "tools"), [(SYSTEM, ()), (None, (TOOL,)), (SYSTEM, (TOOL,))])
def test_system_turn_last_forbids_training_earlier_responses_and_first_does_not(
    system, tools, make, family, marked, example
):
    messages = (*([system] if system else []), USER, ANSWER, MORE, WARM)
    tokenizer = family("mistral")
    with pytest.raises(HarnessError, match="after a trained response") as error:
        make("mistral").render(messages, tokenizer, tools=tools)
    assert 'train_on to "each" or "last"' in error.value.hint
    assert 'system_turn of the template to "first"' in error.value.hint
    first = make("mistral", system_turn="first")
    text = marked(first.render(messages, tokenizer, tools=tools))
    assert text.endswith("Name a river.[/INST]⟦ The Elbe.</s>⟧[INST] And one more.[/INST]⟦ Warm.</s>⟧")
    expected_example = example(messages, tools)
    verify_mask(
        expected_example,
        tokenize_example(expected_example, "s", first, tokenizer, 4096),
        first,
        tokenizer,
    )
    assert make("mistral").render(
        messages[:-1], tokenizer, add_generation_prompt=True, tools=tools
    )  # a prompt trains nothing


def test_responses_to_one_user_message_are_all_trained(make, family, marked):
    messages, tools, _ = PUBLISHED["tools"]
    assert marked(make("mistral").render((*messages, WARM), family("mistral"), tools=tools)).count("⟦") == 2


def test_a_deeply_nested_tool_answer_is_text(make, family):
    messages = (USER, CALLS, Message("tool", "[" * 100_000), RESULTS[1], WARM)
    spans = make("mistral").render(messages, family("mistral"))
    assert any("[" * 100_000 in span.text for span in spans if not span.markup)


def test_refused_conversations(make, family, single):
    mistral = make("mistral")
    text_and_calls = dataclasses.replace(CALLS, content="Wait.")
    with pytest.raises(HarnessError, match="has text and tool calls"):
        mistral.render((USER, text_and_calls, *RESULTS, WARM), family("mistral"))
    with pytest.raises(HarnessError, match="'user' instead of 'assistant'"):
        mistral.render((USER, USER, ANSWER), family("mistral"))
    with pytest.raises(HarnessError, match=r"the tokenizer has no token \[INST\]"):
        mistral.render(single, family("llama2"))
    assert mistral.stop_strings(family("mistral")) == ("</s>",)
