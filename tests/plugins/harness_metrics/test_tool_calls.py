"""The metric `tool_calls`: formats, equality of arguments, and answers without a call."""

from __future__ import annotations

import json

import pytest
from harness_metrics.tool_calls import parse_calls

from harness import Item, Message, ToolCall
from harness.data.reading.conversation import build_example
from harness.evaluation.predictions import item_from_example
from harness.registry import discover_plugins
from harness.spec.component_options import fill_component_options
from harness.testing.tiny_model import build_tokenizer

CALL = {"name": "get_weather", "arguments": {"city": "Graz", "days": 2}}


def item(answer, *calls):
    return Item("a", "", "", answer, reference_calls=tuple(calls))


def statistics(metric, answer, *calls, **options):
    vectors = metric("tool_calls", **options).statistics(item(answer, *calls))
    return vectors["tool_calls"][0], vectors["tool_names"][0]


TOKENS = {
    "qwen": "<|im_start|> <|im_end|>",
    "mistral": "[INST] [/INST] [TOOL_CALLS] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS]",
    "llama3": "<|begin_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> <|python_tag|> <|eom_id|>",
    "deepseek": "<｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> <｜User｜> <｜Assistant｜> <｜tool▁calls▁begin｜> "
    "<｜tool▁calls▁end｜> <｜tool▁call▁begin｜> <｜tool▁call▁end｜> <｜tool▁sep｜> <｜tool▁outputs▁begin｜> "
    "<｜tool▁outputs▁end｜> <｜tool▁output▁begin｜> <｜tool▁output▁end｜>",
}


@pytest.mark.parametrize("name", TOKENS)
def test_the_calls_that_a_template_writes_are_read_again(name):
    registry = discover_plugins()
    template = registry.create("templates", name, fill_component_options(registry, "templates", name, {}))
    tokenizer = build_tokenizer(TOKENS[name].split())
    call = ToolCall(CALL["name"], CALL["arguments"], None)
    tools = () if name == "deepseek" else ({"name": "get_weather", "parameters": {"type": "object"}},)
    messages = (Message("user", "Weather?"), Message("assistant", "", tool_calls=(call,)))
    rendering = template.render(messages, tokenizer, tools=tools)
    trained = "".join(span.text for span in rendering if span.train)
    ids = tokenizer(trained, add_special_tokens=False)["input_ids"]
    answer = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert parse_calls(answer) == [(CALL["name"], CALL["arguments"])]


@pytest.mark.parametrize(
    ("answer", "scores"),
    [
        ('<tool_call>\n{"name": "get_weather", "arguments": {"days": 2.0, "city": "Graz"}}\n</tool_call>', (1, 1)),
        ('Let me look.\n<tool_call>{"name": "get_weather", "arguments": {"city": "Graz", "days": 2}}', (1, 1)),
        ('[{"name": "get_weather", "arguments": {"city": "Graz", "days": 2}, "id": "call00001"}]', (1, 1)),
        ('{"name": "get_weather", "parameters": {"city": "Graz", "days": 2}}', (1, 1)),
        ('{"function": {"name": "get_weather", "arguments": "{\\"city\\": \\"Graz\\", \\"days\\": 2}"}}', (1, 1)),
        ('{"name": "get_weather", "parameters": {"city": "Graz", "days": "2"}}', (0, 1)),
        ('{"name": "get_weather", "parameters": {"city": "Graz", "days": true}}', (0, 1)),
        ('{"name": "get_weather", "parameters": {"city": "Graz"}}', (0, 1)),
        ('{"name": "get_time", "parameters": {"city": "Graz", "days": 2}}', (0, 0)),
        ('{"name": "get_weather", "parameters": {"city": "Graz", "days": 2}', (0, 0)),
        ("It is sunny in Graz.", (0, 0)),
        ("", (0, 0)),
    ],
)
def test_the_right_function_with_equal_arguments(metric, answer, scores):
    assert statistics(metric, answer, CALL) == scores


def test_no_call_is_right_where_none_is_due(metric):
    assert statistics(metric, "It is sunny.") == (1, 1)
    assert statistics(metric, '{"temperature": 21}') == (1, 1)
    assert statistics(metric, json.dumps(CALL)) == (0, 0)
    assert statistics(metric, "") == (0, 0)


def test_several_calls_in_any_order_unless_the_order_counts(metric):
    other = {"name": "get_time", "arguments": {}}
    answer = json.dumps([other, CALL])
    assert statistics(metric, answer, CALL, other) == (1, 1)
    assert statistics(metric, answer, CALL, other, ordered=True) == (0, 0)
    assert statistics(metric, answer, CALL, CALL) == (0, 0)


def test_a_broken_call_is_unparsed(metric):
    instance = metric("tool_calls")
    assert not instance.is_parsed(item('<tool_call>{"name": "f", "arguments": {</tool_call>', CALL))
    assert instance.is_parsed(item("no call", CALL))


def test_an_item_has_the_calls_of_its_row():
    call = ToolCall(CALL["name"], CALL["arguments"], "x")
    messages = [Message("user", "Weather?"), Message("assistant", "", tool_calls=(call,))]
    assert item_from_example(build_example(messages, "rows:1")).reference_calls == (CALL,)
