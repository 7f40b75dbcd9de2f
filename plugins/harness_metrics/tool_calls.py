"""Tool calls of answers compared with those of the reference."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness import Component, ComponentExample, HarnessError, Item
from harness.utils.json_depth import load_json
from harness_metrics.base import RatioMetric

COMPONENTS: dict[str, Component] = {
    "tool_calls": Component(
        summary="Fraction of answers with exactly the tool calls of the reference, 0 to 1.",
        factory="harness_metrics.tool_calls:ToolCalls",
        options={
            "ordered": {
                "type": "boolean",
                "default": False,
                "description": "Several calls must also have the order of the reference.",
            },
        },
        example=ComponentExample(worse='{"name": "f", "arguments": {}}'),
    ),
}

Call = tuple[str, Any]
"""Name and arguments of a call."""

_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|$)", re.DOTALL)
_DEEPSEEK = re.compile(r"function(?:<｜tool▁sep｜>)?([\w.-]+)\s*\n```json\s*\n(.*?)\n```", re.DOTALL)
_MARKERS = re.compile(r"^\s*(?:\[TOOL_CALLS\]|<\|python_tag\|>|<\|tool_calls?\|>|functools)\s*")
_FENCE = re.compile(r"\s*```(?:json|JSON)?[ \t]*\n(.*?)\n?[ \t]*```\s*", re.DOTALL)


class ToolCalls(RatioMetric):
    """Fraction of answers with the right tool calls, 0 to 1, by the syntax tree as in BFCL (Patil et al., 2024).

    `tool_calls` counts answers that make exactly the calls of the reference: the same functions, with arguments that
    are equal as JSON values (1 equals 1.0, and neither `true` nor `"1"`; the order of keys does not matter).
    `tool_names` counts answers that call the same functions, whatever the arguments. If the reference makes no call, an
    answer is right if it makes none. Text beside the calls is not compared. A call that cannot be parsed is a wrong
    one, and its item is unparsed.

    Answers are read in the formats of the built-in templates: `<tool_call>` (Qwen, Hermes), a JSON list (Mistral), a
    JSON object with `name` and `parameters` or `arguments` (Llama), and DeepSeek's. Source:
    https://gorilla.cs.berkeley.edu/leaderboard.html.
    """

    requires = "answer"
    score_names = ("tool_calls", "tool_names")

    def __init__(self, ordered: bool) -> None:
        """Create the metric.

        Args:
            ordered: Whether the order of several calls matters.
        """
        self._ordered = ordered

    def signature(self) -> str:
        """Return whether the order counts, and the version."""
        return f"tool_calls|ordered:{'yes' if self._ordered else 'no'}|version:1"

    def is_parsed(self, item: Item) -> bool:
        """Return whether every call in the answer could be parsed."""
        return None not in parse_calls(item.answer or "")

    def statistics(self, item: Item) -> dict[str, tuple[float, ...]]:
        """Return whether calls, and names of calls, are right.

        Raises:
            HarnessError: The item has no answer.
        """
        if item.answer is None:
            raise HarnessError(f"item {item.id}", "has no answer to score", "generate answers for its suite first")
        calls = parse_calls(item.answer)
        expected = [(call["name"], call["arguments"]) for call in item.reference_calls]
        is_blank = not item.answer.strip()  # it is not an answer, not even one without a call
        names_match = not is_blank and self._normalize([call and call[0] for call in calls]) == self._normalize(
            [name for name, _ in expected]
        )
        calls_match = names_match and self._normalize(calls) == self._normalize(expected)
        return {"tool_calls": (float(calls_match), 1.0), "tool_names": (float(names_match), 1.0)}

    def _normalize(self, values: Sequence[Any]) -> list[str]:
        """Return the values as JSON texts that are equal if the values are, sorted unless the order counts."""
        texts = [json.dumps(_with_equal_numbers(value), sort_keys=True, ensure_ascii=False) for value in values]
        return texts if self._ordered else sorted(texts)


def parse_calls(answer: str) -> list[Call | None]:
    """Return the tool calls of an answer; None for each that cannot be parsed.

    An answer that is not in one of the formats of tool calls has none.
    """
    tagged = _TAGGED.findall(answer)
    if tagged:
        return [call for text in tagged for call in _calls_of_json(text.strip(), is_marked=True)]
    in_deepseek = _DEEPSEEK.findall(answer)
    if in_deepseek:
        return [_call_of_deepseek(name, text) for name, text in in_deepseek]
    marker = _MARKERS.match(answer)
    text = answer[marker.end() :] if marker else answer
    fence = _FENCE.fullmatch(text)
    return list(_calls_of_json((fence.group(1) if fence else text).strip(), is_marked=marker is not None))


def _calls_of_json(text: str, *, is_marked: bool) -> Iterator[Call | None]:
    """Yield the calls of a JSON text: an object, a list, or several of them in a row.

    Args:
        text: The text.
        is_marked: Whether a marker says that it is a call. Without one, other JSON is an answer without calls.
    """
    decoder, position = json.JSONDecoder(), 0
    values: list[Any] = []
    while position < len(text) and text[position] in "{[":
        try:
            value, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            break
        values.append(value)
        position = end
        while position < len(text) and text[position] in " \t\r\n;,":
            position += 1
    if position < len(text) or not values:
        if is_marked or re.match(r'\[?\s*\{\s*"name"\s*:', text):
            yield None
        return
    for value in values:
        for element in value if isinstance(value, list) else [value]:
            call = _call_of_value(element)
            if call is not None or is_marked:
                yield call


def _call_of_value(value: Any) -> Call | None:
    if isinstance(value, Mapping):
        value = value.get("function", value)
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = load_json(arguments, json.JSONDecoder())
        except ValueError:
            return None
    return (value["name"], arguments) if isinstance(arguments, Mapping) else None


def _call_of_deepseek(name: str, text: str) -> Call | None:
    try:
        arguments = load_json(text, json.JSONDecoder())
    except ValueError:
        return None
    return (name, arguments) if isinstance(arguments, Mapping) else None


def _with_equal_numbers(value: Any) -> Any:
    """Return a JSON value in which a number such as 1.0 is the integer that equals it."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _with_equal_numbers(element) for key, element in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_equal_numbers(element) for element in value]
    return value
