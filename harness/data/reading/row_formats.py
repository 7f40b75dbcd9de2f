"""Row forms: how a raw row holds a conversation, told from its keys or named by the spec.

Knows the forms' keys and nothing of files; a row is named by the place that its source gave it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from harness.data.reading.conversation import InvalidRow, build_example
from harness.data.reading.messages import parse_messages, parse_text
from harness.data.reading.tool_calls import parse_tools
from harness.errors import HarnessError
from harness.types import Example, Message, Record
from harness.utils.formatting import one_line

CHOICES_REQUIRED_KEYS = ("choices", "answer")
CHOICES_OPTIONAL_KEYS = ("question", "prompt", "system")


def parse_multiple_choice(row: Mapping[str, Any]) -> tuple[list[Message], tuple[str, ...]]:
    """The messages of a row, and its choices.

    row: `question` (or `prompt`), `choices` (two strings or more, all different), `answer` (an index from 0, a letter
    from A, or one of the choices), and `system` if there is a system message.
    Raises InvalidRow for anything else.
    """
    asked = [key for key in ("question", "prompt") if isinstance(row.get(key), str) and row[key].strip()]
    if len(asked) != 1:
        raise InvalidRow("has no question" if not asked else "has a 'question' and a 'prompt'", "give it one, as text")
    choices = row["choices"]
    if not isinstance(choices, list | tuple) or not all(isinstance(one, str) and one.strip() for one in choices):
        raise InvalidRow("has 'choices' that are no array of texts", 'e.g. ["yes", "no"]')
    if len(choices) < 2 or len(set(choices)) < len(choices):
        raise InvalidRow("has fewer than two choices, or two alike", "one of several different choices is right")
    right = choices[_answer_index(row["answer"], choices)]
    system = row.get("system")
    before = [Message("system", system)] if isinstance(system, str) and system.strip() else []
    return [*before, Message("user", row[asked[0]]), Message("assistant", right)], tuple(choices)


def _answer_index(answer: Any, choices: list[str] | tuple[str, ...]) -> int:
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    if isinstance(answer, str):
        # The text of a choice goes before its letter: with the choices "B" and "A", "A" is the second.
        if answer in choices:
            return choices.index(answer)
        place = ord(answer.strip().upper()) - ord("A") if len(answer.strip()) == 1 else -1
        if 0 <= place < len(choices):
            return place
    hint = f"an index from 0 to {len(choices) - 1}, a letter from A, or one of the choices"
    raise InvalidRow(f"has the answer {str(answer)[:40]!r}, which is none of its choices", hint)


MAX_KEYS_SHOWN = 20
"""Keys of a row that an error names."""


@dataclass(frozen=True)
class RowFormat:
    """One way for a row to hold a conversation. needs: the keys that it has. may: those that it may have.

    last_choice: told only where no other form fits, as data sets carry such keys beside their conversations.
    """

    required_keys: tuple[str, ...]
    optional_keys: tuple[str, ...]
    parse: Callable[[Mapping[str, Any]], list[Message]]
    fallback: bool = False


def parse_row(row: Mapping[str, Any], format_name: str, train_on: str, location: str) -> Example:
    """The conversation of a row of the form `name`; keys that are no part of the form are left aside.

    train_on: `all` or `last`: which responses are trained, of those that are not flagged otherwise.
    Raises InvalidRow for a row that is none.
    """
    form = ROW_FORMATS[format_name]
    for key in form.required_keys:
        if key not in row:
            raise _missing_key_error(row, format_name, key)
    messages = form.parse(row)
    if train_on == "last":
        messages = [_without_training(message) for message in messages[:-1]] + messages[-1:]
    given = row.get("tools") if "tools" in form.optional_keys else None
    choices = row["choices"] if "choices" in form.required_keys else ()
    return build_example(messages, location, parse_tools(given) if given else (), choices)


def detect_row_format(records: Sequence[Record], where: str) -> str:
    """The name of the one form that the rows have. Raises HarnessError when there is none, or more than one."""
    fitting = {
        name: [all(key in r.data for key in form.required_keys) for r in records] for name, form in ROW_FORMATS.items()
    }
    whole = [name for name, fits in fitting.items() if all(fits)]
    whole = [name for name in whole if not ROW_FORMATS[name].fallback] or whole
    if len(whole) == 1:
        return whole[0]
    if whole:
        what = f"the rows can be read as {' and as '.join(whole)}"
        raise HarnessError(where, what, f"""say which, e.g. "form": "{whole[0]}\"""")
    best = max(fitting, key=lambda name: sum(fitting[name]))
    if not any(fitting[best]):
        keys = _format_keys(records[0].data) or "none"
        needs = "; ".join(f"{name} needs {', '.join(form.required_keys)}" for name, form in ROW_FORMATS.items())
        what = f"the form of its rows is unknown: {records[0].location} has the keys {keys}; {needs}"
        raise HarnessError(where, what, """name your columns, e.g. "columns": {"instruction": …, "output": …}""")
    for name, fits in fitting.items():
        others = [record.location for record, a, b in zip(records, fits, fitting[best], strict=True) if a and not b]
        if others:
            first = records[fitting[best].index(True)].location
            what = f"its rows have several forms: {first} is {best}, {others[0]} is {name}"
            raise HarnessError(where, what, "make each form a source of its own")
    return best  # the rows that do not fit are told by place when they are read


