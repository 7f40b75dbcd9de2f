"""Row forms: how a raw row holds a conversation, told from its keys or named by the spec.

Knows the forms' keys and nothing of files; a row is named by the place that its source gave it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.contracts import Example, Message, Record, Source
from harness.data.conversation import BadRow, example
from harness.errors import HarnessError, raise_all

SHOWN = 5

SPEAKERS = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}

TOOLS = ("tool", "function", "function_call", "tool_call", "observation")


@dataclass(frozen=True)
class Form:
    """One way for a row to hold a conversation. needs: the keys that it has. may: those that it may have."""

    needs: tuple[str, ...]
    may: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], list[Message]]


def examples(source: Source, options: Mapping[str, Any], name: str) -> list[Example]:
    """The conversations of a source, in its order; keys of a row that are no part of its form are left aside.

    options: of the source; `form` and `columns` are read. name: the source's, for errors.
    Raises HarnessError for a form that cannot be told, and for bad rows: the first five by place, then their number.
    """
    records = list(source.records())
    if not records:
        raise HarnessError(f"sources.{name}", "the data set holds no rows", "give it at least one")
    where = f"sources.{name}"
    records = _renamed(records, options["columns"], where)
    form = options["form"]
    form = detect(records, where) if form == "auto" else form
    found, bad = [], []
    for record in records:
        try:
            found.append(example(_read(record.data, form), record.place))
        except BadRow as error:
            bad.append(HarnessError(record.place, error.what, error.hint))
    if len(bad) > SHOWN:
        bad[SHOWN:] = [HarnessError(where, f"and {len(bad) - SHOWN} more bad rows, of {len(records)} rows")]
    raise_all(bad)
    return found


def detect(records: Sequence[Record], where: str) -> str:
    """The name of the one form that the rows have. Raises HarnessError when there is none, or more than one."""
    fitting = {name: [all(key in r.data for key in form.needs) for r in records] for name, form in FORMS.items()}
    whole = [name for name, fits in fitting.items() if all(fits)]
    if len(whole) == 1:
        return whole[0]
    if whole:
        what = f"the rows can be read as {' and as '.join(whole)}"
        raise HarnessError(where, what, f"""say which, e.g. "form": "{whole[0]}\"""")
    best = max(fitting, key=lambda name: sum(fitting[name]))
    if not any(fitting[best]):
        keys = ", ".join(map(str, records[0].data)) or "none"
        needs = "; ".join(f"{name} needs {', '.join(form.needs)}" for name, form in FORMS.items())
        what = f"the form of its rows is unknown: {records[0].place} has the keys {keys}; {needs}"
        raise HarnessError(where, what, """name your columns, e.g. "columns": {"instruction": …, "output": …}""")
    for name, fits in fitting.items():
        others = [record.place for record, a, b in zip(records, fits, fitting[best], strict=True) if a and not b]
        if others:
            first = records[fitting[best].index(True)].place
            what = f"its rows have several forms: {first} is {best}, {others[0]} is {name}"
            raise HarnessError(where, what, "make each form a source of its own")
    return best  # the rows that do not fit are told by place when they are read


def _renamed(records: list[Record], columns: Mapping[str, str], where: str) -> list[Record]:
    """The rows with the data's columns under their standard names; a column so used loses its own name."""
    if not columns:
        return records
    known = sorted({key for form in FORMS.values() for key in form.needs + form.may})
    for standard, column in columns.items():
        if standard not in known:
            what = f"columns names {standard!r}, which no row form has"
            raise HarnessError(where, what, f"the standard names are {', '.join(known)}")
        if not any(column in record.data for record in records):
            keys = ", ".join(map(str, records[0].data))
            what = f"columns names {column!r} as the data's column for {standard!r}, and no row has it"
            raise HarnessError(where, what, f"{records[0].place} has {keys}")
    taken = set(columns.values())
    return [
        replace(
            record,
            data={
                **{key: value for key, value in record.data.items() if key not in taken},
                **{standard: record.data[column] for standard, column in columns.items() if column in record.data},
            },
        )
        for record in records
    ]


