"""Find held-out rows that are contaminated by training rows: equal prompts, or long n-grams of words in common.

The evaluation rows are indexed; the training rows are read once. The method follows Brown et al., 2020,
arXiv:2005.14165, appendix C: n-grams of 13 words; n-grams in many training rows are common phrases and do not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from harness.data.checks.conversation_text import (
    conversation_text,
    earlier_trained_prompts,
    prompt_messages,
    response_message,
)
from harness.data.row_hashing import hash_windows
from harness.data.tokenization.rendering import is_plain_text
from harness.types import Example, Message, Progress, no_progress
from harness.utils.words import is_unspaced_script, original_text_of_words, split_words

MAX_OVERLAPS_SHOWN = 10
SCAN_BATCH_ROWS = 512

ItemKey = tuple[str, int]
"""An item: its suite and its index there."""


@dataclass(frozen=True)
class Overlap:
    """A held-out text and the training row that shares most of it.

    Attributes:
        item: The location of the item.
        row: The location of the training row.
        source: The source of the training row.
        side: `prompt` or `response` of the item, or `text` for a plain text.
        covered: Share of the text's words that are in n-grams shared with any training row, in [0, 1].
        text: The longest text shared with this row.
    """

    item: str
    row: str
    source: str
    side: str
    covered: float
    text: str


@dataclass(frozen=True)
class Contamination:
    """The contamination of one suite. The numbers count items, each once.

    In a suite of plain texts an item has no response, and the prompt is the complete text. Its words count as equal
    where a trained text or a trained response has the same words.

    Attributes:
        items: Items of the suite.
        same_prompts: Items whose prompt is in training in the same words (case and punctuation do not count), also
            within a conversation or as a plain text.
        same_responses: Items whose response is in training in the same words. This alone says little: many are "yes".
        overlapping: Items that share an n-gram with training.
        common: Items that share only common phrases with training.
        prompts: Items with a contaminated prompt: the same words, or shared n-grams cover enough of them.
        responses: Items with a response of which shared n-grams cover enough.
        worst: The overlaps that cover most, one for each side of an item; prompts before responses.
        kind: `prompt`, or `text` for a suite of plain texts.
    """

    items: int
    same_prompts: int
    same_responses: int
    overlapping: int
    common: int
    prompts: int
    responses: int
    worst: tuple[Overlap, ...]
    kind: Literal["prompt", "text"] = "prompt"


def find_contamination(
    suites: Mapping[str, Sequence[Example]],
    training: Mapping[str, Collection[Example]],
    *,
    ngram: int = 13,
    characters: int = 20,
    common: int = 10,
    covered: float = 0.5,
    progress: Progress = no_progress,
) -> dict[str, Contamination]:
    """Compare each suite's items with the training rows.

    A prompt or response shorter than an n-gram is still compared as a complete text. A system message that several
    items of a suite share is instruction, not question, and is ignored. Memory grows with the evaluation rows only.

    Args:
        suites: Suite -> its rows, held in memory.
        training: Source -> its rows, each read once, in order.
        ngram: Words in an n-gram.
        characters: Words in an n-gram of a text in a script without spaces, where a character is a word.
        common: An n-gram in more training rows than this is a common phrase.
        covered: Share of a text's words, in (0, 1], from which shared n-grams make it contaminated.
        progress: Receives the phase `search for held-out rows`, in rows.
    """
    index = ContaminationIndex(suites, ngram, characters, common)
    total = sum(map(len, training.values()))
    for name, rows in training.items():
        for done in index.scan_rows(name, rows):
            progress("search for held-out rows", done, total, name, "rows")
    return {name: index.report_for_suite(name, rows, covered) for name, rows in suites.items()}


@dataclass(frozen=True)
class _ItemText:
    """One side of one item; see `Overlap`. ngram: words in its n-grams."""

    key: ItemKey
    side: str
    text: str
    words: tuple[str, ...]
    ngram: int


class ContaminationIndex:
    """An index of the items of all suites, and the matches with the training rows scanned so far."""

    def __init__(self, suites: Mapping[str, Sequence[Example]], ngram: int, characters: int, common: int) -> None:
        """Index the items; see `find_contamination` for the arguments."""
        self._common = common
        self._texts = [
            text for name, rows in suites.items() for text in _iter_item_texts(name, rows, ngram, characters)
        ]
        self._text_indices = {(text.key, text.side): index for index, text in enumerate(self._texts)}
        self._index = SharedNgramIndex([(text.words, text.ngram) for text in self._texts], max_rows=common + 1)
        self._prompts = _items_by_words(suites, lambda row: () if is_plain_text(row) else prompt_messages(row))
        self._responses = _items_by_words(suites, lambda row: () if is_plain_text(row) else (response_message(row),))
        self._plain_texts = _items_by_words(suites, lambda row: row.messages if is_plain_text(row) else ())
        self._prompt_lengths = sorted({len(words) for words in self._prompts})
        self._prompt_matches: dict[ItemKey, list[int]] = {}  # item -> training rows with the same prompt
        self._response_matches: set[ItemKey] = set()
        self._row_locations: dict[int, tuple[str, str]] = {}  # training row -> its location and source
        self._rows_read = 0

    def scan_rows(self, source: str, rows: Iterable[Example]) -> Iterator[int]:
        """Compare the training rows of a source with the items, batch by batch.

        Yields:
            The number of rows read so far, in all sources.
        """
        remaining = iter(rows)
        while batch := list(islice(remaining, SCAN_BATCH_ROWS)):
            batch_words: list[list[str | None]] = []
            matching_rows: set[int] = set()
            for row_index, row in enumerate(batch, self._rows_read):
                prompt_words = split_words(conversation_text(prompt_messages(row)))
                response_words = split_words(conversation_text((response_message(row),)))
                for key in self._matching_items(row, prompt_words, response_words):
                    if key not in self._prompt_matches:
                        self._prompt_matches[key] = []
                        matching_rows.add(row_index)
                    self._prompt_matches[key].append(row_index)
                self._response_matches.update(self._responses.get(tuple(response_words), ()))
                batch_words.append([*prompt_words, None, *response_words])
            for row_index in matching_rows | self._index.scan_rows(batch_words, self._rows_read):
                self._row_locations[row_index] = (batch[row_index - self._rows_read].location, source)
            self._rows_read += len(batch)
            yield self._rows_read

    def _matching_items(
        self, row: Example, prompt_words: Sequence[str], response_words: Sequence[str]
    ) -> Iterator[ItemKey]:
        """Yield the items whose prompt, or plain text, a training row has in the same words."""
        prompts = (
            (tuple(response_words),)
            if is_plain_text(row)
            else (tuple(prompt_words), *self._matching_earlier_prompts(row, prompt_words))
        )
        for words in prompts:
            yield from self._prompts.get(words, ())
        if self._plain_texts:
            earlier_responses = (
                tuple(split_words(conversation_text((message,))))
                for message in row.messages[:-1]
                if message.role == "assistant" and message.train
            )
            for words in (tuple(response_words), *earlier_responses):
                yield from self._plain_texts.get(words, ())

    def _matching_earlier_prompts(self, row: Example, prompt_words: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """Yield the words of the prompts of a row's earlier trained responses that are also an item's prompt."""
        if len(row.messages) < 4:
            return
        prefixes = {prefix for size in self._prompt_lengths if (prefix := tuple(prompt_words[:size])) in self._prompts}
        if prefixes:  # so that few rows are split turn by turn
            for messages in earlier_trained_prompts(row):
                words = tuple(split_words(conversation_text(messages)))
                if words in prefixes:
                    yield words

    def contaminated_sides(
        self, suite: str, rows: Sequence[Example], covered: float, sides: Collection[str]
    ) -> Iterator[tuple[ItemKey, str]]:
        """Yield each contaminated item of a suite, with the side that is.

        Args:
            suite: The suite.
            rows: Its rows.
            covered: See `find_contamination`.
            sides: The sides of an item that count.
        """
        overlaps, _, _ = self._overlaps_of_suite(suite, rows)
        for side in sides:
            yield from ((key, side) for key, overlap in overlaps[side].items() if overlap.covered >= covered)

    def rows_shared_with(self, key: ItemKey, side: str) -> Iterator[int]:
        """Yield the number of each scanned row that shares a counted n-gram, or all words, with a side of an item."""
        if side != "response":
            yield from self._prompt_matches.get(key, ())
        for ngram in self._index.ngrams_of_text(self._text_indices[key, side]).tolist():
            if ngram >= 0 and self._index.row_counts[ngram] <= self._common:
                yield from self._index.rows_with_ngram(ngram)

    def report_for_suite(self, suite: str, rows: Sequence[Example], covered: float) -> Contamination:
        """Return the contamination of one suite by the rows scanned so far."""
        overlaps, overlapping, common = self._overlaps_of_suite(suite, rows)
        counts = {
            side: sum(overlap.covered >= covered for overlap in by_item.values()) for side, by_item in overlaps.items()
        }
        worst = [
            overlap
            for by_item in overlaps.values()
            for overlap in sorted(by_item.values(), key=lambda overlap: -overlap.covered)
        ]
        return Contamination(
            items=len(rows),
            same_prompts=sum(key[0] == suite for key in self._prompt_matches),
            same_responses=sum(key[0] == suite for key in self._response_matches),
            overlapping=len(overlapping),
            common=len(common - overlapping),
            prompts=counts["prompt"] + counts["text"],
            responses=counts["response"],
            worst=tuple(worst[:MAX_OVERLAPS_SHOWN]),
            kind="text" if any(map(is_plain_text, rows)) else "prompt",
        )

    def _overlaps_of_suite(
        self, suite: str, rows: Sequence[Example]
    ) -> tuple[dict[str, dict[ItemKey, Overlap]], set[ItemKey], set[ItemKey]]:
        """Return side -> item -> its overlap, the items that share an n-gram, and those that share common ones."""
        overlaps: dict[str, dict[ItemKey, Overlap]] = {"prompt": {}, "text": {}, "response": {}}
        overlapping, common = set[ItemKey](), set[ItemKey]()
        for text_index, text in enumerate(self._texts):
            if text.key[0] != suite:
                continue
            location = rows[text.key[1]].location
            overlap, has_only_common = self._find_overlap(text_index, text, location)
            if overlap is not None:
                overlapping.add(text.key)
            elif has_only_common:
                common.add(text.key)
            if text.side != "response" and text.key in self._prompt_matches:
                row_location = self._row_locations[self._prompt_matches[text.key][0]]
                overlap = Overlap(location, *row_location, text.side, 1.0, text.text)
            if overlap is not None:
                overlaps[text.side][text.key] = overlap
        return overlaps, overlapping, common

    def _find_overlap(self, text_index: int, text: _ItemText, location: str) -> tuple[Overlap | None, bool]:
        """Return the overlap of a text with training, and whether it shares common phrases if it has none."""
        ngrams = self._index.ngrams_of_text(text_index)
        row_counts = (
            np.where(ngrams >= 0, self._index.row_counts[ngrams], 0) if len(self._index.row_counts) else ngrams * 0
        )
        shared_starts = np.flatnonzero((row_counts > 0) & (row_counts <= self._common)).tolist()
        if not shared_starts:
            return None, bool((row_counts > 0).any())
        is_covered = np.zeros(len(text.words), bool)
        for start in shared_starts:
            is_covered[start : start + text.ngram] = True
        ngram_counts = Counter(
            row for start in shared_starts for row in self._index.rows_with_ngram(int(ngrams[start]))
        )
        best_row = min(ngram_counts, key=lambda row: (-ngram_counts[row], row))
        starts_in_best_row = [
            start for start in shared_starts if best_row in self._index.rows_with_ngram(int(ngrams[start]))
        ]
        begin, end = _longest_consecutive(starts_in_best_row)
        shared_text = original_text_of_words(text.text, begin, end + text.ngram)
        row_location = self._row_locations[best_row]
        return Overlap(location, *row_location, text.side, float(is_covered.mean()), shared_text), False


def _iter_item_texts(suite: str, rows: Sequence[Example], ngram: int, characters: int) -> Iterator[_ItemText]:
    system_counts = Counter(message.content for row in rows for message in row.messages if message.role == "system")
    for item, row in enumerate(rows):
        response_text = conversation_text([response_message(row)])
        if is_plain_text(row):
            texts = [("text", response_text)]
        else:
            prompt = [
                message
                for message in prompt_messages(row)
                if message.role != "system" or system_counts[message.content] == 1
            ]
            texts = [("prompt", conversation_text(prompt)), ("response", response_text)]
        for side, text in texts:
            words = tuple(split_words(text))
            yield _ItemText((suite, item), side, text, words, characters if is_unspaced_script(words) else ngram)


def _items_by_words(
    suites: Mapping[str, Sequence[Example]], select_messages: Callable[[Example], Iterable[Message]]
) -> dict[tuple[str, ...], list[ItemKey]]:
    """Map the words of the selected messages to the items that have them."""
    items: dict[tuple[str, ...], list[ItemKey]] = {}
    for name, rows in suites.items():
        for item, row in enumerate(rows):
            words = tuple(split_words(conversation_text(select_messages(row))))
            if words:
                items.setdefault(words, []).append((name, item))
    return items


def _longest_consecutive(ascending: Sequence[int]) -> tuple[int, int]:
    """Return the first and the last of the longest series of consecutive integers."""
    best_first = best_last = first = last = ascending[0]
    for value in ascending[1:]:
        first = first if value == last + 1 else value
        last = value
        if last - first > best_last - best_first:
            best_first, best_last = first, last
    return best_first, best_last


class SharedNgramIndex:
    """An index of the n-grams of some texts, and of the scanned rows that contain each.

    The words of all texts are stored one after the other, each as an integer. Each distinct n-gram has an index, and
    `ngram_at` holds the index of the n-gram that begins at each word. An example of two texts, the first with n-grams
    of 2 words, the second of 3:

        words      a  b  a  b | x  y  z
        ngram_at   0  1  0 -1 | 2 -1 -1

    Attributes:
        row_counts: `(S,)` int64, scanned rows that contain each n-gram.
    """

    def __init__(self, texts: Sequence[tuple[Sequence[str], int]], max_rows: int) -> None:
        """Index the n-grams of the texts.

        Args:
            texts: For each text its words, and the number of words in its n-grams; a shorter text has no n-grams.
            max_rows: Rows to remember for each n-gram; beyond that they are only counted.
        """
        self._max_rows = max_rows
        self._word_ids: dict[str | None, int] = {}
        word_ids = [self._word_ids.setdefault(word, len(self._word_ids) + 1) for words, _ in texts for word in words]
        self._word_stream = np.array(word_ids, np.int64)  # (W,)
        lengths = np.array([len(words) for words, _ in texts], np.int64)  # (T,)
        self._starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)  # (T + 1,)
        sizes = np.array([size for _, size in texts], np.int64)  # (T,)
        self._ngram_at = np.full(len(word_ids), -1, np.int64)  # (W,)
        # For each size: the index of its first n-gram, the sorted hashes of its n-grams, and where each first occurs.
        self._by_size: list[tuple[int, int, NDArray[np.uint64], NDArray[np.int64]]] = []
        total = 0
        for size in np.unique(sizes[lengths >= sizes]).tolist():
            text_indices = np.flatnonzero((sizes == size) & (lengths >= size))
            window_starts = np.concatenate(
                [np.arange(self._starts[text], self._starts[text + 1] - size + 1) for text in text_indices]
            )
            hashes, first, inverse = np.unique(
                hash_windows(self._word_stream, size)[window_starts], return_index=True, return_inverse=True
            )
            self._ngram_at[window_starts] = inverse + total
            self._by_size.append((size, total, hashes, window_starts[first]))
            total += len(hashes)
        self.row_counts = np.zeros(total, np.int64)
        self._rows: list[list[int]] = [[] for _ in range(total)]

    def scan_rows(self, rows: Sequence[Sequence[str | None]], first_row: int) -> set[int]:
        """Count the n-grams in the words of some rows.

        Args:
            rows: The words of each row; None separates two texts.
            first_row: The index of the first of these rows; the others follow.

        Returns:
            The indices of the rows that were remembered for some n-gram.
        """
        get_id = self._word_ids.get
        stream = np.fromiter((get_id(word, 0) for row in rows for word in (*row, None)), np.int64)  # 0: unknown or None
        row_ends = np.cumsum([len(row) + 1 for row in rows])
        unknown_before = np.concatenate([[0], np.cumsum(stream == 0)])
        remembered_rows: set[int] = set()
        for size, first_ngram, hashes, occurrences in self._by_size:
            if len(stream) < size:
                continue
            starts = np.flatnonzero(unknown_before[size:] == unknown_before[:-size])  # windows of known words
            window_hashes = hash_windows(stream, size)[starts]
            nearest = np.minimum(np.searchsorted(hashes, window_hashes), len(hashes) - 1)
            same_hash = hashes[nearest] == window_hashes
            starts, nearest = starts[same_hash], nearest[same_hash]
            window = np.arange(size)
            same_words = (
                stream[starts[:, None] + window] == self._word_stream[occurrences[nearest][:, None] + window]
            ).all(axis=1)
            row_of_window = np.searchsorted(row_ends, starts[same_words], side="right")
            # A row counts once for each n-gram.
            pairs = np.unique(row_of_window * len(self.row_counts) + nearest[same_words] + first_ngram)
            ngrams = pairs % len(self.row_counts)
            is_open = self.row_counts[ngrams] < self._max_rows
            open_rows = (pairs // len(self.row_counts))[is_open]
            for row, ngram in zip(open_rows.tolist(), ngrams[is_open].tolist(), strict=True):
                if len(self._rows[ngram]) < self._max_rows:
                    self._rows[ngram].append(first_row + row)
                    remembered_rows.add(first_row + row)
            np.add.at(self.row_counts, ngrams, 1)
        return remembered_rows

    def ngrams_of_text(self, text: int) -> NDArray[np.int64]:
        """Return the n-gram that begins at each word of a text, an index into `row_counts`; -1 for none."""
        return self._ngram_at[self._starts[text] : self._starts[text + 1]]

    def rows_with_ngram(self, ngram: int) -> Sequence[int]:
        """Return the first `max_rows` scanned rows that contain an n-gram."""
        return self._rows[ngram]
