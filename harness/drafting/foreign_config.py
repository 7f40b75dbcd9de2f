"""Read the configuration of another trainer: YAML, JSON, or the command line in a shell script."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.spec.json_locations import parse_json
from harness.spec.yaml_locations import parse_yaml

_SHELL_PART = re.compile(
    r"""
    (?P<quoted> '[^']*' | "(?:[^"\\]|\\.)*" )
    | (?P<continuation> \\\n )
    | (?P<escaped> \\. )
    | (?P<comment> (?<!\S)\#[^\n]* )
    | (?P<end> (?<!\S)\d*[<>] | [\n;&|<>] )
    | (?P<letter> . )
    """,
    re.VERBOSE | re.DOTALL,
)


def read_config(file: Path) -> dict[str, Any]:
    """Return the keys of a configuration: of YAML or JSON, or of the command line in a shell script.

    Raises:
        HarnessError: The file cannot be read or has no keys.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise HarnessError(str(file), f"cannot be read: {error}", "name the configuration") from error
    if file.suffix == ".sh":
        config: Any = dict(_command_line_options(text, file))
    else:
        config = (parse_json if file.suffix == ".json" else parse_yaml)(text, str(file)).value
    if not isinstance(config, dict) or not config:
        raise HarnessError(str(file), "has no keys of a configuration", "name a YAML, JSON or shell file")
    return config


def _command_line_options(text: str, file: Path) -> Iterator[tuple[str, Any]]:
    """Yield the options of the first command with options: `--key value …`, `--flag`, `--key=value`."""
    for line, command in _shell_commands(text.replace("\r\n", "\n")):
        try:
            words = shlex.split(command)
        except ValueError as error:  # a quotation that does not end
            raise HarnessError(f"{file}:{line}", f"this is not a shell command: {error}", "close the quotes") from None
        if not any(word.startswith("--") for word in words):
            continue
        key, values = "", list[str]()
        for word in [*words, "--"]:
            if not word.startswith("--"):
                values.append(word)
                continue
            if key:
                yield key, _option_value(values)
            key, equals, value = word[2:].partition("=")
            key, values = key.replace("-", "_"), [value] if equals else []
        return


def _shell_commands(text: str) -> Iterator[tuple[int, str]]:
    """Yield the first line and the text of each command, without comments, redirections and continued lines.

    Quoted text stays as it is, also over several lines.
    """
    parts, start = list[str](), 0
    for match in _SHELL_PART.finditer(text):
        if match["end"]:
            yield text.count("\n", 0, start) + 1, "".join(parts)
            parts, start = [], match.end()
        elif not (match["continuation"] or match["comment"]):
            parts.append(match[0])
    yield text.count("\n", 0, start) + 1, "".join(parts)


def _option_value(values: Sequence[str]) -> Any:
    if not values:
        return True
    parsed = [{"true": True, "false": False, "none": None, "null": None}.get(value.lower(), value) for value in values]
    return parsed[0] if len(parsed) == 1 else parsed
