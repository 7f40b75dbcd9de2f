r"""Reserve a tokenizer's control tokens for the template: in a user's text, `<|im_end|>` is plain text.

Tokenizers search the complete text for their special tokens first, so a row that contains one could end a turn or open
a system block. Turning that search off (`split_special_tokens`) turns it off for the template too, and tokenizing span
by span changes the tokens wherever a tokenizer treats the beginning of a text specially.

Texts of such rows go through an escaped tokenizer. In it, each control token has another spelling of the same length,
made of private-use characters. The template's own control tokens are respelled; those of the user are not::

    text       <|im_start|>user\nWhat is <|im_end|>?<|im_end|>\n
    respelled  ............user\nWhat is <|im_end|>?..........\n     (each . a private-use character)
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from harness.data.tokenization.byte_level import ByteWidths
from harness.data.tokenization.rendering import Interval, Rendering
from harness.errors import HarnessError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_IdsWithEncoding = tuple[list[int], Encoding]
"""Ids, and the encoding with their offsets. A list of all offsets costs more than the tokens, and few are read."""


class EscapedTokenizer:
    """A copy of a tokenizer in which each control token is spelled with private-use characters."""

    def __init__(
        self, backend: Tokenizer, controls: dict[int, str], unknown_id: int | None, first_character: int
    ) -> None:
        """Build the copy.

        Args:
            backend: The tokenizer to copy.
            controls: Token id -> spelling of each control token.
            unknown_id: The id of the unknown token.
            first_character: Code point of the first private-use character to spell with.

        Raises:
            HarnessError: When the tokenizer's vocabulary has no free ids.
        """
        self._escapes = {text: chr(first_character + index) * len(text) for index, text in enumerate(controls.values())}
        self._pattern = compile_alternation(self._escapes)
        self._ids = {text: index for index, text in controls.items()}
        state = json.loads(backend.to_str())
        model = state["model"]
        unescaped = _merge_spellings(model) | {text for text, index in self._ids.items() if index == unknown_id}
        for token in state["added_tokens"]:
            token["content"] = self._escapes.get(token["content"], token["content"])
        escapes = {text: escape for text, escape in self._escapes.items() if text not in unescaped}
        # In the vocabulary too: some models would find the token's original spelling in plain text.
        if isinstance(model["vocab"], dict):
            model["vocab"] = {escapes.get(text, text): index for text, index in model["vocab"].items()}
            vocabulary_ids: Iterable[int] = model["vocab"].values()
        else:
            model["vocab"] = [[escapes.get(text, text), score] for text, score in model["vocab"]]
            vocabulary_ids = range(len(model["vocab"]))
        self._tokenizer = Tokenizer.from_str(json.dumps(state))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._original_ids: dict[int, int] = {}  # id in the copy -> id in the original, where they differ
        for index, token in backend.get_added_tokens_decoder().items():
            escaped_id = self._tokenizer.token_to_id(self._escapes.get(token.content, token.content))
            if escaped_id is not None and escaped_id != index:
                self._original_ids[escaped_id] = index
        if not self._original_ids.keys().isdisjoint(vocabulary_ids):
            what = "a message contains a control token, and this tokenizer has no free ids to read it as plain text"
            raise HarnessError("model", what, "remove such tokens from the data")

    def encode_rendering(self, rendering: Rendering) -> tuple[_IdsWithEncoding, list[int]]:
        """Return the tokens of a rendering, and the control tokens that the template wrote, in order."""
        assert self._pattern is not None
        written: list[int] = []

        def escape(match: re.Match[str]) -> str:
            written.append(self._ids[match[0]])
            return self._escapes[match[0]]

        pieces, position = [], 0
        for begin, end in rendering.markup_spans:
            pieces += [rendering.text[position:begin], self._pattern.sub(escape, rendering.text[begin:end])]
            position = end
        pieces.append(rendering.text[position:])
        encoding = self._tokenizer.encode("".join(pieces), add_special_tokens=False)
        ids = encoding.ids
        if self._original_ids:
            ids = [self._original_ids.get(token, token) for token in ids]
        return (ids, encoding), written


def compile_alternation(texts: Iterable[str]) -> re.Pattern[str] | None:
    """Return a pattern that matches any of the texts, the longest first; None when there is no text."""
    longest_first = sorted((text for text in texts if text), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _merge_spellings(model: dict[str, Any]) -> set[str]:
    """Return the spellings that a byte-pair model merges, and therefore must find in its vocabulary."""
    pairs = (pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model.get("merges", ()))
    return {text for left, right in pairs for text in (left, right, left + right)}


BLANK_CHARACTERS = "▁ \t\r\n"
"""Added tokens of these characters alone are vocabulary, such as several spaces."""

PRIVATE_USE_STARTS = (0xF0000, 0x100000, 0xF8000, 0x108000)
"""Starts of the ranges of private-use characters. The next one is used when the text contains characters of one."""


class SpecialTokenGuard:
    """The control tokens of one tokenizer.

    Control tokens are the special tokens, and the added tokens that a template writes in its markup. Other added tokens
    (`<think>`, several spaces) are vocabulary in any text.

    Attributes:
        possible_controls: (V,) bool, whether a token can be a control token. Used to search a complete batch at once.
        bos_prefix: The begin-of-sequence token if the tokenizer adds one itself, else empty.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Collect the control tokens.

        Raises:
            HarnessError: When the tokenizer is not a fast one, since only fast tokenizers report offsets.
        """
        if not getattr(tokenizer, "is_fast", False):
            what = f"the tokenizer ({type(tokenizer).__name__}) is not a fast one and reports no token offsets"
            raise HarnessError("model", what, "use a model with a tokenizer.json")
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._unknown_id = tokenizer.unk_token_id
        self._added_ids = {token.content: index for index, token in tokenizer.added_tokens_decoder.items()}
        special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        self._special_ids = frozenset(index for text, index in self._added_ids.items() if text in special)
        self._spellings = {index: text for text, index in self._added_ids.items()}
        self.possible_controls: NDArray[np.bool_] = np.zeros(max(tokenizer.get_vocab().values(), default=0) + 1, bool)
        self.possible_controls[
            [i for i, text in self._spellings.items() if i in self._special_ids or text.strip(BLANK_CHARACTERS)]
        ] = True
        self._non_special_pattern = compile_alternation(
            text for text in self._added_ids if text not in special and text.strip(BLANK_CHARACTERS)
        )
        self._non_special_controls = lru_cache(maxsize=4096)(self._find_non_special_controls)
        self._escaped_tokenizers: dict[tuple[frozenset[int], int], EscapedTokenizer] = {}
        self.bos_prefix = _find_bos_prefix(tokenizer)

    @cached_property
    def byte_widths(self) -> ByteWidths | None:
        """The number of bytes that each token encodes; None where it does not determine the tokens' positions."""
        return ByteWidths.from_tokenizer(self._backend)

    @cached_property
    def backend_digest(self) -> str:
        """SHA-256 of the serialized tokenizer, in hex."""
        self.reset_backend()  # a serialized tokenizer contains a truncation that another call left on
        return hashlib.sha256(self._backend.to_str().encode()).hexdigest()

    def encode_texts(self, texts: Sequence[str], *, with_offsets: bool = True) -> list[Encoding]:
        """Tokenize each text with the original tokenizer: every special token in it counts.

        Safe in threads that read the same tokenizer, once `reset_backend` has been called.

        Args:
            texts: The texts.
            with_offsets: Whether the encodings need offsets. Without them it takes about a fifth less time.
        """
        self.reset_backend()
        encode = self._backend.encode_batch if with_offsets else self._backend.encode_batch_fast
        return encode(list(texts), add_special_tokens=False)

    def reset_backend(self) -> None:
        """Turn off truncation, padding and splitting that another call may have left on.

        Sets nothing that is correct already: setting anything while another thread tokenizes is an error.
        """
        if self._backend.truncation is not None:
            self._backend.no_truncation()
        if self._backend.padding is not None:
            self._backend.no_padding()
        if self._backend.encode_special_tokens:
            self._backend.encode_special_tokens = False

    def resolve(
        self, renderings: Sequence[Rendering], encodings: Sequence[Encoding], locations: Sequence[str]
    ) -> list[_IdsWithEncoding]:
        """Return the tokens of each rendering, with control tokens in messages as plain text.

        Args:
            renderings: The renderings.
            encodings: The result of `encode_texts`, with offsets, for their texts.
            locations: The location of each row, for errors.

        Raises:
            HarnessError: As `encode_with_escaped_specials` does.
        """
        resolved: list[_IdsWithEncoding] = [(encoding.ids, encoding) for encoding in encodings]
        for row, positions in self._find_possible_controls(resolved).items():
            controls = self.control_ids(renderings[row])
            if self._has_misplaced(resolved[row], positions, renderings[row], controls):
                resolved[row] = self.encode_with_escaped_specials(renderings[row], controls, locations[row])
        return resolved

    def control_ids(self, rendering: Rendering) -> frozenset[int]:
        """Return the ids that only the template may write into this rendering."""
        if self._non_special_pattern is None:
            return self._special_ids
        ids = self._special_ids
        for text in rendering.untrained_markup:
            ids = ids | self._non_special_controls(text)
        return ids

    def _find_possible_controls(self, rows: Sequence[_IdsWithEncoding]) -> dict[int, list[int]]:
        """Return row -> the positions of its tokens that can be control tokens, for rows that have any."""
        lengths = np.fromiter((len(ids) for ids, _ in rows), np.int64, len(rows))
        flat = np.fromiter(chain.from_iterable(ids for ids, _ in rows), np.int32, int(lengths.sum()))
        flat_positions = np.flatnonzero(self.possible_controls[flat])
        ends = np.cumsum(lengths)
        row_indices = np.searchsorted(ends, flat_positions, side="right")
        positions = flat_positions - (ends - lengths)[row_indices]
        positions_by_row: dict[int, list[int]] = {}
        for row, position in zip(row_indices.tolist(), positions.tolist(), strict=True):
            positions_by_row.setdefault(row, []).append(position)
        return positions_by_row

    def _has_misplaced(
        self, tokens: _IdsWithEncoding, positions: Sequence[int], rendering: Rendering, control_ids: frozenset[int]
    ) -> bool:
        """Return whether a control token is outside of the markup. positions: the tokens to examine, ascending."""
        ids, encoding = tokens
        markup, next_span = rendering.markup_spans, 0
        for position in positions:
            if ids[position] not in control_ids:
                continue
            begin, end = encoding.token_to_chars(position) or (0, 0)
            while next_span < len(markup) and markup[next_span][1] < end:
                next_span += 1
            if next_span < len(markup) and markup[next_span][0] <= begin:
                continue
            if not self._is_in_markup(ids[position], (begin, end), rendering):
                return True
        return False

    def encode_with_escaped_specials(
        self, rendering: Rendering, control_ids: frozenset[int], location: str
    ) -> _IdsWithEncoding:
        """Tokenize a rendering whose messages contain control tokens, and read those as plain text.

        Args:
            rendering: The rendering.
            control_ids: The ids that only the template may write, see `control_ids`.
            location: The row's location, for errors.

        Raises:
            HarnessError: When this tokenizer cannot distinguish the two.
        """
        first_character = next(
            (
                start
                for start in PRIVATE_USE_STARTS
                if not _has_characters_in_range(rendering.text, start, len(control_ids))
            ),
            None,
        )
        if first_character is None:
            what = "the text contains control tokens and private-use characters of every range"
            raise HarnessError(location, what, "remove the private-use characters from the row")
        key = (control_ids, first_character)
        if key not in self._escaped_tokenizers:
            controls = {index: self._spellings[index] for index in sorted(control_ids)}
            self._escaped_tokenizers[key] = EscapedTokenizer(self._backend, controls, self._unknown_id, first_character)
        tokens, written = self._escaped_tokenizers[key].encode_rendering(rendering)
        # The unknown token ends no turn, and a model may well produce it for plain text.
        ending = control_ids - {self._unknown_id}
        positions = [position for position, token in enumerate(tokens[0]) if token in ending]
        expected = [token for token in written if token in ending]
        if [tokens[0][position] for position in positions] != expected or self._has_misplaced(
            tokens, positions, rendering, ending
        ):
            what = "a message contains a control token, and this tokenizer cannot read it as plain text"
            raise HarnessError(location, what, "remove the token from the row")
        return tokens

    def _find_non_special_controls(self, text: str) -> frozenset[int]:
        assert self._non_special_pattern is not None
        return frozenset(self._added_ids[match] for match in self._non_special_pattern.findall(text))

    def _is_in_markup(self, token_id: int, offsets: Interval, rendering: Rendering) -> bool:
        begin, end = offsets
        written = rendering.text[begin:end]
        if written.strip():
            # Some control tokens cover the white space around them, which may belong to a message.
            begin, end = begin + len(written) - len(written.lstrip()), end - len(written) + len(written.rstrip())
        if token_id == self._unknown_id and written.strip() != self._spellings[token_id]:
            return True  # a character unknown to the tokenizer, not the spelling of its unknown token
        return any(first <= begin and end <= last for first, last in rendering.markup_spans)


