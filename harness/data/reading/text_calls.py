"""Parse tool calls that an assistant's text contains, where a tool's turn follows it.

Two notations are read. Hermes (github.com/NousResearch/Hermes-Function-Calling) writes JSON between tags::

    I look it up. <tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>

ToolACE (arXiv:2409.00920) writes calls like those of Python, in brackets. Names may contain spaces::

    [Weather Forecast(city="Oslo", days=3), Time Zone(city="Oslo")]
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from harness.data.reading.tool_calls import parse_json_text, parse_tool_call
from harness.types import Message, ToolCall

HERMES_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
HERMES_RESULT = re.compile(r"<tool_response>(.*?)</tool_response>", re.DOTALL)
JSON_NAMES = {"true": True, "false": False, "null": None}


def parse_text_calls(message: Message, location: str) -> Message:
    """Return an assistant's message with the calls in its text as tool calls.

    Args:
        message: A message without tool calls.
        location: The key of the tool's turn after it, for errors.

    Raises:
        InvalidRow: A call between tags is not valid.
    """
    blocks = HERMES_CALL.findall(message.content)
    if blocks:
        calls = tuple(_parse_block(block.strip(), location) for block in blocks)
        return replace(message, content=HERMES_CALL.sub("", message.content).strip(), tool_calls=calls)
    text = message.content.strip()
    python_calls = _parse_python_calls(text) if text.startswith("[") and text.endswith(")]") else None
    return message if python_calls is None else replace(message, content="", tool_calls=tuple(python_calls))


def split_text_results(content: str, calls: Sequence[ToolCall]) -> list[str]:
    """Return the results in a tool's text: those between Hermes' tags if there is one for each call, else the text."""
    results = [result.strip() for result in HERMES_RESULT.findall(content)]
    return results if results and len(results) == len(calls) else [content]


def _parse_block(block: str, location: str) -> ToolCall:
    try:
        value = ast.literal_eval(block)  # early data sets of Hermes have Python's quotes
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = parse_json_text(block, f"the <tool_call> before {location}")
    return parse_tool_call(value, f"the <tool_call> before {location}")


def _parse_python_calls(text: str) -> list[ToolCall] | None:
    """Return the calls of a text in ToolACE's notation, or None if it is not one."""
    calls: list[ToolCall] = []
    position, end = 1, len(text) - 1
    while position < end:
        opening = text.find("(", position)
        name = text[position:opening].strip().removeprefix(",").strip()
        if opening < 0 or not name or any(character in name for character in "\"'[](){}"):
            return None
        # The arguments end at the first parenthesis up to which they are valid.
        closing, arguments = opening, None
        while arguments is None:
            closing = text.find(")", closing + 1)
            if closing < 0:
                return None
            arguments = _parse_arguments(text[opening + 1 : closing])
        calls.append(ToolCall(name, arguments))
        position = closing + 1
    return calls or None


def _parse_arguments(text: str) -> dict[str, Any] | None:
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
            return None
        return {str(keyword.arg): _parse_value(keyword.value) for keyword in call.keywords}
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _parse_value(node: ast.expr) -> Any:
    """Return the value of a literal of Python or JSON. Raises ValueError for anything else."""
    if isinstance(node, ast.Name) and node.id in JSON_NAMES:
        return JSON_NAMES[node.id]
    if isinstance(node, ast.List):
        return [_parse_value(item) for item in node.elts]
    if isinstance(node, ast.Dict) and None not in node.keys:
        keys = [ast.literal_eval(key) for key in node.keys if key is not None]
        return {str(key): _parse_value(item) for key, item in zip(keys, node.values, strict=True)}
    return ast.literal_eval(node)
