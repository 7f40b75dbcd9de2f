"""The messages of one conversation as data sets write them: speakers, contents, tool calls, tools, training flags.

Knows how OpenAI, ShareGPT and their kin name things; what order turns stand in, it does not check.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from harness.contracts import Message, ToolCall
from harness.data.conversation import BadRow

SPEAKERS = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
}

CALLERS = ("function_call", "tool_call")
"""Speakers whose text is the assistant's call of a tool."""


def turns(value: Any, key: str, speaker: str, text: str) -> list[Message]:
    """The messages of an array of objects with the keys `speaker` and `text`. key: where the array stands, for errors.

    A tool that answers an only call, or names the call's id, has the call's name where it gives none itself.
    """
    if not isinstance(value, (list, tuple)):
        raise BadRow(f"has a {key!r} that is {kind(value)}, not an array of messages", "mend the row")
    messages: list[Message] = []
    names: dict[str, str] = {}  # of the tools that the turn before calls, by the call's id
    for index, turn in enumerate(value):
        if not isinstance(turn, Mapping) or turn.get(speaker) is None:
            other = isinstance(turn, Mapping) and {"from", "role"} & set(turn)
            hint = "its keys are those of the other form: see 'form' and 'columns'" if other else "mend the row"
            raise BadRow(f"has no {speaker!r} in {key}[{index}]", hint)
        said = turn[speaker]
        role = SPEAKERS.get(said) if isinstance(said, str) else None
        if role is None and said in CALLERS:
            _add_calls(messages, turn, text, f"{key}[{index}]")
            names = {}
            continue
        if role is None:
            what = f"has the unknown role {str(said)[:40]!r} in {key}[{index}]"
            raise BadRow(what, f"the roles are {', '.join([*SPEAKERS, *CALLERS])}")
        calls: tuple[ToolCall, ...] = ()
        name = None
        if role == "assistant":
            calls, names = _calls_of(turn, f"{key}[{index}]")
        elif turn.get("tool_calls") or turn.get("function_call"):
            raise BadRow(f"has a call in {key}[{index}], which is the {role}'s turn", "only the assistant calls tools")
        if role == "tool":
            name = _answering(turn, messages, names, f"{key}[{index}]")
        content = turn.get(text)
        if not isinstance(content, str):
            content = _content(content, role, f"{key}[{index}].{text}")
        trained = _trained(turn, role, f"{key}[{index}]")
        messages.append(Message(role, content, None, calls, name, trained))
    return messages


def tools(value: Any) -> tuple[Mapping[str, Any], ...]:
    """The tools of a row's `tools`: an array of functions, or of OpenAI's `{"type": "function", "function": …}`.

    The array may be JSON text. Raises BadRow for tools without a name, and for what is no function.
    """
    if isinstance(value, str):
        value = _json(value, "'tools'") if value.strip() else None
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise BadRow(
            f"has 'tools' that are {kind(value)}, not an array", "give an array of functions, or its JSON text"
        )
    return tuple(_tool(tool, f"tools[{index}]") for index, tool in enumerate(value))


def text(value: Any, what: str) -> str:
    """A text; None is as good as a blank one, and told as such by the check of the conversation."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    raise BadRow(f"has {kind(value)} in {what}, not text", "mend the row, or name another column in 'columns'")


def kind(value: Any) -> str:
    """What a value is, in words."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, (list, tuple)):
        return "an array"
    return f"the value {str(value)[:40]}"


def _content(value: Any, role: str, at: str) -> str:
    if isinstance(value, (list, tuple)) and value and role != "tool":
        parts = [part if isinstance(part, Mapping) else {} for part in value]
        other = next(
            (part for part in parts if part.get("type") != "text" or not isinstance(part.get("text"), str)), None
        )
        if other is None:
            return "".join(part["text"] for part in parts)
        if isinstance(other.get("type"), str) and other["type"] != "text":
            raise BadRow(
                f"has a part of the type {other['type'][:40]!r} in {at}", "only text is read; leave the row out"
            )
    if role == "tool" and isinstance(value, (Mapping, list, tuple)):
        return json.dumps(value, ensure_ascii=False)
    return text(value, at)


# -- calls ------------------------------------------------------------------------------------------------------------


