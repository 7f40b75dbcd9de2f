"""The text of prompts and responses."""

from __future__ import annotations

from harness.data.checks.conversation_text import conversation_text, prompt_messages, response_message
from harness.types import Example, Message, ToolCall


def test_conversation_text_has_contents_inputs_and_calls():
    call = Message("assistant", "Wait.", tool_calls=(ToolCall("weather", {"city": "Köln"}),))
    example = Example("id", (Message("user", "Sum up.", input="a text"), call), "x:1")
    assert conversation_text(prompt_messages(example)) == "Sum up.\na text"
    assert conversation_text([response_message(example)]) == 'Wait.\nweather {"city": "Köln"}'