class ColumnMapping:
    """Gives rows their columns under the standard names; a column so used loses its own name.

    columns: standard name -> column of the data. Raises HarnessError for a name that no form has.
    """

    def __init__(self, columns: Mapping[str, str], where: str) -> None:
        self.columns, self.where = columns, where
        self.missing = set(columns.values())
        known = sorted({key for form in ROW_FORMATS.values() for key in form.required_keys + form.optional_keys})
        for standard in columns:
            if standard not in known:
                what = f"columns names {standard!r}, which no row form has"
                raise HarnessError(where, what, f"the standard names are {', '.join(known)}")

    def rename_columns(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The row under the standard names; takes note of the columns that it has."""
        if not self.columns:
            return row
        taken = self.columns.values()
        if self.missing:
            self.missing.difference_update(row)
        named = {standard: row[column] for standard, column in self.columns.items() if column in row}
        return {**{key: value for key, value in row.items() if key not in taken}, **named}

    def check_format_reads_columns(self, format_name: str) -> None:
        """Raise HarnessError for a standard name that rows of this form do not have: nothing would read it."""
        for standard, column in self.columns.items():
            known = ROW_FORMATS[format_name].required_keys + ROW_FORMATS[format_name].optional_keys
            if standard not in known:
                what = f"columns names {column!r} as the data's column for {standard!r}, "
                what += f"which the form {format_name} has not"
                hint = f"take it out, or name another form; {format_name} has {', '.join(known)}"
                raise HarnessError(self.where, what, hint)

    def check_columns_exist(self, first_record: Record | None, *, required_only: bool) -> None:
        """Raise HarnessError for a column that no row had so far. needed: look only at those that some form needs."""
        for standard, column in self.columns.items():
            wanted = not required_only or any(standard in form.required_keys for form in ROW_FORMATS.values())
            if column in self.missing and wanted and first_record is not None:
                what = f"columns names {column!r} as the data's column for {standard!r}, and no row has it"
                raise HarnessError(self.where, what, f"{first_record.location} has {_format_keys(first_record.data)}")


def _format_keys(row: Mapping[str, Any]) -> str:
    """The keys of a row as a person may see them, some of them where there are many."""
    more = f" and {len(row) - MAX_KEYS_SHOWN:,} more" if len(row) > MAX_KEYS_SHOWN else ""
    return ", ".join(one_line(str(key), 40) for key in islice(row, MAX_KEYS_SHOWN)) + more


def _missing_key_error(row: Mapping[str, Any], format_name: str, key: str) -> InvalidRow:
    others = [other for other, form in ROW_FORMATS.items() if all(key in row for key in form.required_keys)]
    if others:
        what = f"is of the form {others[0]}, and this source's rows are {format_name}: no {key!r}"
        return InvalidRow(what, "make each form a source of its own")
    what = "has no response: no" if key in ("output", "completion") else "has no"
    needs = ", ".join(ROW_FORMATS[format_name].required_keys)
    return InvalidRow(
        f"{what} {key!r}", f"a row of the form {format_name} has {needs}; 'columns' names them where they differ"
    )


# -- the forms --------------------------------------------------------------------------------------------------------


def _parse_alpaca(row: Mapping[str, Any]) -> list[Message]:
    given = parse_text(row.get("input"), "'input'")
    messages = _system_messages(row)
    history = row.get("history")
    if history:
        pairs = isinstance(history, (list, tuple))
        if not pairs or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in history):
            raise InvalidRow("has a 'history' that is not an array of pairs", 'e.g. [["question", "answer"], …]')
        for question, answer in history:
            messages.append(Message("user", parse_text(question, "a question in 'history'")))
            messages.append(Message("assistant", parse_text(answer, "an answer in 'history'")))
    instruction = parse_text(row["instruction"], "'instruction'")
    messages.append(Message("user", instruction, given if given and not given.isspace() else None))
    messages.append(Message("assistant", parse_text(row["output"], "'output'")))
    return messages


def _parse_messages_row(row: Mapping[str, Any]) -> list[Message]:
    return _prepend_system(row, parse_messages(row["messages"], "messages", "role", "content"))


def _parse_sharegpt(row: Mapping[str, Any]) -> list[Message]:
    return _prepend_system(row, parse_messages(row["conversations"], "conversations", "from", "value"))


def _parse_prompt_completion(row: Mapping[str, Any]) -> list[Message]:
    prompt, completion = row["prompt"], row["completion"]
    messages = _system_messages(row)
    if isinstance(prompt, (list, tuple)):
        # A prompt's responses are there to be read, as its name says; only the completion is trained.
        messages += [_without_training(message) for message in parse_messages(prompt, "prompt", "role", "content")]
    else:
        messages.append(Message("user", parse_text(prompt, "'prompt'")))
    if isinstance(completion, (list, tuple)):
        return parse_messages(completion, "completion", "role", "content", messages)
    return [*messages, Message("assistant", parse_text(completion, "'completion'"))]


def _parse_plain_text(row: Mapping[str, Any]) -> list[Message]:
    return [Message("text", parse_text(row["text"], "'text'"))]


def _system_messages(row: Mapping[str, Any]) -> list[Message]:
    said = parse_text(row.get("system"), "'system'")
    return [Message("system", said)] if said.strip() else []


def _prepend_system(row: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    """The messages behind the row's `system`, unless they begin with the same one."""
    own = _system_messages(row)
    if own and messages and messages[0].role == "system" and messages[0].content.strip() == own[0].content.strip():
        return messages
    return own + messages


def _without_training(message: Message) -> Message:
    if message.role != "assistant" or not message.train:
        return message
    return replace(message, train=False)


ROW_FORMATS = {
    "alpaca": RowFormat(("instruction", "output"), ("input", "system", "history"), _parse_alpaca),
    "messages": RowFormat(("messages",), ("system", "tools"), _parse_messages_row),
    "sharegpt": RowFormat(("conversations",), ("system", "tools"), _parse_sharegpt),
    "prompt_completion": RowFormat(("prompt", "completion"), ("system", "tools"), _parse_prompt_completion),
    "choices": RowFormat(
        CHOICES_REQUIRED_KEYS, CHOICES_OPTIONAL_KEYS, lambda row: parse_multiple_choice(row)[0], fallback=True
    ),
    "text": RowFormat(("text",), (), _parse_plain_text, fallback=True),
}
