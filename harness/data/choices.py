"""Multiple-choice rows: a question, its choices, and which one is right.

Read as a conversation in which the right choice is the response; the choices go beside it, as `Example.choices`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.contracts import Message
from harness.data.conversation import BadRow

NEEDS = ("choices", "answer")
MAY = ("question", "prompt", "system")


def read_choices(row: Mapping[str, Any]) -> tuple[list[Message], tuple[str, ...]]:
    """The messages of a row, and its choices.

    row: `question` (or `prompt`), `choices` (two strings or more, all different), `answer` (an index from 0, a letter
    from A, or one of the choices), and `system` if there is a system message.
    Raises BadRow for anything else.
    """
    asked = [key for key in ("question", "prompt") if isinstance(row.get(key), str) and row[key].strip()]
    if len(asked) != 1:
        raise BadRow("has no question" if not asked else "has a 'question' and a 'prompt'", "give it one, as text")
    choices = row["choices"]
    if not isinstance(choices, list | tuple) or not all(isinstance(one, str) and one.strip() for one in choices):
        raise BadRow("has 'choices' that are no array of texts", 'e.g. ["yes", "no"]')
    if len(choices) < 2 or len(set(choices)) < len(choices):
        raise BadRow("has fewer than two choices, or two alike", "one of several different choices is right")
    right = choices[_right(row["answer"], choices)]
    system = row.get("system")
    before = [Message("system", system)] if isinstance(system, str) and system.strip() else []
    return [*before, Message("user", row[asked[0]]), Message("assistant", right)], tuple(choices)


def _right(answer: Any, choices: list[str] | tuple[str, ...]) -> int:
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
    raise BadRow(f"has the answer {str(answer)[:40]!r}, which is none of its choices", hint)
