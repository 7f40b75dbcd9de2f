"""Parse tools and tool calls as data sets write them: what is on offer, and what the assistant calls.

A function here sees one tool or one call; `messages` knows the turn that it belongs to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from harness.errors import InvalidRow
from harness.types import ToolCall
from harness.utils.json_depth import HINT_NESTING, NESTED_TOO_DEEP, JsonDepthError
from harness.utils.json_files import StrictJsonDecoder

PYTHON_LITERAL = re.compile(r"\s*\[?\s*\{\s*'")
HINT_PYTHON = "it is a value of Python, in single quotes: write it with json.dumps instead of str"

MAX_NESTING = 64
"""Levels of objects and arrays that a call or a tool may have: templates visit them recursively, and Python allows
about a thousand nested calls. Real tools have far fewer levels."""


def parse_tools(value: Any, key: str = "tools") -> tuple[Mapping[str, Any], ...]:
    """Return the tools of a row.

    Args:
        value: An array of functions, or of OpenAI's `{"type": "function", "function": …}`, or its JSON text.
        key: The key of the array in its row, for errors.

    Raises:
        InvalidRow: A tool has no name, is not a function, or is nested deeper than `MAX_NESTING`.
    """
    if isinstance(value, str):
        value = parse_json_text(value, repr(key)) if value.strip() else None
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise InvalidRow(
            f"has {key!r} that are {type_name(value)}, not an array", "write an array of functions, or its JSON text"
        )
    return tuple(_parse_tool(tool, f"{key}[{index}]") for index, tool in enumerate(value))


def type_name(value: Any) -> str:
    """Return the type of a value of JSON in words; a number, a text or null is named by its value."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, (list, tuple)):
        return "an array"
    return f"the value {str(value)[:40]}"


def parse_tool_call(value: Any, location: str) -> ToolCall:
    """Parse one call, either OpenAI's `{"id": …, "function": {…}}` or the function alone.

    Args:
        value: The call.
        location: The key of the call in its row, for errors.

    Raises:
        InvalidRow: The call has no name, or its arguments are not an object.
    """
    function = value.get("function", value) if isinstance(value, Mapping) else value
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"].strip():
        raise InvalidRow(f"has a call without a name in {location}", 'write {"name": …, "arguments": {…}}')
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = parse_json_text(arguments, f"{location}.arguments") if arguments.strip() else {}
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise InvalidRow(
            f"has {type_name(arguments)} in {location}.arguments, not an object",
            "write the arguments as an object, or its JSON text",
        )
    _check_nesting(arguments, f"{location}.arguments")
    return ToolCall(function["name"], arguments, parse_call_id(value.get("id"), f"{location}.id"))


def parse_call_id(value: Any, location: str) -> str | None:
    """Return the id of a call as text; None if it has no id.

    Raises:
        InvalidRow: The id is neither text nor an integer.
    """
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise InvalidRow(f"has {type_name(value)} in {location}, not text", "write the id of a call as text")
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidRow(
            f"has half of a surrogate pair in {location}, which is not a character", "fix the escape \\ud800 … in it"
        )
    return str(value)


def parse_json_text(text: str, location: str) -> Any:
    """Return the value of a JSON text.

    Args:
        text: The text.
        location: The key of the text in its row, for errors.

    Raises:
        InvalidRow: The text is not JSON, it is nested too deep, or an object in it has the same key twice.
    """
    decoder = StrictJsonDecoder()
    try:
        value = decoder.decode(text)
    except JsonDepthError:
        raise InvalidRow(f"has text in {location} that cannot be read: {NESTED_TOO_DEEP}", HINT_NESTING) from None
    except ValueError:
        hint = HINT_PYTHON if PYTHON_LITERAL.match(text) else "write it with json.dumps"
        raise InvalidRow(f"has text in {location} that is not JSON: {text[:40]!r}", hint) from None
    if decoder.duplicate_key is not None:
        raise InvalidRow(f"has the key {decoder.duplicate_key[:40]!r} twice in {location}", "remove one of them")
    return value


def to_json_text(value: Any, location: str) -> str:
    """Return a value as JSON text.

    Raises:
        InvalidRow: JSON cannot hold the value, or it is nested deeper than `MAX_NESTING`.
    """
    _check_nesting(value, location)
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidRow(f"has a value in {location} that JSON cannot hold: {error}", "fix the row") from None


def _parse_tool(value: Any, location: str) -> Mapping[str, Any]:
    tool = value.get("function", value) if isinstance(value, Mapping) else value
    if not isinstance(tool, Mapping) or not isinstance(tool.get("name"), str) or not tool["name"].strip():
        raise InvalidRow(
            f"has a tool without a name in {location}", 'write {"name": …, "description": …, "parameters": {…}}'
        )
    _check_nesting(tool, location)
    return tool


def _check_nesting(value: Any, location: str) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_NESTING:
            raise InvalidRow(f"is nested deeper than {MAX_NESTING} levels in {location}", "flatten the value")
        children = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, Mapping) else parent)
            if isinstance(child, (Mapping, list, tuple))
        ]
        level = children
