"""JSON whose objects name each key once: Python's own reader keeps the last of two values, and says nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


class Decoder:
    """Reads JSON texts. twice: a key that some object of the text read last names twice; None when there is none."""

    def __init__(self) -> None:
        self.twice: str | None = None
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def whole(self, text: str) -> Any:
        """The value of a text. Raises what `json.loads` raises."""
        self.twice = None
        return self._decoder.decode(text)

    def begun(self, text: str, at: int) -> tuple[Any, int]:
        """The value that begins at a place of a text, and where it ends. Raises what `raw_decode` raises."""
        self.twice = None
        return self._decoder.raw_decode(text, at)

    def _object(self, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            left = iter(made)  # in the order of the first time that each is named
            self.twice = next(name for name, _ in pairs if name != next(left, None))
        return made


def named_twice(key: str) -> tuple[str, str]:
    """What is wrong with an object that names a key twice, and the remedy."""
    return f"names the key {key[:40]!r} twice in one object", "name it once"
