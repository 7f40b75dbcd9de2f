"""Parse JSON with the location of every value, so that an error can name line and column.

Stricter than `json`: a duplicate key in an object is an error.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

from harness.errors import HarnessError
from harness.utils.formatting import shorten_text
from harness.utils.json_depth import HINT_NESTING, MAX_JSON_DEPTH, NESTED_TOO_DEEP

JsonPath = tuple[str | int, ...]

_SPACE = re.compile(r"[ \t\n\r]*")
_ATOM = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null")
INVALID_CHARACTERS = re.compile(r"[\0\ud800-\udfff]")


@dataclass(frozen=True)
class LocatedJson:
    """A JSON value with locations.

    Attributes:
        name: The name of the file or option, for messages.
        text: The JSON text.
        value: The parsed value.
        offsets: Path -> offset in `text` of its key, or of its value in a list.
    """

    name: str
    text: str
    value: Any
    offsets: dict[JsonPath, int]

    def where(self, path: JsonPath) -> str:
        """Return `file:line:column` of the path, or of its nearest parent that is in the file."""
        while path and path not in self.offsets:
            path = path[:-1]
        return _format_location(self.name, self.text, self.offsets.get(path, 0))


def parse_json(text: str, name: str) -> LocatedJson:
    """Parse a JSON text.

    Raises:
        HarnessError: The text is not JSON; with the location of the first error.
    """
    reader = _LocatedJsonParser(text, name)
    value, end = reader.value(0, ())
    end = reader.skip(end)
    if end != len(text):
        reader.fail(end, "there is text after the end of the JSON value", "remove it")
    return LocatedJson(name, text, value, reader.offsets)


def _format_location(name: str, text: str, offset: int) -> str:
    line = text.count("\n", 0, offset) + 1
    column = offset - (text.rfind("\n", 0, offset) + 1) + 1
    return f"{name}:{line}:{column}"


def _shorten(key: str) -> str:
    return repr(shorten_text(key, 60))


class _LocatedJsonParser:
    def __init__(self, text: str, name: str) -> None:
        self.text, self.name = text, name
        self.offsets: dict[JsonPath, int] = {(): 0}

    def fail(self, offset: int, what: str, hint: str) -> None:
        raise HarnessError(_format_location(self.name, self.text, offset), what, hint)

    def skip(self, offset: int) -> int:
        match = _SPACE.match(self.text, offset)
        return match.end() if match else offset

    def value(self, offset: int, path: JsonPath) -> tuple[Any, int]:
        offset = self.skip(offset)
        if offset >= len(self.text):
            self.fail(offset, "the JSON ends too early", "close the open brackets and strings")
        character = self.text[offset]
        if character in "{[" and len(path) >= MAX_JSON_DEPTH:
            self.fail(offset, NESTED_TOO_DEEP, HINT_NESTING)
        if character == "{":
            return self.object(offset + 1, path)
        if character == "[":
            return self.array(offset + 1, path)
        if character == '"':
            return self.string(offset)
        match = _ATOM.match(self.text, offset)
        if not match:
            what = f"this is not JSON: {self.text[offset : offset + 20]!r}"
            self.fail(offset, what, "JSON has no comments, no single quotes and no commas before a closing bracket")
        assert match is not None
        return self.atom(match.group(), offset), match.end()

    def atom(self, text: str, offset: int) -> Any:
        try:
            value = json.loads(text)
        except ValueError:  # Python refuses to read thousands of digits
            value = math.inf
        if value in (math.inf, -math.inf):
            self.fail(offset, f"the number {text[:20]} is too large", "write a smaller one")
        return value

    def string(self, offset: int) -> tuple[str, int]:
        try:
            text, end = scanstring(self.text, offset + 1, True)
        except json.JSONDecodeError as error:
            self.fail(
                error.pos, f"a string is not well formed: {error.msg}", "close the string, escape special characters"
            )
            raise
        if INVALID_CHARACTERS.search(text):
            self.fail(offset, "the string contains NUL or half a surrogate pair", "write the character itself")
        return text, end

    def object(self, offset: int, path: JsonPath) -> tuple[dict[str, Any], int]:
        result: dict[str, Any] = {}
        offset = self.skip(offset)
        if self.text[offset : offset + 1] == "}":
            return result, offset + 1
        while True:
            offset = self.skip(offset)
            if self.text[offset : offset + 1] != '"':
                self.fail(offset, "a key in double quotes is expected here", "remove an extra comma, or quote the key")
            start = offset
            key, offset = self.string(offset)
            if key in result:
                self.fail(start, f"duplicate key {_shorten(key)}", "keep one of them")
            offset = self.skip(offset)
            if self.text[offset : offset + 1] != ":":
                self.fail(offset, f"a colon is expected after the key {_shorten(key)}", "add ':'")
            self.offsets[(*path, key)] = start
            result[key], offset = self.value(offset + 1, (*path, key))
            offset = self.skip(offset)
            follows = self.text[offset : offset + 1]
            if follows == "}":
                return result, offset + 1
            if follows != ",":
                self.fail(offset, f"a comma or '}}' is expected after the value of {_shorten(key)}", "add it")
            offset += 1

    def array(self, offset: int, path: JsonPath) -> tuple[list[Any], int]:
        result: list[Any] = []
        offset = self.skip(offset)
        if self.text[offset : offset + 1] == "]":
            return result, offset + 1
        while True:
            offset = self.skip(offset)
            item_path = (*path, len(result))
            self.offsets[item_path] = offset
            value, offset = self.value(offset, item_path)
            result.append(value)
            offset = self.skip(offset)
            follows = self.text[offset : offset + 1]
            if follows == "]":
                return result, offset + 1
            if follows != ",":
                self.fail(offset, "a comma or ']' is expected here", "add it")
            offset += 1
