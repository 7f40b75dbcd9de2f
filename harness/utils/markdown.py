"""Write Markdown that shows any text as it is."""

from __future__ import annotations

import re
from collections.abc import Sequence

from harness.utils.formatting import one_line

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|~#$])")


def escape_markdown(text: str, limit: int = 1000) -> str:
    """Return the text on one line, so that neither Markdown nor HTML in it has an effect.

    Args:
        text: Any text, for example of a model.
        limit: Maximum number of characters, before they are escaped.
    """
    escaped = _SPECIAL.sub(r"\\\1", one_line(text, limit).replace("&", "&amp;"))
    # A sign or a number at the start would begin a list; "@name" would notify a user of GitHub.
    return re.sub(r"^([-+]|\d+[.)])(?=\s|$)", _escape_last, escaped).replace("@", "@\u2060")


def _escape_last(match: re.Match[str]) -> str:
    return f"{match[0][:-1]}\\{match[0][-1]}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers_from: int) -> str:
    """Return a table of cells that are escaped already.

    Args:
        header: The names of the columns.
        rows: The cells.
        numbers_from: Index of the first column that is aligned to the right.
    """
    rule = ["---:" if index >= numbers_from else "---" for index in range(len(header))]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, rule, *rows))
