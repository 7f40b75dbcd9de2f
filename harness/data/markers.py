"""Keeps a tokenizer's control tokens for the template alone: in a user's text, `<|im_end|>` is text.

Tokenizers look for their special tokens in the whole text before they do anything else, so a row that holds one could
end a turn or open a system block. Turning that search off (`split_special_tokens`) turns it off for the template too,
and tokenising stretch by stretch changes the tokens wherever a tokenizer treats the beginning of a text specially.
So texts with such rows go through a twin of the tokenizer in which each control token has another spelling, as long
as its own and made of private-use characters; the template's own control tokens are respelt, the user's are not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from harness.data.rendering import Rendering
from harness.errors import HarnessError

Tokens = tuple[list[int], list[tuple[int, int]]]
"""Ids, and for each where in the text it begins and ends, in characters."""

PRIVATE = (0xF0000, 0x100000, 0xF8000, 0x108000)
"""Where runs of private-use characters begin; the second is taken for a text that holds characters of the first."""


class Markers:
    """The control tokens of one tokenizer: every special token, and every added token that a template writes in front
    of or between contents. Other added tokens (`<think>`, runs of spaces) are vocabulary, in anybody's text.

    Raises HarnessError when the tokenizer is not a fast one: only those tell where in the text a token stands.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not getattr(tokenizer, "is_fast", False):
            what = f"the tokenizer ({type(tokenizer).__name__}) is not a fast one and does not say where tokens stand"
            raise HarnessError("model", what, "use a model with a tokenizer.json")
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._unknown = tokenizer.unk_token_id
        self._added = {token.content: index for index, token in tokenizer.added_tokens_decoder.items()}
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._special = frozenset(index for text, index in self._added.items() if text in special)
        self._spelling = {index: text for text, index in self._added.items()}
        self._others = _any_of(text for text in self._added if text not in special and text.strip("▁ \t\r\n"))
        self._written = lru_cache(maxsize=4096)(self._find_others)
        self._twins: dict[tuple[frozenset[int], int], _Twin] = {}
        self.start = _start(tokenizer)

    def tokenise(self, texts: Sequence[str]) -> list[Tokens]:
        """The tokens of each text, by the tokenizer itself: every special token in it counts."""
        # The tokenizer's own call sets these three anew each time, so nothing need be put back.
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = False
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [(encoding.ids, encoding.offsets) for encoding in encodings]

    def controls(self, rendering: Rendering) -> frozenset[int]:
        """The ids that only the template may write into this rendering."""
        if self._others is None:
            return self._special
        found = self._special
        for text in rendering.untrained_frames:
            found = found | self._written(text)
        return found

    def strays(self, tokens: Tokens, rendering: Rendering, controls: frozenset[int]) -> bool:
        """Whether a control token stands anywhere but in a frame."""
        ids, offsets = tokens
        hits = [index for index, token in enumerate(ids) if token in controls]
        return not all(self._framed(ids[index], offsets[index], rendering) for index in hits)

    def tokenise_apart(self, rendering: Rendering, controls: frozenset[int], place: str) -> Tokens:
        """The tokens of a rendering whose contents hold control tokens, which become plain text.

        place: of the row, for errors. Raises HarnessError when this tokenizer cannot keep them apart.
        """
        base = next((b for b in PRIVATE if not _holds(rendering.text, b, len(controls))), None)
        if base is None:
            what = "the text holds control tokens and private-use characters of every range"
            raise HarnessError(place, what, "remove these characters from the row")
        key = (controls, base)
        if key not in self._twins:
            self._twins[key] = _Twin(
                self._backend, {i: self._spelling[i] for i in sorted(controls)}, self._unknown, base
            )
        tokens, written = self._twins[key].tokenise(rendering)
        # The token for what is unknown ends no turn, and a model may well give it for plain text.
        ending = controls - {self._unknown}
        found = [token for token in tokens[0] if token in ending]
        if found != [token for token in written if token in ending] or self.strays(tokens, rendering, ending):
            what = "a message holds a control token, and this tokenizer cannot read it as plain text"
            raise HarnessError(place, what, "take the token out of the row")
        return tokens

    def _find_others(self, text: str) -> frozenset[int]:
        assert self._others is not None
        return frozenset(self._added[found] for found in self._others.findall(text))

    def _framed(self, token: int, offsets: tuple[int, int], rendering: Rendering) -> bool:
        begin, end = offsets
        written = rendering.text[begin:end]
        if written.strip():
            # Some control tokens take in the white space beside them, which may be a content's.
            begin, end = begin + len(written) - len(written.lstrip()), end - len(written) + len(written.rstrip())
        if token == self._unknown and written.strip() != self._spelling[token]:
            return True  # a character that the tokenizer does not know, not its token for such
        return any(first <= begin and end <= last for first, last in rendering.frames)


class _Twin:
    """A tokenizer like another one, but with other spellings of its control tokens."""

    def __init__(self, backend: Tokenizer, controls: dict[int, str], unknown: int | None, base: int) -> None:
        self._respelt = {text: chr(base + number) * len(text) for number, text in enumerate(controls.values())}
        self._pattern = _any_of(self._respelt)
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

    def tokenise(self, rendering: Rendering) -> tuple[Tokens, list[int]]:
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
        return (ids, encoding.offsets), written


_known: WeakKeyDictionary[Any, tuple[int, Markers]] = WeakKeyDictionary()


def markers(tokenizer: PreTrainedTokenizerBase) -> Markers:
    """The control tokens of a tokenizer, found once; again when tokens have been added since."""
    size, found = _known.get(tokenizer, (-1, None))
    if found is None or size != len(tokenizer):
        found = Markers(tokenizer)
        _known[tokenizer] = (len(tokenizer), found)
    return found


def tokenise(
    renderings: Sequence[Rendering], tokenizer: PreTrainedTokenizerBase, places: Sequence[str]
) -> list[Tokens]:
    """The tokens of each rendering, tokenised whole, without what a tokenizer adds by itself.

    places: where each row stands, for errors. Raises HarnessError as `Markers` does.
    """
    if not renderings:
        return []
    own = markers(tokenizer)
    found: list[Tokens] = []
    for rendering, place, tokens in zip(
        renderings, places, own.tokenise([rendering.text for rendering in renderings]), strict=True
    ):
        controls = own.controls(rendering)
        if own.strays(tokens, rendering, controls):
            tokens = own.tokenise_apart(rendering, controls, place)
        found.append(tokens)
    return found


def _start(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What the tokenizer puts before a text by itself: its begin-of-sequence token, or nothing."""
    whole, bare = list(tokenizer("a").input_ids), list(tokenizer("a", add_special_tokens=False).input_ids)
    for place in range(len(whole) - len(bare) + 1):
        if whole[place : place + len(bare)] == bare:
            return tuple(whole[:place])
    return ()


def _any_of(texts: Iterable[str]) -> re.Pattern[str] | None:
    longest_first = sorted((text for text in texts if text), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _holds(text: str, base: int, size: int) -> bool:
    return any(base <= ord(character) < base + size for character in text)


def _in_merges(model: dict[str, Any]) -> set[str]:
    """Spellings that a byte-pair model joins from others, and so has to find in its vocabulary."""
    pairs = (pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model.get("merges", ()))
    return {text for left, right in pairs for text in (left, right, left + right)}
