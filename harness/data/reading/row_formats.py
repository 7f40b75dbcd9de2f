"""Row formats: parse a raw row into a conversation, in a format that is detected from its keys or set in the spec.

No function here reads files; a row is named by the location that its source gives it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from harness.data.reading.column_hints import is_preference_pair, suggest_columns
from harness.data.reading.conversation import build_example
from harness.data.reading.messages import parse_messages, parse_text
from harness.data.reading.row_options import DEFAULT_OPTIONS, MessageKeys, RowOptions
from harness.data.reading.tool_calls import parse_tools
from harness.data.reading.turn_order import arrange_turns, split_responses, train_only_last, without_training
from harness.errors import HarnessError, InvalidRow
from harness.interfaces.row_format import RowFormat
from harness.registry import Registry
from harness.types import Example, Message, Record
from harness.utils.formatting import one_line

CHOICES_REQUIRED_KEYS = ("choices", "answer")
CHOICES_OPTIONAL_KEYS = ("question", "prompt", "system")


def parse_multiple_choice(row: Mapping[str, Any]) -> tuple[list[Message], tuple[str, ...]]:
    """Parse a multiple-choice question.

    Args:
        row: `question` (or `prompt`), `choices` (two or more different texts), `answer` (an index from 0, a letter from
            A, or one of the choices), and optionally `system`.

    Returns:
        The messages, with the right choice as the response, and the choices.

    Raises:
        InvalidRow: The row is not a multiple-choice question.
    """
    question_keys = [key for key in ("question", "prompt") if isinstance(row.get(key), str) and row[key].strip()]
    if len(question_keys) != 1:
        what = "has a 'question' and a 'prompt'" if question_keys else "has no question"
        raise InvalidRow(what, "write one of 'question' and 'prompt', as text")
    choices = row["choices"]
    if not isinstance(choices, list | tuple) or not all(
        isinstance(choice, str) and choice.strip() for choice in choices
    ):
        raise InvalidRow("has 'choices' that are not an array of texts", 'e.g. ["yes", "no"]')
    if len(choices) < 2 or len(set(choices)) < len(choices):
        raise InvalidRow("has fewer than two choices, or two equal ones", "write two or more different choices")
    gold_choice = choices[_answer_index(row["answer"], choices)]
    system = row.get("system")
    system_messages = [Message("system", system)] if isinstance(system, str) and system.strip() else []
    messages = [*system_messages, Message("user", row[question_keys[0]]), Message("assistant", gold_choice)]
    return messages, tuple(choices)


def _answer_index(answer: Any, choices: list[str] | tuple[str, ...]) -> int:
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        return answer
    if isinstance(answer, str):
        # The text of a choice has priority over its letter: with the choices "B" and "A", "A" is the second.
        if answer in choices:
            return choices.index(answer)
        index = ord(answer.strip().upper()) - ord("A") if len(answer.strip()) == 1 else -1
        if 0 <= index < len(choices):
            return index
    hint = f"write an index from 0 to {len(choices) - 1}, a letter from A, or one of the choices"
    raise InvalidRow(f"has the answer {str(answer)[:40]!r}, which is not one of its choices", hint)


MAX_KEYS_SHOWN = 20
"""Keys of a row that an error names."""


@dataclass(frozen=True)
class ColumnLayout:
    """One way for a row to hold a conversation.

    Attributes:
        required_keys: Keys that every row has.
        optional_keys: Keys that a row may have.
        parse: Returns the messages of a row.
        fallback: Whether the format is detected only if no other format fits, because data sets often have its keys in
            addition to their conversations.
    """

    required_keys: tuple[str, ...]
    optional_keys: tuple[str, ...]
    parse: Callable[[Mapping[str, Any], MessageKeys], list[Message]]
    fallback: bool = False


def with_row_format(options: Mapping[str, Any], registry: Registry) -> Mapping[str, Any]:
    """Return a source's options with the row format itself in `form`, if a plugin provides it.

    Args:
        options: The source's options, with the defaults of the core filled in.
        registry: The components.
    """
    if not isinstance(options["form"], Mapping):
        return options
    ((name, own_options),) = options["form"].items()
    return {**options, "form": (name, registry.create("row_formats", name, own_options))}


def name_and_layouts(form: str | tuple[str, RowFormat]) -> tuple[str, Mapping[str, ColumnLayout]]:
    """Return the name of a source's row format, and the layouts of all formats.

    Args:
        form: The name of a built-in format, or name and instance of a plugin's.
    """
    if isinstance(form, str):
        return form, ROW_FORMATS
    name, row_format = form
    layout = ColumnLayout(
        tuple(row_format.required_keys),
        tuple(row_format.optional_keys),
        lambda row, keys: list(row_format.parse_row(row)),
    )
    return name, {**ROW_FORMATS, name: layout}


def parse_examples(
    row: Mapping[str, Any],
    format_name: str,
    location: str,
    options: RowOptions = DEFAULT_OPTIONS,
    layouts: Mapping[str, ColumnLayout] | None = None,
) -> list[Example]:
    """Return the conversation of a row, or with `train_on: each` one conversation for each trained response.

    Keys that are not part of the format are ignored.

    Args:
        row: The row, with its columns under the standard names.
        format_name: A key of `layouts`.
        location: Where the row is stored, for errors.
        options: How the row is read.
        layouts: See `name_and_layouts`; None: those of the built-in formats.

    Raises:
        InvalidRow: The row is not a valid row of this format.
    """
    layouts = ROW_FORMATS if layouts is None else layouts
    row_format = layouts[format_name]
    for key in row_format.required_keys:
        if key not in row:
            raise _missing_key_error(row, format_name, key, layouts)
    messages = row_format.parse(row, options.message_keys)
    if not options.keep_system:
        messages = [message for message in messages if message.role != "system"]
    messages = arrange_turns(messages, options)
    if options.train_on == "last":
        messages = train_only_last(messages)
    choices = row["choices"] if "choices" in row_format.required_keys else ()
    tools = _parse_tools_of_row(row, row_format)
    may_begin = options.first_assistant == "context"
    example = build_example(messages, location, tools, choices, assistant_may_begin=may_begin)
    if options.train_on != "each":
        return [example]
    return [
        build_example(turns, location, tools, choices, assistant_may_begin=may_begin)
        for turns in split_responses(example.messages)
    ]


def _parse_tools_of_row(row: Mapping[str, Any], row_format: ColumnLayout) -> tuple[Mapping[str, Any], ...]:
    """Return the tools of a row: of `tools`, or of `functions`, OpenAI's older name."""
    named = [key for key in ("tools", "functions") if key in row_format.optional_keys and row.get(key)]
    if len(named) > 1:
        raise InvalidRow("has 'tools' and 'functions'", "write all of them in 'tools'")
    return parse_tools(row[named[0]], named[0]) if named else ()


