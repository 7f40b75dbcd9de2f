"""Code and documentation use plain technical English: no banned word, no very long sentence.

`docs/decisions/` and `CHANGELOG.md` record history and are checked for words only.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import ROOT

BANNED_WORDS = (
    "told",
    "mend",
    "mends",
    "mended",
    "anew",
    "foretold",
    "foreseen",
    "foretell",
    "likeliest",
    "whosoever",
    "betwixt",
)
"""Words that no identifier, docstring, comment, message or document contains."""

BANNED_PHRASES = (
    r"broken off",
    r"(?:go|goes|going|gone|went) on with",
    r"beside the main",
    r"(?<!there )is no (?!(?:longer|less|more|one|need)\b)[a-z]+",
    r"(?<!there )are no (?!(?:longer|less|more)\b)[a-z]+",
    r"(?:stands|lies) (?:in|on|at|for|there|here|beside|below|above|within|elsewhere)\b",
    r"(?:comes|came|come) to (?:its|an) end",
    r"what (?:it|they) comes? to",
    r"is at work",
    r"put aside",
    r"in nobody's way",
)
"""Phrases that no docstring, comment, message or document contains."""

MAX_WORDS = 30
"""Longest sentence in README and docs, in words."""

CODE = [*(ROOT / "harness").rglob("*.py"), *(ROOT / "plugins").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
CODE += [*(ROOT / "benchmarks").rglob("*.py")]
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
THIS_FILE = Path(__file__)

WORD = re.compile(rf"\b(?:{'|'.join(BANNED_WORDS)})\b", re.IGNORECASE)
PHRASE = re.compile(rf"\b(?:{'|'.join(BANNED_PHRASES)})", re.IGNORECASE)


def split_identifier(name: str) -> str:
    """Return the words of a snake_case or CamelCase name, separated by spaces."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).replace("_", " ")


def prose_and_names(file: Path) -> Iterator[tuple[int, str, bool]]:
    """Yield (line, text, whether it is prose) for identifiers, strings and comments of a Python file."""
    text = file.read_text(encoding="utf-8")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            yield token.start[0], split_identifier(token.string), False
        elif token.type == tokenize.COMMENT:
            yield token.start[0], token.string, True
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, " ".join(node.value.split()), " " in node.value


def banned_in(text: str, *, prose: bool) -> str | None:
    """Return the first banned word or phrase of a text, or None."""
    match = WORD.search(text) or (PHRASE.search(text) if prose else None)
    return match.group() if match else None


@pytest.mark.parametrize(
    "file", [file for file in CODE if file != THIS_FILE], ids=lambda file: str(file.relative_to(ROOT))
)
def test_code_has_no_banned_word(file):
    hits = [
        f"{file.relative_to(ROOT)}:{line}: {found!r} in {text[:80]!r}"
        for line, text, prose in prose_and_names(file)
        if (found := banned_in(text, prose=prose)) and not is_allowed(text, found)
    ]
    assert hits == []


def is_allowed(text: str, found: str) -> bool:
    """Return whether the banned word is a JSON key that files of runs contain."""
    return found == "told" and text == "told"


def paragraphs(markdown: str) -> Iterator[str]:
    """Yield the prose of a Markdown document, without code blocks, tables and headings."""
    without_code = re.sub(r"```.*?```", "", markdown, flags=re.S)
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", without_code):
        if not block.lstrip().startswith(("|", "#", "<", ":--")):
            yield " ".join(block.split())


def sentences(paragraph: str) -> list[str]:
    """Split a paragraph into sentences; inline code counts as one word."""
    text = re.sub(r"`[^`]*`", "code", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", paragraph))
    return re.split(r"(?<=[.!?:;])\s+(?=[A-Z*_(\[\"'`]|code|$)", text)


@pytest.mark.parametrize("file", DOCS, ids=lambda file: str(file.relative_to(ROOT)))
def test_documents_have_no_banned_word(file):
    hits = [
        f"{file.relative_to(ROOT)}: {found!r} in {paragraph[:100]!r}"
        for paragraph in paragraphs(file.read_text(encoding="utf-8"))
        if (found := banned_in(re.sub(r"`[^`]*`", "", paragraph), prose=True))
    ]
    assert hits == []


@pytest.mark.parametrize("file", DOCS, ids=lambda file: str(file.relative_to(ROOT)))
def test_documents_have_short_sentences(file):
    if "decisions" in file.parts:
        pytest.skip("decisions record history")
    long = [
        sentence
        for paragraph in paragraphs(file.read_text(encoding="utf-8"))
        for sentence in sentences(paragraph)
        if len(sentence.split()) > MAX_WORDS
    ]
    assert long == []


def test_the_checks_find_what_they_ban():
    assert banned_in("the error is told", prose=True) == "told"
    assert banned_in(split_identifier("_told_lines"), prose=False) == "told"
    assert banned_in("x is no number", prose=True) == "is no number"
    assert banned_in("there is no file, and it is no longer needed", prose=True) is None
    assert banned_in("the row stands in the file", prose=True) == "stands in"
    assert banned_in("plain words", prose=True) is None
