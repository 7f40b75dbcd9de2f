"""The row format `columns_template`: a prompt and a response that are written from columns."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

from harness import Component, ComponentExample, HarnessError, InvalidRow, Message, RowFormat

COMPONENTS = {
    "columns_template": Component(
        summary="Writes prompt and response from columns, e.g. 'Translate: {source}'.",
        factory="harness_row_formats.columns_template:ColumnsTemplate",
        options={
            "prompt": {
                "type": "string",
                "minLength": 1,
                "description": 'The prompt, with columns in braces: "Translate to German: {english}".',
            },
            "response": {
                "type": "string",
                "minLength": 1,
                "description": 'The response, with columns in braces: "{german}".',
            },
            "system": {
                "type": ["string", "null"],
                "default": None,
                "description": "The system message, with columns in braces. null: none.",
            },
        },
        required=("prompt", "response"),
        example=ComponentExample(
            {"prompt": "Spell {word}.", "response": "{letters}"}, row={"word": "a", "letters": "A"}
        ),
    )
}


class ColumnsTemplate(RowFormat):
    """Fills columns into texts, as Python's format strings do.

    A format may follow the column, `{price:.2f}`, or a conversion, `{name!r}`. A literal brace is written twice.
    """

    def __init__(self, prompt: str, response: str, system: str | None) -> None:
        """Create a row format.

        Args:
            prompt: The prompt, with columns in braces.
            response: The response, with columns in braces.
            system: The system message, with columns in braces; None: none.

        Raises:
            HarnessError: A text is not a valid format string.
        """
        texts = {"system": system, "user": prompt, "assistant": response}
        self._texts = {role: text for role, text in texts.items() if text is not None}
        columns = [column for text in self._texts.values() for column in _columns(text)]
        self.required_keys = tuple(dict.fromkeys(columns))

    def parse_row(self, row: Mapping[str, Any]) -> Sequence[Message]:
        """Return the messages."""
        return [Message(role, _fill(text, row)) for role, text in self._texts.items()]


def _columns(text: str) -> list[str]:
    """Return the columns in braces."""
    try:
        fields = [field for field in string.Formatter().parse(text) if field[1] is not None]
        for _, _, _, conversion in fields:
            string.Formatter().convert_field("", conversion)
        if any("{" in (spec or "") for _, _, spec, _ in fields):
            raise ValueError("a format cannot have columns itself")
    except ValueError as error:
        hint = "write a literal brace twice: {{ or }}"
        raise HarnessError("row format columns_template", f"{text[:60]!r} is not valid: {error}", hint) from None
    names = [str(name) for _, name, _, _ in fields]
    if "" in names:
        raise HarnessError("row format columns_template", f"{text[:60]!r} has empty braces", "name a column in them")
    return names


def _fill(text: str, row: Mapping[str, Any]) -> str:
    parts = []
    for literal, name, spec, conversion in string.Formatter().parse(text):
        parts.append(literal)
        if name is not None:
            value = row[name]
            if value is None or isinstance(value, Mapping | list | tuple):
                raise InvalidRow(f"has no text in {name!r}", "write a text or a number, or filter such rows")
            try:
                parts.append(format(string.Formatter().convert_field(value, conversion), spec or ""))
            except (TypeError, ValueError) as error:
                what = f"has {str(value)[:40]!r} in {name!r}, which the format {spec!r} does not fit: {error}"
                raise InvalidRow(what, "change the format, or the value") from error
    return "".join(parts)
