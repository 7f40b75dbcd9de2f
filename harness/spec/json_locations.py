"""Reads JSON and remembers where everything stands, so that an error can name line and column.

Knows nothing of specs. Stricter than `json`: a key that stands twice in one object is an error.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

from harness.errors import HarnessError

JsonPath = tuple[str | int, ...]

_SPACE = re.compile(r"[ \t\n\r]*")
_ATOM = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null")
_INVALID_CHARACTERS = re.compile(r"[\0\ud800-\udfff]")
_MAX_DEPTH = 100


@dataclass(frozen=True)
class LocatedJson:
    """A JSON value, and the offset at which the key (or, in a list, the value) of each path begins."""

    name: str
    text: str
    value: Any
    offsets: dict[JsonPath, int]

    def where(self, path: JsonPath) -> str:
        """`file:line:column` of the path, or of the nearest thing around it that stands in the file."""
        while path and path not in self.offsets:
            path = path[:-1]
        return _format_location(self.name, self.text, self.offsets.get(path, 0))


def parse_json(text: str, name: str) -> LocatedJson:
    """The value of a JSON text. Raises HarnessError with the place of the first thing that is not JSON."""
    reader = _LocatedJsonParser(text, name)
    value, end = reader.value(0, ())
    end = reader.skip(end)
    if end != len(text):
        reader.fail(end, "something stands after the end of the JSON value", "remove it")
    return LocatedJson(name, text, value, reader.offsets)


def _format_location(name: str, text: str, offset: int) -> str:
    line = text.count("\n", 0, offset) + 1
    column = offset - (text.rfind("\n", 0, offset) + 1) + 1
    return f"{name}:{line}:{column}"


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
            self.fail(offset, "the JSON ends too early", "close what is open")
        if len(path) > _MAX_DEPTH:
            self.fail(offset, f"brackets are nested more than {_MAX_DEPTH} deep", "close what is open")
        character = self.text[offset]
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
                error.pos, f"a string is not well formed: {error.msg}", "close the string, escape what is special"
            )
            raise
        if _INVALID_CHARACTERS.search(text):
            self.fail(offset, "the string holds NUL or half a surrogate pair", "write the character itself")
        return text, end

    def object(self, offset: int, path: JsonPath) -> tuple[dict[str, Any], int]:
        result: dict[str, Any] = {}
        offset = self.skip(offset)
        if self.text[offset : offset + 1] == "}":
            return result, offset + 1
        while True:
            offset = self.skip(offset)
            if self.text[offset : offset + 1] != '"':
                self.fail(
                    offset, "a key in double quotes is expected here", "remove a comma too many, or quote the key"
                )
            start = offset
            key, offset = self.string(offset)
            if key in result:
                self.fail(start, f"the key {key!r} stands twice in one object", "keep one of them")
            offset = self.skip(offset)
            if self.text[offset : offset + 1] != ":":
                self.fail(offset, f"a colon is expected after the key {key!r}", "add ':'")
            self.offsets[(*path, key)] = start
            result[key], offset = self.value(offset + 1, (*path, key))
            offset = self.skip(offset)
            follows = self.text[offset : offset + 1]
            if follows == "}":
                return result, offset + 1
            if follows != ",":
                self.fail(offset, f"a comma or '}}' is expected after the value of {key!r}", "add it")
            offset += 1

    def array(self, offset: int, path: JsonPath) -> tuple[list[Any], int]:
        result: list[Any] = []
        offset = self.skip(offset)
        if self.text[offset : offset + 1] == "]":
            return result, offset + 1
        while True:
            offset = self.skip(offset)
            place = (*path, len(result))
            self.offsets[place] = offset
            value, offset = self.value(offset, place)
            result.append(value)
            offset = self.skip(offset)
            follows = self.text[offset : offset + 1]
            if follows == "]":
                return result, offset + 1
            if follows != ",":
                self.fail(offset, "a comma or ']' is expected here", "add it")
            offset += 1
