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
from functools import cached_property, lru_cache
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from harness.data.tokenization.byte_level import ByteWidths
from harness.data.tokenization.rendering import Rendering
from harness.errors import HarnessError

TokensWithOffsets = tuple[list[int], Encoding]
"""Ids, and what knows where they stand: the list of all places costs more than the tokens, and few are asked for."""


class EscapedTokenizer:
    """The twin of `backend`.

    controls: id -> spelling of the control tokens. unknown: the id for what is unknown. base: code of the first
    private-use character to spell with. Raises HarnessError when the tokenizer's ids leave no room.
    """

    def __init__(
        self, backend: Tokenizer, controls: dict[int, str], unknown_id: int | None, first_character: int
    ) -> None:
        self._escapes = {
            text: chr(first_character + number) * len(text) for number, text in enumerate(controls.values())
        }
        self._pattern = compile_alternation(self._escapes)
        self._ids = {text: index for index, text in controls.items()}
        document = json.loads(backend.to_str())
        kept = _merge_spellings(document["model"]) | {text for text, index in self._ids.items() if index == unknown_id}
        for token in document["added_tokens"]:
            token["content"] = self._escapes.get(token["content"], token["content"])
        model = document["model"]
        names = {text: other for text, other in self._escapes.items() if text not in kept}
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
            twin = self._tokenizer.token_to_id(self._escapes.get(text, text))
            if twin != index:
                self._original[twin] = index
        taken = model["vocab"].values() if isinstance(model["vocab"], dict) else range(len(model["vocab"]))
        if not self._original.keys().isdisjoint(taken):
            what = "a message holds a control token, and the ids of this tokenizer leave no room to read it as text"
            raise HarnessError("model", what, "take such tokens out of the data")

    def encode_rendering(self, rendering: Rendering) -> tuple[TokensWithOffsets, list[int]]:
        """The tokens, and the control tokens that the template wrote, in order."""
        parts, place, written = [], 0, []

        def respell(match: re.Match[str]) -> str:
            written.append(self._ids[match[0]])
            return self._escapes[match[0]]

        assert self._pattern is not None
        for begin, end in rendering.markup_spans:
            parts += [rendering.text[place:begin], self._pattern.sub(respell, rendering.text[begin:end])]
            place = end
        parts.append(rendering.text[place:])
        encoding = self._tokenizer.encode("".join(parts), add_special_tokens=False)
        ids = [self._original.get(token, token) for token in encoding.ids] if self._original else encoding.ids
        return (ids, encoding), written