def detect_row_format(records: Sequence[Record], where: str) -> str:
    """Return the name of the only format that all rows have.

    Rows that do not have the format of most rows are reported later, when they are parsed.

    Args:
        records: The first rows of a source, at least one.
        where: The key of the source in the spec, for errors.

    Raises:
        HarnessError: No format fits, or more than one.
    """
    rows_fit = {
        name: [all(key in record.data for key in row_format.required_keys) for record in records]
        for name, row_format in ROW_FORMATS.items()
    }
    fitting = [name for name, fits in rows_fit.items() if all(fits)]
    fitting = [name for name in fitting if not ROW_FORMATS[name].fallback] or fitting
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        what = f"the rows fit several row formats: {' and '.join(fitting)}"
        raise HarnessError(where, what, f"""choose one, e.g. "form": "{fitting[0]}\"""")
    best = max(rows_fit, key=lambda name: sum(rows_fit[name]))
    if not any(rows_fit[best]):
        first = records[0]
        hint = suggest_columns(first.data)
        if is_preference_pair(first.data):
            what = f"its rows are preference pairs: {first.location} has 'chosen' and 'rejected'"
            raise HarnessError(where, what, f"to train the chosen answers, {hint}")
        keys = _format_keys(first.data) or "none"
        needs = "; ".join(f"{name} needs {', '.join(format_.required_keys)}" for name, format_ in ROW_FORMATS.items())
        what = f"its row format is unknown: {first.location} has the keys {keys}; {needs}"
        raise HarnessError(where, what, hint)
    for name, fits in rows_fit.items():
        other_locations = [
            record.location
            for record, fits_this, fits_best in zip(records, fits, rows_fit[best], strict=True)
            if fits_this and not fits_best
        ]
        if other_locations:
            first_place = records[rows_fit[best].index(True)].location
            what = f"its rows have several row formats: {first_place} is {best}, {other_locations[0]} is {name}"
            raise HarnessError(where, what, "split the rows into one source per row format")
    return best


