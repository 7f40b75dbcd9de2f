"""Tools as data sets write them: what they offer, and the assistant's calls of them.

Knows one tool and one call; which turn they stand in, `turns` knows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from harness.data.reading.conversation import BadRow
from harness.types import ToolCall
from harness.utils.json_files import Decoder

DEEPEST = 64
"""Objects and arrays within one another that a call or a tool may hold: templates walk them by calls within calls of
Python, of which there can be about a thousand; nobody means to write as many levels."""


def tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    """The tools of a row's `tools`: an array of functions, or of OpenAI's `{"type": "function", "function": …}`.

    The array may be JSON text. Raises BadRow for tools without a name, for what is no function, and for one that is
    nested deeper than `DEEPEST`.
    """
    if isinstance(value, str):
        value = as_json(value, "'tools'") if value.strip() else None
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise BadRow(
            f"has 'tools' that are {kind(value)}, not an array", "give an array of functions, or its JSON text"
        )
    return tuple(_tool(tool, f"tools[{index}]") for index, tool in enumerate(value))


def kind(value: Any) -> str:
    """What a value is, in words."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, (list, tuple)):
        return "an array"
    return f"the value {str(value)[:40]}"


def call(value: Any, at: str) -> ToolCall:
    """One call, OpenAI's `{"id": …, "function": {…}}` or the function alone. at: where it stands, for errors."""
    given = value.get("function", value) if isinstance(value, Mapping) else value
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str) or not given["name"].strip():
        raise BadRow(f"has a call without a name in {at}", 'write {"name": …, "arguments": {…}}')
    arguments = given.get("arguments")
    if isinstance(arguments, str):
        arguments = as_json(arguments, f"{at}.arguments") if arguments.strip() else {}
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise BadRow(f"has {kind(arguments)} in {at}.arguments, not an object", "arguments are an object, or its JSON")
    _check_depth(arguments, f"{at}.arguments")
    return ToolCall(given["name"], arguments, identity(value.get("id"), f"{at}.id"))


def identity(value: Any, at: str) -> str | None:
    """The id of a call, as text; None where there is none. Raises BadRow for what is neither text nor an integer."""
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise BadRow(f"has {kind(value)} in {at}, not text", "the id of a call is text: mend the row")
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise BadRow(f"has half of a surrogate pair in {at}, which is no character", "mend the escape \\ud800 … in it")
    return str(value)


def as_json(text: str, what: str) -> Any:
    """The value of a JSON text. what: where it stands. Raises BadRow for what is none, or names a key twice."""
    decoder = Decoder()
    try:
        value = decoder.whole(text)
    except (ValueError, RecursionError):
        raise BadRow(f"has text in {what} that is not JSON: {text[:40]!r}", "mend the row") from None
    if decoder.twice is not None:
        raise BadRow(f"names the key {decoder.twice[:40]!r} twice in {what}", "name it once")
    return value


def as_text(value: Any, what: str) -> str:
    """A value as JSON text. what: where it stands. Raises BadRow for what JSON cannot hold."""
    _check_depth(value, what)
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadRow(f"has a value in {what} that JSON cannot hold: {error}", "mend the row") from None


def _tool(value: Any, at: str) -> Mapping[str, Any]:
    tool = value.get("function", value) if isinstance(value, Mapping) else value
    if not isinstance(tool, Mapping) or not isinstance(tool.get("name"), str) or not tool["name"].strip():
        raise BadRow(f"has a tool without a name in {at}", 'write {"name": …, "description": …, "parameters": {…}}')
    _check_depth(tool, at)
    return tool


def _check_depth(value: Any, at: str) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise BadRow(f"is nested deeper than {DEEPEST} levels in {at}", "mend the row")
        nested: list[Any] = []
        for one in level:
            within = one.values() if isinstance(one, Mapping) else one
            nested += [inner for inner in within if isinstance(inner, (Mapping, list, tuple))]
        level = nested