def compile_alternation(texts: Iterable[str]) -> re.Pattern[str] | None:
    """What finds any of the texts, the longest first; None when there is none."""
    longest_first = sorted((text for text in texts if text), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _merge_spellings(model: dict[str, Any]) -> set[str]:
    """Spellings that a byte-pair model joins from others, and so has to find in its vocabulary."""
    pairs = (pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model.get("merges", ()))
    return {text for left, right in pairs for text in (left, right, left + right)}


IdsWithOffsets = tuple[list[int], list[tuple[int, int]]]
"""Ids, and for each where in the text it begins and ends, in characters."""

BLANK_CHARACTERS = "▁ \t\r\n"
"""Added tokens of these alone are vocabulary: runs of spaces, and the like."""

PRIVATE_USE_STARTS = (0xF0000, 0x100000, 0xF8000, 0x108000)
"""Where runs of private-use characters begin; the second is taken for a text that holds characters of the first."""


class SpecialTokenGuard:
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
        # (V,), whether a token can be a control token at all: a whole batch is looked up at once.
        self.possible_controls: NDArray[np.bool_] = np.zeros(max(tokenizer.get_vocab().values(), default=0) + 1, bool)
        self.possible_controls[
            [i for i, text in self._spelling.items() if i in self._special or text.strip(BLANK_CHARACTERS)]
        ] = True
        self._non_special_pattern = compile_alternation(
            text for text in self._added if text not in special and text.strip(BLANK_CHARACTERS)
        )
        self._non_special_controls = lru_cache(maxsize=4096)(self._find_non_special_controls)
        self._escaped_tokenizers: dict[tuple[frozenset[int], int], EscapedTokenizer] = {}
        self.bos_prefix = _find_bos_prefix(tokenizer)

    @cached_property
    def byte_widths(self) -> ByteWidths | None:
        """How many bytes each token stands for, where that tells where tokens stand."""
        return ByteWidths.from_tokenizer(self._backend)

    def encode_texts(self, texts: Sequence[str], *, with_offsets: bool = True) -> list[Encoding]:
        """The tokens of each text, by the tokenizer itself: every special token in it counts.

        places: whether they must know where they stand; without, it takes about a fifth less time.
        May run beside other threads that read the tokenizer, once `reset_backend` has been called.
        """
        self.reset_backend()
        encode = self._backend.encode_batch if with_offsets else self._backend.encode_batch_fast
        return encode(list(texts), add_special_tokens=False)

    def reset_backend(self) -> None:
        """Turn off what another call may have left on. The tokenizer's own call sets these anew each time.

        Nothing is set that is right already: setting anything while another thread tokenises is an error.
        """
        if self._backend.truncation is not None:
            self._backend.no_truncation()
        if self._backend.padding is not None:
            self._backend.no_padding()
        if self._backend.encode_special_tokens:
            self._backend.encode_special_tokens = False

    def resolve(
        self, renderings: Sequence[Rendering], encodings: Sequence[Encoding], locations: Sequence[str]
    ) -> list[TokensWithOffsets]:
        """The tokens of each rendering, given those of its text; control tokens in contents become plain text.

        places: where each row stands, for errors. Raises HarnessError as `encode_with_escaped_specials` does.
        """
        found: list[TokensWithOffsets] = [(encoding.ids, encoding) for encoding in encodings]
        for row, hits in self._find_possible_controls(found).items():
            controls = self.control_ids(renderings[row])
            if self._has_misplaced(found[row], hits, renderings[row], controls):
                found[row] = self.encode_with_escaped_specials(renderings[row], controls, locations[row])
        return found

    def control_ids(self, rendering: Rendering) -> frozenset[int]:
        """The ids that only the template may write into this rendering."""
        if self._non_special_pattern is None:
            return self._special
        found = self._special
        for text in rendering.untrained_markup:
            found = found | self._non_special_controls(text)
        return found

    def _find_possible_controls(self, encoded: Sequence[TokensWithOffsets]) -> dict[int, list[int]]:
        """Row -> places of its tokens that may be control tokens; rows without any are left out."""
        lengths = np.fromiter((len(ids) for ids, _ in encoded), np.int64, len(encoded))
        flat = np.fromiter(chain.from_iterable(ids for ids, _ in encoded), np.int32, int(lengths.sum()))
        places = np.flatnonzero(self.possible_controls[flat])
        ends = np.cumsum(lengths)
        rows = np.searchsorted(ends, places, side="right")
        within = places - (ends - lengths)[rows]
        hits: dict[int, list[int]] = {}
        for row, place in zip(rows.tolist(), within.tolist(), strict=True):
            hits.setdefault(row, []).append(place)
        return hits

    def _has_misplaced(
        self, tokens: TokensWithOffsets, positions: Sequence[int], rendering: Rendering, control_ids: frozenset[int]
    ) -> bool:
        """Whether a control token stands anywhere but in a frame."""
        ids, encoding = tokens
        frames, number = rendering.markup_spans, 0
        for hit in positions:
            if ids[hit] not in control_ids:
                continue
            begin, end = encoding.token_to_chars(hit) or (0, 0)
            while number < len(frames) and frames[number][1] < end:
                number += 1
            if number < len(frames) and frames[number][0] <= begin:
                continue
            if not self._is_in_markup(ids[hit], (begin, end), rendering):
                return True
        return False

    def encode_with_escaped_specials(
        self, rendering: Rendering, control_ids: frozenset[int], location: str
    ) -> TokensWithOffsets:
        """The tokens of a rendering whose contents hold control tokens, which become plain text.

        place: of the row, for errors. Raises HarnessError when this tokenizer cannot keep them apart.
        """
        base = next(
            (b for b in PRIVATE_USE_STARTS if not _has_characters_in_range(rendering.text, b, len(control_ids))), None
        )
        if base is None:
            what = "the text holds control tokens and private-use characters of every range"
            raise HarnessError(location, what, "remove these characters from the row")
        key = (control_ids, base)
        if key not in self._escaped_tokenizers:
            self._escaped_tokenizers[key] = EscapedTokenizer(
                self._backend, {i: self._spelling[i] for i in sorted(control_ids)}, self._unknown, base
            )
        tokens, written = self._escaped_tokenizers[key].encode_rendering(rendering)
        # The token for what is unknown ends no turn, and a model may well give it for plain text.
        ending = control_ids - {self._unknown}
        hits = [index for index, token in enumerate(tokens[0]) if token in ending]
        expected = [token for token in written if token in ending]
        if [tokens[0][index] for index in hits] != expected or self._has_misplaced(tokens, hits, rendering, ending):
            what = "a message holds a control token, and this tokenizer cannot read it as plain text"
            raise HarnessError(location, what, "take the token out of the row")
        return tokens

    def _find_non_special_controls(self, text: str) -> frozenset[int]:
        assert self._non_special_pattern is not None
        return frozenset(self._added[found] for found in self._non_special_pattern.findall(text))

    def _is_in_markup(self, token_id: int, offsets: tuple[int, int], rendering: Rendering) -> bool:
        begin, end = offsets
        written = rendering.text[begin:end]
        if written.strip():
            # Some control tokens take in the white space beside them, which may be a content's.
            begin, end = begin + len(written) - len(written.lstrip()), end - len(written) + len(written.rstrip())
        if token_id == self._unknown and written.strip() != self._spelling[token_id]:
            return True  # a character that the tokenizer does not know, not its token for such
        return any(first <= begin and end <= last for first, last in rendering.markup_spans)


_guards: WeakKeyDictionary[Any, tuple[int, SpecialTokenGuard]] = WeakKeyDictionary()


def special_token_guard(tokenizer: PreTrainedTokenizerBase) -> SpecialTokenGuard:
    """The control tokens of a tokenizer, found once; again when tokens have been added since."""
    size, found = _guards.get(tokenizer, (-1, None))
    if found is None or size != len(tokenizer):
        found = SpecialTokenGuard(tokenizer)
        _guards[tokenizer] = (len(tokenizer), found)
    return found


def tokenize_with_offsets(
    renderings: Sequence[Rendering], tokenizer: PreTrainedTokenizerBase, locations: Sequence[str]
) -> list[IdsWithOffsets]:
    """The tokens of each rendering, tokenised whole, without what a tokenizer adds by itself.

    places: where each row stands, for errors. Raises HarnessError as `SpecialTokenGuard` does.
    """
    if not renderings:
        return []
    own = special_token_guard(tokenizer)
    found = own.resolve(renderings, own.encode_texts([rendering.text for rendering in renderings]), locations)
    return [(ids, encoding.offsets) for ids, encoding in found]


def _find_bos_prefix(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What the tokenizer puts before a text by itself: its begin-of-sequence token, or nothing."""
    whole, bare = list(tokenizer("a").input_ids), list(tokenizer("a", add_special_tokens=False).input_ids)
    for place in range(len(whole) - len(bare) + 1):
        if whole[place : place + len(bare)] == bare:
            return tuple(whole[:place])
    return ()


def _has_characters_in_range(text: str, base: int, size: int) -> bool:
    return any(base <= ord(character) < base + size for character in text)
