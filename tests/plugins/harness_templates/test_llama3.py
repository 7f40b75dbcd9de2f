"""Llama 3's format, to the letter; token for token in `test_parity`."""

from __future__ import annotations

import pytest

from harness import HarnessError, Message, ToolCall

DATED = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
)
TURN = (
    "<|start_header_id|>user<|end_header_id|>\n\nName a river.<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n⟦The Elbe.<|eot_id|>⟧"
)


@pytest.fixture
def llama3(make):
    return make("llama3")


@pytest.fixture
def tokenizer(family):
    return family("llama3")


def test_every_conversation_of_3_1_begins_with_a_dated_system_turn(llama3, tokenizer, single, marked):
    assert marked(llama3.render(single, tokenizer)) == f"{DATED}<|eot_id|>{TURN}"
    with_system = (Message("system", " Be brief. "), *single)
    assert marked(llama3.render(with_system, tokenizer)) == f"{DATED}Be brief.<|eot_id|>{TURN}"


def test_the_option_date_sets_the_date(make, tokenizer, single, marked):
    text = marked(make("llama3", date="2026-05-02").render(single, tokenizer))
    assert "Today Date: 02 May 2026\n" in text
    with pytest.raises(HarnessError, match=r"template\.llama3\.date: '2026-02-30' is not a date"):
        make("llama3", date="2026-02-30")


def test_version_3_writes_only_the_turns(make, tokenizer, single, marked):
    assert marked(make("llama3", version="3").render(single, tokenizer)) == f"<|begin_of_text|>{TURN}"


def test_the_first_user_turn_declares_the_tools(llama3, tokenizer, calling, weather, marked):
    text = marked(llama3.render(calling, tokenizer, tools=[weather]))
    assert text.startswith(DATED.replace("Cutting", "Environment: ipython\nCutting") + "<|eot_id|>")
    assert '\n\n{\n    "type": "function",\n    "function": {\n        "name": "get_weather",' in text
    assert text.endswith(
        "}\n\nHow is the weather in Köln?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        '⟦{"name": "get_weather", "parameters": {"city": "Köln", "days": 2}}<|eot_id|>⟧'
        '<|start_header_id|>ipython<|end_header_id|>\n\n"{\\"sky\\": \\"grey\\"}"<|eot_id|>'
        "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Grey.<|eot_id|>⟧"
    )


@pytest.mark.parametrize(
    ("response", "what"),
    [
        (Message("assistant", "", tool_calls=(ToolCall("f", {}), ToolCall("g", {}))), "calls several tools"),
        (Message("assistant", "Wait.", tool_calls=(ToolCall("f", {}),)), "has text and a tool call"),
    ],
)
def test_calls_that_the_format_would_omit_are_refused(llama3, tokenizer, response, what):
    with pytest.raises(HarnessError, match=what) as error:
        llama3.render((Message("user", "q"), response), tokenizer)
    assert "qwen" in error.value.hint


def test_tools_need_a_user_turn_and_version_3_1(make, llama3, tokenizer, single, weather):
    with pytest.raises(HarnessError, match="the conversation begins with assistant"):
        llama3.render(single[1:] + single, tokenizer, tools=[weather])
    with pytest.raises(HarnessError, match="does not support tools"):
        make("llama3", version="3").render(single, tokenizer, tools=[weather])


def test_generation_stops_at_end_of_turn_and_of_text(llama3, tokenizer, calling, marked):
    assert llama3.stop_strings(tokenizer) == ("<|eot_id|>", "<|end_of_text|>")
    opened = marked(llama3.render(calling[:1], tokenizer, add_generation_prompt=True))
    assert opened.endswith("<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")
