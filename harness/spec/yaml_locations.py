"""Parse YAML with the location of every value, as the JSON that a spec is.

Only what JSON can express is accepted. Plain words are read as in YAML 1.2: `no` is a text, `1e-4` is a number.
Nothing is executed: a tag such as `!!python/object` is an error.
"""

from __future__ import annotations

import json
import re
from typing import Any

from harness.errors import HarnessError
from harness.spec.json_locations import JsonPath, LocatedJson
from harness.utils.json_depth import HINT_NESTING, MAX_JSON_DEPTH, NESTED_TOO_DEEP

YAML_SUFFIXES = (".yaml", ".yml")

SPEC_SUFFIXES = (".json", *YAML_SUFFIXES)
"""Endings of the files of specs."""

MAX_VALUES = 100_000
"""Values of a file, aliases followed: more is an error, so that a few lines cannot fill the memory."""

_NULLS = ("", "~", "null", "Null", "NULL")
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")


def parse_yaml(text: str, name: str) -> LocatedJson:
    """Parse a YAML text.

    Args:
        text: The text.
        name: The name of the file, for messages.

    Raises:
        HarnessError: The text is not YAML, or has what JSON cannot express; with line and column.
    """
    import yaml

    try:
        node = yaml.compose(text, yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = name if mark is None else f"{name}:{mark.line + 1}:{mark.column + 1}"
        what = f"this is not YAML: {error.problem or error.context}"
        raise HarnessError(where, what, "check the indentation, and quote texts with ': ' or '#'") from error
    except yaml.YAMLError as error:
        raise HarnessError(name, f"this is not YAML: {str(error).splitlines()[0]}", "save it as UTF-8") from error
    except RecursionError:
        raise HarnessError(name, NESTED_TOO_DEEP, HINT_NESTING) from None
    reader = _YamlReader(name)
    value = None if node is None else reader.read(node, ())
    return LocatedJson(name, text, value, reader.offsets)


class _YamlReader:
    def __init__(self, name: str) -> None:
        self.name = name
        self.offsets: dict[JsonPath, int] = {(): 0}
        self._values = 0

    def read(self, node: Any, path: JsonPath) -> Any:
        """Return the value of a node, and store the offsets of what is in it."""
        import yaml

        self._values += 1
        if self._values > MAX_VALUES:
            raise self._error(node, f"the file has more than {MAX_VALUES:,} values", "use fewer aliases")
        if len(path) > MAX_JSON_DEPTH:
            raise self._error(node, NESTED_TOO_DEEP, HINT_NESTING)
        kind = node.tag.rpartition(":")[2]
        if isinstance(node, yaml.ScalarNode):
            if kind != "str":
                raise self._error(node, f"the tag {node.tag!r} is not supported", "remove it")
            return node.value if node.style else self._plain(node)
        if kind not in ("map", "seq"):
            raise self._error(node, f"the tag {node.tag!r} is not supported", "remove it")
        if isinstance(node, yaml.SequenceNode):
            for index, child in enumerate(node.value):
                self.offsets[(*path, index)] = child.start_mark.index
            return [self.read(child, (*path, index)) for index, child in enumerate(node.value)]
        document: dict[str, Any] = {}
        for key, child in node.value:
            if not isinstance(key, yaml.ScalarNode) or (key.value == "<<" and not key.style):
                what = "merging with << is not supported" if isinstance(key, yaml.ScalarNode) else "a key is not a text"
                raise self._error(key, what, "write the keys out; one spec builds on another with extends")
            if key.value in document:
                raise self._error(key, f"the key {key.value!r} occurs twice", "remove one of them")
            self.offsets[(*path, key.value)] = key.start_mark.index
            document[key.value] = self.read(child, (*path, key.value))
        return document

    def _plain(self, node: Any) -> Any:
        text = node.value
        if text in _NULLS:
            return None
        if text in _BOOLEANS:
            return _BOOLEANS[text]
        if not _NUMBER.fullmatch(text):
            return text
        try:
            number = int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)
            json.dumps(number, allow_nan=False)
        except ValueError:
            raise self._error(node, f"the number {text[:20]} is too large", "write a smaller one") from None
        return number

    def _error(self, node: Any, what: str, hint: str) -> HarnessError:
        mark = node.start_mark
        return HarnessError(f"{self.name}:{mark.line + 1}:{mark.column + 1}", what, hint)
