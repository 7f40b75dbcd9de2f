"""A tokenizer like another one, with other spellings of its control tokens: to it, the usual ones are plain text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from tokenizers import Encoding, Tokenizer

from harness.data.rendering import Rendering
from harness.errors import HarnessError

Located = tuple[list[int], Encoding]
"""Ids, and what knows where they stand: the list of all places costs more than the tokens, and few are asked for."""


class Twin:
    """The twin of `backend`.

    controls: id -> spelling of the control tokens. unknown: the id for what is unknown. base: code of the first
    private-use character to spell with. Raises HarnessError when the tokenizer's ids leave no room.
    """

    def __init__(self, backend: Tokenizer, controls: dict[int, str], unknown: int | None, base: int) -> None:
        self._respelt = {text: chr(base + number) * len(text) for number, text in enumerate(controls.values())}
        self._pattern = any_of(self._respelt)
        self._ids = {text: index for index, text in controls.items()}
        document = json.loads(backend.to_str())
        kept = _in_merges(document["model"]) | {text for text, index in self._ids.items() if index == unknown}
        for token in document["added_tokens"]:
            token["content"] = self._respelt.get(token["content"], token["content"])
        model = document["model"]
        names = {text: other for text, other in self._respelt.items() if text not in kept}
        # In the vocabulary too: some models would find the token's old spelling in plain text.
        if isinstance(model["vocab"], dict):
            model["vocab"] = {names.get(text, text): index for text, index in model["vocab"].items()}
        else:
            model["vocab"] = [[names.get(text, text), score] for text, score in model["vocab"]]
        self._tokenizer = Tokenizer.from_str(json.dumps(document))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        originals = {index: token.content for index, token in backend.get_added_tokens_decoder().items()}
        self._original = {}
        for index, text in originals.items():
            twin = self._tokenizer.token_to_id(self._respelt.get(text, text))
            if twin != index:
                self._original[twin] = index
        taken = model["vocab"].values() if isinstance(model["vocab"], dict) else range(len(model["vocab"]))
        if not self._original.keys().isdisjoint(taken):
            what = "a message holds a control token, and the ids of this tokenizer leave no room to read it as text"
            raise HarnessError("model", what, "take such tokens out of the data")

    def tokenise(self, rendering: Rendering) -> tuple[Located, list[int]]:
        """The tokens, and the control tokens that the template wrote, in order."""
        parts, place, written = [], 0, []

        def respell(match: re.Match[str]) -> str:
            written.append(self._ids[match[0]])
            return self._respelt[match[0]]

        assert self._pattern is not None
        for begin, end in rendering.frames:
            parts += [rendering.text[place:begin], self._pattern.sub(respell, rendering.text[begin:end])]
            place = end
        parts.append(rendering.text[place:])
        encoding = self._tokenizer.encode("".join(parts), add_special_tokens=False)
        ids = [self._original.get(token, token) for token in encoding.ids] if self._original else encoding.ids
        return (ids, encoding), written


def any_of(texts: Iterable[str]) -> re.Pattern[str] | None:
    """What finds any of the texts, the longest first; None when there is none."""
    longest_first = sorted((text for text in texts if text), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _in_merges(model: dict[str, Any]) -> set[str]:
    """Spellings that a byte-pair model joins from others, and so has to find in its vocabulary."""
    pairs = (pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model.get("merges", ()))
    return {text for left, right in pairs for text in (left, right, left + right)}
