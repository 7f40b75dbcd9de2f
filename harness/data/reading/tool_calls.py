"""Tools as data sets write them: what they offer, and the assistant's calls of them.

Knows one tool and one call; which turn they stand in, `messages` knows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from harness.data.reading.conversation import InvalidRow
from harness.types import ToolCall
from harness.utils.json_files import StrictJsonDecoder

MAX_NESTING = 64
"""Objects and arrays within one another that a call or a tool may hold: templates walk them by calls within calls of
Python, of which there can be about a thousand; nobody means to write as many levels."""


def parse_tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    """The tools of a row's `tools`: an array of functions, or of OpenAI's `{"type": "function", "function": …}`.

    The array may be JSON text. Raises InvalidRow for tools without a name, for what is no function, and for one that is
    nested deeper than `MAX_NESTING`.
    """
    if isinstance(value, str):
        value = parse_json_text(value, "'tools'") if value.strip() else None
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise InvalidRow(
            f"has 'tools' that are {type_name(value)}, not an array", "give an array of functions, or its JSON text"
        )
    return tuple(_parse_tool(tool, f"tools[{index}]") for index, tool in enumerate(value))


def type_name(value: Any) -> str:
    """What a value is, in words."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, (list, tuple)):
        return "an array"
    return f"the value {str(value)[:40]}"


def parse_tool_call(value: Any, location: str) -> ToolCall:
    """One call, OpenAI's `{"id": …, "function": {…}}` or the function alone. at: where it stands, for errors."""
    given = value.get("function", value) if isinstance(value, Mapping) else value
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str) or not given["name"].strip():
        raise InvalidRow(f"has a call without a name in {location}", 'write {"name": …, "arguments": {…}}')
    arguments = given.get("arguments")
    if isinstance(arguments, str):
        arguments = parse_json_text(arguments, f"{location}.arguments") if arguments.strip() else {}
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise InvalidRow(
            f"has {type_name(arguments)} in {location}.arguments, not an object", "arguments are an object, or its JSON"
        )
    _check_nesting(arguments, f"{location}.arguments")
    return ToolCall(given["name"], arguments, parse_call_id(value.get("id"), f"{location}.id"))


def parse_call_id(value: Any, location: str) -> str | None:
    """The id of a call, as text; None where there is none.

    Raises InvalidRow for what is neither text nor an integer.
    """
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise InvalidRow(f"has {type_name(value)} in {location}, not text", "the id of a call is text: mend the row")
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidRow(
            f"has half of a surrogate pair in {location}, which is no character", "mend the escape \\ud800 … in it"
        )
    return str(value)


def parse_json_text(text: str, location: str) -> Any:
    """The value of a JSON text. what: where it stands. Raises InvalidRow for what is none, or names a key twice."""
    decoder = StrictJsonDecoder()
    try:
        value = decoder.decode(text)
    except (ValueError, RecursionError):
        raise InvalidRow(f"has text in {location} that is not JSON: {text[:40]!r}", "mend the row") from None
    if decoder.duplicate_key is not None:
        raise InvalidRow(f"names the key {decoder.duplicate_key[:40]!r} twice in {location}", "name it once")
    return value


def to_json_text(value: Any, location: str) -> str:
    """A value as JSON text. what: where it stands. Raises InvalidRow for what JSON cannot hold."""
    _check_nesting(value, location)
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidRow(f"has a value in {location} that JSON cannot hold: {error}", "mend the row") from None


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
            raise InvalidRow(f"is nested deeper than {MAX_NESTING} levels in {location}", "mend the row")
        nested: list[Any] = []
        for one in level:
            within = one.values() if isinstance(one, Mapping) else one
            nested += [inner for inner in within if isinstance(inner, (Mapping, list, tuple))]
        level = nested