def _read(row: Mapping[str, Any], name: str) -> list[Message]:
    form = FORMS[name]
    missing = [key for key in form.needs if key not in row]
    if missing:
        what = "has no response: no" if missing[0] in ("output", "completion") else "has no"
        hint = f"a row of the form {name} has {', '.join(form.needs)}; 'columns' names them where they differ"
        raise BadRow(f"{what} {missing[0]!r}", hint)
    return form.read(row)


# -- the forms --------------------------------------------------------------------------------------------------------


def _alpaca(row: Mapping[str, Any]) -> list[Message]:
    given = _optional(row, "input")
    messages = _system(row)
    history = row.get("history") or []
    if not isinstance(history, (list, tuple)) or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in history):
        raise BadRow("has a 'history' that is not an array of pairs", 'e.g. [["question", "answer"], …]')
    for question, answer in history:
        messages.append(Message("user", _text(question, "a question in 'history'")))
        messages.append(Message("assistant", _text(answer, "an answer in 'history'")))
    instruction = _text(row["instruction"], "'instruction'")
    messages.append(Message("user", instruction, input=given if given.strip() else None))
    messages.append(Message("assistant", _text(row["output"], "'output'")))
    return messages


def _messages(row: Mapping[str, Any]) -> list[Message]:
    return _turns(row["messages"], "messages", "role", "content")


def _sharegpt(row: Mapping[str, Any]) -> list[Message]:
    return _system(row) + _turns(row["conversations"], "conversations", "from", "value")


def _prompt_completion(row: Mapping[str, Any]) -> list[Message]:
    messages = _system(row)
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        if isinstance(row[key], (list, tuple)):
            messages += _turns(row[key], key, "role", "content")
        else:
            messages.append(Message(role, _text(row[key], f"{key!r}")))
    return messages


FORMS = {
    "alpaca": Form(("instruction", "output"), ("input", "system", "history"), _alpaca),
    "messages": Form(("messages",), (), _messages),
    "sharegpt": Form(("conversations",), ("system",), _sharegpt),
    "prompt_completion": Form(("prompt", "completion"), ("system",), _prompt_completion),
}


def _system(row: Mapping[str, Any]) -> list[Message]:
    text = _optional(row, "system")
    return [Message("system", text)] if text.strip() else []


def _optional(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    return "" if value is None else _text(value, f"{key!r}")


def _turns(turns: Any, key: str, speaker: str, text: str) -> list[Message]:
    """The messages of an array of objects with the keys `speaker` and `text`."""
    if not isinstance(turns, (list, tuple)):
        raise BadRow(f"has a {key!r} that is {_kind(turns)}, not an array of messages", "mend the row")
    messages = []
    for index, turn in enumerate(turns):
        at = f"{key}[{index}]"
        if not isinstance(turn, Mapping) or speaker not in turn:
            other = isinstance(turn, Mapping) and {"from", "role"} & set(turn)
            hint = "its keys are those of the other form: see 'form' and 'columns'" if other else "mend the row"
            raise BadRow(f"has no {speaker!r} in {at}", hint)
        role = SPEAKERS.get(turn[speaker]) if isinstance(turn[speaker], str) else None
        if role is None or turn.get("tool_calls"):
            raise _no_speaker(at, turn[speaker] if role is None else "tool_calls")
        messages.append(Message(role, _text(turn.get(text), f"{at}.{text}")))
    return messages


def _no_speaker(at: str, speaker: Any) -> BadRow:
    if speaker in (*TOOLS, "tool_calls"):
        return BadRow(f"calls a tool in {at} ({speaker})", "conversations with tools are not read; leave the row out")
    return BadRow(f"has the unknown role {str(speaker)[:40]!r} in {at}", f"the roles are {', '.join(SPEAKERS)}")


def _text(value: Any, what: str) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""  # as good as blank, and told as such by the check of the conversation
    raise BadRow(f"has {_kind(value)} in {what}, not text", "mend the row, or name another column in 'columns'")


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, (list, tuple)):
        return "an array"
    return f"the value {str(value)[:40]}"