_guards: WeakKeyDictionary[Any, tuple[int, SpecialTokenGuard]] = WeakKeyDictionary()


def special_token_guard(tokenizer: PreTrainedTokenizerBase) -> SpecialTokenGuard:
    """Return the control tokens of a tokenizer, cached until tokens are added to it."""
    num_tokens, guard = _guards.get(tokenizer, (-1, None))
    if guard is None or num_tokens != len(tokenizer):
        guard = SpecialTokenGuard(tokenizer)
        _guards[tokenizer] = (len(tokenizer), guard)
    return guard


def tokenize_with_offsets(
    renderings: Sequence[Rendering], tokenizer: PreTrainedTokenizerBase, locations: Sequence[str]
) -> list[tuple[list[int], list[Interval]]]:
    """Tokenize each complete rendering, without the tokens that a tokenizer adds itself.

    Args:
        renderings: The renderings.
        tokenizer: A fast tokenizer.
        locations: The location of each row, for errors.

    Returns:
        For each rendering, its token ids, and for each token its begin and end in the text, in characters.

    Raises:
        HarnessError: As `SpecialTokenGuard` does.
    """
    if not renderings:
        return []
    guard = special_token_guard(tokenizer)
    encodings = guard.encode_texts([rendering.text for rendering in renderings])
    return [(ids, encoding.offsets) for ids, encoding in guard.resolve(renderings, encodings, locations)]


def _find_bos_prefix(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the tokens that the tokenizer adds before a text: its begin-of-sequence token, or nothing."""
    ids, bare_ids = list(tokenizer("a").input_ids), list(tokenizer("a", add_special_tokens=False).input_ids)
    for start in range(len(ids) - len(bare_ids) + 1):
        if ids[start : start + len(bare_ids)] == bare_ids:
            return tuple(ids[:start])
    return ()


def _has_characters_in_range(text: str, start: int, size: int) -> bool:
    return any(start <= ord(character) < start + size for character in text)
