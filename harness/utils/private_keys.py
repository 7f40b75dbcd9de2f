"""Find private keys in texts: PEM (RFC 7468), OpenSSH, SSH2 and OpenPGP, however their lines are quoted.

The time is linear in the length of the text. Imports nothing heavy.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence

MIN_LINE_LENGTH = 24
"""Characters of a line of a key without an end that count as one, if the line is quoted by itself."""

_BEGIN = re.compile(r"-{4,5} ?BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)? ?-{4,5}")
_END = re.compile(r"-{4,5} ?END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)? ?-{4,5}")
_UNQUOTED = re.compile(r"(?:[^\"'\\]|\\[^\"'\\]|\\\\(?!\\{0,7}[\"']))*")
"""Everything up to a quote, and up to the backslashes that escape it in JSON, also in JSON within JSON."""

_QUOTED_LINE = re.compile(
    rf"(?P<gap>(?:[\s\"',+\[\]]|\\{{1,8}}[nr\"'])*)(?P<line>[A-Za-z0-9+/=]{{{MIN_LINE_LENGTH},}})"
)
_ESCAPE_OR_WORDS = re.compile(r"\\+(?:u[0-9A-Fa-f]{4}|.)?|[^\"'\\\n\r\[\]{},:]+", re.DOTALL)
_LINE_OF_KEY = re.compile(r"\s*(?:[A-Za-z0-9+/=]*|[\w-]+: .*)\s*")


def redact_private_keys(text: str, replacement: str) -> str:
    """Return the text with each private key replaced; a JSON document stays one.

    A key that is a single text, from its first to its last line, is replaced as a whole. In one whose lines are quoted
    one by one, as in a list of lines, each line is replaced. Without a last line, the key ends at the first quote that
    no line of a key follows, or with the text.
    """
    if "PRIVATE KEY" not in text:
        return text
    ends = [match.end() for match in _END.finditer(text)]
    parts, position = [], 0
    while begin := _BEGIN.search(text, position):
        parts.append(text[position : begin.start()])
        index = bisect_left(ends, begin.end())
        if index < len(ends):
            position = ends[index]
            is_one_text = _UNQUOTED.fullmatch(text, begin.end(), position)
            block = text[begin.start() : position]
            parts.append(replacement if is_one_text else _redact_words(block, replacement))
            continue
        unquoted = _UNQUOTED.match(text, begin.end())
        assert unquoted is not None
        parts.append(replacement)
        position = unquoted.end()
        while line := _QUOTED_LINE.match(text, position):
            parts += [line["gap"], replacement]
            position = line.end()
    return "".join([*parts, text[position:]])


def is_part_of_key(elements: Sequence[object]) -> Iterator[bool]:
    """Yield for each element of a list whether it is a line of a private key that the list holds line by line."""
    inside = False
    for element in elements:
        if not isinstance(element, str):
            yield False
            continue
        begin = _BEGIN.search(element)
        if begin is not None:
            inside = not _END.search(element, begin.end())
            yield inside
        elif inside:
            is_end = _END.search(element) is not None
            inside = not is_end and _LINE_OF_KEY.fullmatch(element) is not None
            yield inside or is_end
        else:
            yield False


def find_key_lines(text: str, min_length: int = MIN_LINE_LENGTH) -> Iterator[str]:
    """Yield each private key in a text, and its lines, which a log may hold one by one.

    Args:
        text: The text.
        min_length: Characters that a line has at least.
    """
    position = 0
    while begin := _BEGIN.search(text, position):
        end = _END.search(text, begin.end())
        position = len(text) if end is None else end.end()
        block = text[begin.start() : position]
        yield block
        yield from (line.strip() for line in block.splitlines()[1:] if len(line.strip()) >= min_length)


def _redact_words(block: str, replacement: str) -> str:
    """Replace every text between quotes, escapes and punctuation of JSON."""

    def replace(match: re.Match[str]) -> str:
        words = match[0]
        if words.startswith("\\") or not any(map(str.isalnum, words)):
            return words
        return words[: len(words) - len(words.lstrip())] + replacement + words[len(words.rstrip()) :]

    return _ESCAPE_OR_WORDS.sub(replace, block)