def _calls_of(turn: Mapping[str, Any], at: str) -> tuple[tuple[ToolCall, ...], dict[str, str]]:
    """The calls of an assistant's turn, and their tools' names by the calls' ids."""
    given, legacy = turn.get("tool_calls"), turn.get("function_call")
    if given and legacy:
        raise BadRow(f"has 'tool_calls' and 'function_call' in {at}", "give all calls in 'tool_calls'")
    if not given:
        return ((_call(legacy, f"{at}.function_call"),), {}) if legacy else ((), {})
    if isinstance(given, str):
        given = _json(given, f"{at}.tool_calls")
    if not isinstance(given, (list, tuple)):
        raise BadRow(f"has {kind(given)} in {at}.tool_calls, not an array of calls", "mend the row")
    calls = tuple(_call(call, f"{at}.tool_calls[{index}]") for index, call in enumerate(given))
    ids = {call["id"]: made.name for call, made in zip(given, calls, strict=True) if isinstance(call.get("id"), str)}
    return calls, ids


def _add_calls(messages: list[Message], turn: Mapping[str, Any], key: str, at: str) -> None:
    """Take in a turn that is nothing but calls: the assistant's own, or added to its turn just before."""
    value = turn.get(key)
    if isinstance(value, str):
        value = _json(value, f"{at}.{key}")
    given = value if isinstance(value, (list, tuple)) else [value]
    calls = tuple(_call(call, f"{at}.{key}") for call in given)
    if not calls:
        raise BadRow(f"has no call in {at}.{key}", 'write {"name": …, "arguments": {…}}')
    trained = _trained(turn, "assistant", at)
    if not messages or messages[-1].role != "assistant":
        messages.append(Message("assistant", "", calls=calls, trained=trained))
        return
    last = messages.pop()
    if last.trained != trained:
        raise BadRow(f"trains one of the turn and its call in {at} and not the other", "flag both alike")
    messages.append(Message("assistant", last.content, calls=last.calls + calls, trained=trained))


def _call(value: Any, at: str) -> ToolCall:
    given = value.get("function", value) if isinstance(value, Mapping) else value
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str) or not given["name"].strip():
        raise BadRow(f"has a call without a name in {at}", 'write {"name": …, "arguments": {…}}')
    arguments = given.get("arguments")
    if isinstance(arguments, str):
        arguments = _json(arguments, f"{at}.arguments") if arguments.strip() else {}
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise BadRow(f"has {kind(arguments)} in {at}.arguments, not an object", "arguments are an object, or its JSON")
    return ToolCall(given["name"], arguments)


def _answering(turn: Mapping[str, Any], messages: Sequence[Message], names: Mapping[str, str], at: str) -> str | None:
    """The name of the tool that a turn answers for, where the data says it."""
    name, call = turn.get("name"), turn.get("tool_call_id")
    if name is not None and not isinstance(name, str):
        raise BadRow(f"has {kind(name)} in {at}.name, not text", "mend the row")
    if name:
        return name
    if call and names:
        if not isinstance(call, str) or call not in names:
            what = f"answers the call {str(call)[:40]!r} in {at}, and the turn before has no such call"
            raise BadRow(what, "a tool_call_id is the id of a call of the assistant's turn before")
        return names[call]
    before = messages[-1].calls if messages else ()
    return before[0].name if len(before) == 1 else None


def _tool(value: Any, at: str) -> Mapping[str, Any]:
    tool = value.get("function", value) if isinstance(value, Mapping) else value
    if not isinstance(tool, Mapping) or not isinstance(tool.get("name"), str) or not tool["name"].strip():
        raise BadRow(f"has a tool without a name in {at}", 'write {"name": …, "description": …, "parameters": {…}}')
    return tool


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadRow(f"has text in {what} that is not JSON: {text[:40]!r}", "mend the row") from None


# -- what is trained --------------------------------------------------------------------------------------------------


def _trained(turn: Mapping[str, Any], role: str, at: str) -> bool:
    train, weight = turn.get("train"), turn.get("weight")
    if train is None and weight is None:
        return True
    if train is not None and not isinstance(train, bool):
        raise BadRow(f"has {kind(train)} in {at}.train", "it is true or false")
    if weight is not None and (
        isinstance(weight, bool) or not isinstance(weight, (int, float)) or weight not in (0, 1)
    ):
        raise BadRow(f"has {kind(weight)} in {at}.weight", "a weight is 0 or 1: a turn is trained or it is not")
    if None not in (train, weight) and train != bool(weight):
        raise BadRow(f"has 'train' and 'weight' in {at} that say opposite things", "give one of them")
    trained = bool(weight) if train is None else train
    if role != "assistant":
        if trained:
            raise BadRow(f"flags the {role}'s turn in {at} as trained", "only the assistant's turns are trained")
        return True  # as every turn that is no response: templates train none of them
    return trained