MESSAGE_NAMES = ("role", "content")
"""Standard names of the option `columns` that are keys of a message, not of a row; see `row_options.MessageKeys`."""


class ColumnMapping:
    """Renames the columns of rows to the standard names of the row formats.

    Attributes:
        columns: Standard name -> column of the data, without the keys of messages (see `MESSAGE_NAMES`).
        where: The key of the source in the spec, for errors.
        missing: Columns that no row had so far.
    """

    def __init__(
        self, columns: Mapping[str, str], where: str, layouts: Mapping[str, ColumnLayout] | None = None
    ) -> None:
        """Validate the standard names; raise HarnessError for a name that no row format has."""
        self.columns = {standard: column for standard, column in columns.items() if standard not in MESSAGE_NAMES}
        self.where, self._layouts = where, ROW_FORMATS if layouts is None else layouts
        self.missing = set(self.columns.values())
        known = sorted(
            {key for format_ in self._layouts.values() for key in format_.required_keys + format_.optional_keys}
            | set(MESSAGE_NAMES)
        )
        for standard in columns:
            if standard not in known:
                what = f"columns names {standard!r}, which no row format has"
                raise HarnessError(where, what, f"use one of {', '.join(known)}")

    def rename_columns(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the row with its columns under the standard names, and remember which columns it has."""
        if not self.columns:
            return row
        renamed_columns = self.columns.values()
        if self.missing:
            self.missing.difference_update(row)
        renamed = {standard: row[column] for standard, column in self.columns.items() if column in row}
        return {**{key: value for key, value in row.items() if key not in renamed_columns}, **renamed}

    def check_format_reads_columns(self, format_name: str) -> None:
        """Raise HarnessError for a standard name that is not part of the row format: nothing would read it."""
        for standard, column in self.columns.items():
            known = self._layouts[format_name].required_keys + self._layouts[format_name].optional_keys
            if standard not in known:
                what = f"columns names {column!r} as the data's column for {standard!r}, "
                what += f"which the row format {format_name} does not have"
                hint = f"remove it, or set another 'form'; {format_name} has {', '.join(known)}"
                raise HarnessError(self.where, what, hint)

    def check_columns_exist(self, first_record: Record | None, *, required_only: bool) -> None:
        """Raise HarnessError for a column that no row had so far.

        Args:
            first_record: The first valid row, named in the error; None if there is none, and nothing is checked.
            required_only: Whether to check only columns that some row format requires.
        """
        for standard, column in self.columns.items():
            is_checked = not required_only or any(
                standard in format_.required_keys for format_ in self._layouts.values()
            )
            if column in self.missing and is_checked and first_record is not None:
                what = f"columns names {column!r} as the data's column for {standard!r}, and no row has it"
                raise HarnessError(self.where, what, f"{first_record.location} has {_format_keys(first_record.data)}")


def _format_keys(row: Mapping[str, Any]) -> str:
    """Return the keys of a row in a printable form, at most `MAX_KEYS_SHOWN` of them."""
    more = f" and {len(row) - MAX_KEYS_SHOWN:,} more" if len(row) > MAX_KEYS_SHOWN else ""
    return ", ".join(one_line(str(key), 40) for key in islice(row, MAX_KEYS_SHOWN)) + more


def _missing_key_error(
    row: Mapping[str, Any], format_name: str, key: str, layouts: Mapping[str, ColumnLayout]
) -> InvalidRow:
    fitting = [name for name, format_ in ROW_FORMATS.items() if all(key in row for key in format_.required_keys)]
    if fitting:
        what = f"has the row format {fitting[0]}, but this source's rows are {format_name}: no {key!r}"
        return InvalidRow(what, "split the rows into one source per row format")
    what = "has no response: no" if key in ("output", "completion") else "has no"
    needs = ", ".join(layouts[format_name].required_keys)
    return InvalidRow(f"{what} {key!r}", f"a row of the format {format_name} has {needs}; map other names in 'columns'")


# -- the formats ------------------------------------------------------------------------------------------------------


def _parse_alpaca(row: Mapping[str, Any], keys: MessageKeys) -> list[Message]:
    input_text = parse_text(row.get("input"), "'input'")
    messages = _system_messages(row)
    history = row.get("history")
    if history:
        is_array = isinstance(history, (list, tuple))
        if not is_array or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in history):
            raise InvalidRow("has a 'history' that is not an array of pairs", 'e.g. [["question", "answer"], …]')
        for question, answer in history:
            messages.append(Message("user", parse_text(question, "a question in 'history'")))
            messages.append(Message("assistant", parse_text(answer, "an answer in 'history'")))
    instruction = parse_text(row["instruction"], "'instruction'")
    if not instruction.strip():
        instruction, input_text = input_text, ""
    messages.append(Message("user", instruction, input_text if input_text and not input_text.isspace() else None))
    messages.append(Message("assistant", parse_text(row["output"], "'output'")))
    return messages


def _parse_messages_row(row: Mapping[str, Any], keys: MessageKeys) -> list[Message]:
    return _prepend_system(row, parse_messages(row["messages"], "messages", keys))


def _parse_sharegpt(row: Mapping[str, Any], keys: MessageKeys) -> list[Message]:
    return _prepend_system(row, parse_messages(row["conversations"], "conversations", keys))


def _parse_prompt_completion(row: Mapping[str, Any], keys: MessageKeys) -> list[Message]:
    prompt, completion = row["prompt"], row["completion"]
    messages = _system_messages(row)
    if isinstance(prompt, (list, tuple)):
        # Responses within the prompt are context; only the completion is trained.
        messages += [without_training(message) for message in parse_messages(prompt, "prompt", keys)]
    else:
        messages.append(Message("user", parse_text(prompt, "'prompt'")))
    if isinstance(completion, (list, tuple)):
        return parse_messages(completion, "completion", keys, messages)
    return [*messages, Message("assistant", parse_text(completion, "'completion'"))]


def _parse_plain_text(row: Mapping[str, Any], keys: MessageKeys) -> list[Message]:
    return [Message("text", parse_text(row["text"], "'text'"))]


def _system_messages(row: Mapping[str, Any]) -> list[Message]:
    text = parse_text(row.get("system"), "'system'")
    return [Message("system", text)] if text.strip() else []


def _prepend_system(row: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    """Put the row's `system` before its messages, unless they already start with the same one."""
    system = _system_messages(row)
    first = messages[0] if messages else None
    if system and first and first.role == "system" and first.content.strip() == system[0].content.strip():
        return messages
    return system + messages


ROW_FORMATS = {
    "alpaca": ColumnLayout(
        ("instruction", "output"), ("input", "system", "history", "tools", "functions"), _parse_alpaca
    ),
    "messages": ColumnLayout(("messages",), ("system", "tools", "functions"), _parse_messages_row),
    "sharegpt": ColumnLayout(("conversations",), ("system", "tools", "functions"), _parse_sharegpt),
    "prompt_completion": ColumnLayout(
        ("prompt", "completion"), ("system", "tools", "functions"), _parse_prompt_completion
    ),
    "choices": ColumnLayout(
        CHOICES_REQUIRED_KEYS, CHOICES_OPTIONAL_KEYS, lambda row, keys: parse_multiple_choice(row)[0], fallback=True
    ),
    "text": ColumnLayout(("text",), (), _parse_plain_text, fallback=True),
}
