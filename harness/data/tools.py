"""Tools as data sets write them: what they offer, and the assistant's calls of them.

Knows one tool and one call; which turn they stand in, `turns` knows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from harness.contracts import ToolCall
from harness.data.conversation import BadRow


def tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    """The tools of a row's `tools`: an array of functions, or of OpenAI's `{"type": "function", "function": …}`.

    The array may be JSON text. Raises BadRow for tools without a name, and for what is no function.
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
    return ToolCall(given["name"], arguments, identity(value.get("id"), f"{at}.id"))


def identity(value: Any, at: str) -> str | None:
    """The id of a call, as text; None where there is none. Raises BadRow for what is no text."""
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise BadRow(f"has {kind(value)} in {at}, not text", "the id of a call is text: mend the row")
    return value


def _tool(value: Any, at: str) -> Mapping[str, Any]:
    tool = value.get("function", value) if isinstance(value, Mapping) else value
    if not isinstance(tool, Mapping) or not isinstance(tool.get("name"), str) or not tool["name"].strip():
        raise BadRow(f"has a tool without a name in {at}", 'write {"name": …, "description": …, "parameters": {…}}')
    return tool


def as_json(text: str, what: str) -> Any:
    """The value of a JSON text. what: where it stands. Raises BadRow for what is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadRow(f"has text in {what} that is not JSON: {text[:40]!r}", "mend the row") from None
