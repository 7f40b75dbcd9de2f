"""Held-out rows that training gives away: the same prompt in the same words, or long stretches of the same wording.

The evaluation side is indexed, the training side is read once, row by row. After Brown et al., 2020, arXiv:2005.14165,
appendix C: stretches of 13 words, and those that stand in many training rows are common phrases and count for nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from harness.data.checks.words import (
    conversation_text,
    earlier_trained_prompts,
    is_plain_text,
    is_unspaced_script,
    original_text_of_words,
    prompt_messages,
    response_message,
    split_words,
)
from harness.types import Example, Message, Progress, no_progress

_HASH_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class SharedNgramIndex:
    """Every stretch of some texts, and how many rows of those read so far hold it.

    texts: words of each text, and how many make a stretch of it; a text with fewer has none.
    keep: a stretch that more rows than this hold keeps their number and forgets which they are.
    """

    def __init__(self, texts: Sequence[tuple[Sequence[str], int]], max_rows: int) -> None:
        self._max_rows = max_rows
        self._word_ids: dict[str | None, int] = {}
        flat = [self._word_ids.setdefault(word, len(self._word_ids) + 1) for words, _ in texts for word in words]
        self._word_stream = np.array(flat, np.int64)
        lengths = np.array([len(words) for words, _ in texts], np.int64)
        self._starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        sizes = np.array([size for _, size in texts], np.int64)
        self._ngram_at = np.full(len(flat), -1, np.int64)
        self._by_size: list[tuple[int, int, NDArray[np.uint64], NDArray[np.int64]]] = []
        total = 0
        for size in np.unique(sizes[lengths >= sizes]).tolist():
            of = np.flatnonzero((sizes == size) & (lengths >= size))
            at = np.concatenate([np.arange(self._starts[t], self._starts[t + 1] - size + 1) for t in of])
            hashes, first, inverse = np.unique(
                _window_hashes(self._word_stream, size)[at], return_index=True, return_inverse=True
            )
            self._ngram_at[at] = inverse + total
            self._by_size.append((size, total, hashes, at[first]))
            total += len(hashes)
        self.row_counts = np.zeros(total, np.int64)
        """Rows that hold each stretch, (S,)."""
        self._rows: list[list[int]] = [[] for _ in range(total)]

    def scan_rows(self, rows: Sequence[Sequence[str | None]], first_row: int) -> set[int]:
        """Look for the stretches in the words of some rows, numbered from `first`; None stands between two texts.

        Returns the numbers of the rows in which a stretch was found that is not in more than `keep` rows so far.
        """
        numbers = self._word_ids.get
        flat = np.fromiter((numbers(word, 0) for row in rows for word in (*row, None)), np.int64)
        ends = np.cumsum([len(row) + 1 for row in rows])
        blanks = np.concatenate([[0], np.cumsum(flat == 0)])
        found: set[int] = set()
        for size, base, hashes, places in self._by_size:
            if len(flat) < size:
                continue
            at = np.flatnonzero(blanks[size:] == blanks[:-size])
            sought = _window_hashes(flat, size)[at]
            near = np.minimum(np.searchsorted(hashes, sought), len(hashes) - 1)
            alike = hashes[near] == sought
            at, near = at[alike], near[alike]
            window = np.arange(size)
            same = (flat[at[:, None] + window] == self._word_stream[places[near][:, None] + window]).all(axis=1)
            holder = np.searchsorted(ends, at[same], side="right")
            pairs = np.unique(holder * len(self.row_counts) + near[same] + base)  # a row counts once
            stretches = pairs % len(self.row_counts)
            fresh = self.row_counts[stretches] < self._max_rows
            for row, index in zip(
                (pairs // len(self.row_counts))[fresh].tolist(), stretches[fresh].tolist(), strict=True
            ):
                if len(self._rows[index]) < self._max_rows:
                    self._rows[index].append(first_row + row)
                    found.add(first_row + row)
            np.add.at(self.row_counts, stretches, 1)
        return found

    def ngrams_of_text(self, text: int) -> NDArray[np.int64]:
        """The stretch that begins at each word of a text, an index into `counts`; -1 where none does."""
        return self._ngram_at[self._starts[text] : self._starts[text + 1]]

    def rows_with_ngram(self, ngram: int) -> Sequence[int]:
        """The rows that hold a stretch, the first `keep` of them."""
        return self._rows[ngram]


def _window_hashes(word_ids: NDArray[np.int64], size: int) -> NDArray[np.uint64]:
    """A hash of each window of `size` numbers, (N - size + 1,)."""
    numbers = word_ids.astype(np.uint64)
    hashes = np.zeros(max(len(word_ids) - size + 1, 0), np.uint64)
    for offset in range(size):
        hashes = hashes * _HASH_MULTIPLIER + numbers[offset : offset + len(hashes)]
    return hashes


MAX_OVERLAPS_SHOWN = 10
SCAN_BATCH_ROWS = 512

ItemKey = tuple[str, int]
"""An item: its suite and its number there."""


@dataclass(frozen=True)
class Overlap:
    """A held-out text and the training row that shares most of it.

    item, row: their places. source: of the row. side: `prompt` or `response` of the item, or `text`: all of it.
    covered: share of the text's words that stand in stretches shared with any row, in [0, 1]. text: the longest stretch
    shared with this row.
    """

    item: str
    row: str
    source: str
    side: str
    covered: float
    text: str


@dataclass(frozen=True)
class Contamination:
    """What training gives away of one suite. The numbers count items, each once.

    kind: `prompt`, or `text` for a suite of plain texts: such an item has no response, and what is said here of prompts
    is true of the whole text, which is given away in the same words where a text or a response is that is trained.
    same_prompts: whose prompt is asked in training in the same words, case and punctuation aside, be it in the middle
    of a conversation or as a plain text. same_responses: whose response is given there in the same words, which by
    itself says little: many just say yes.
    overlapping: that share a stretch with training. common: that share nothing with it but common phrases.
    prompts: whose prompt is given away: asked in the same words, or covered by stretches as far as that takes.
    responses: whose response is covered so.
    worst: the overlaps that cover most, one for each side of an item; prompts before responses.
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
    """What the training rows give away of each suite's items.

    suites: suite -> its rows, held in memory. training: source -> its rows, each read once, in order.
    ngram: words in a stretch; characters: the same for texts in scripts without spaces. A shorter prompt or response
    has no stretches; as a whole it is compared all the same. common: a stretch that more training rows than this hold
    is a common phrase. covered: the share of its words, in (0, 1], that gives a prompt or a response away.

    A system message that several items of a suite share says how to answer, not what is asked, and has no stretches.
    Memory grows with the evaluation side alone.
    """
    found = ContaminationIndex(suites, ngram, characters, common)
    total = sum(map(len, training.values()))
    for name, rows in training.items():
        for done in found.scan_rows(name, rows):
            progress("look for held-out rows", done, total, name, "rows")
    return {name: found.report_for_suite(name, rows, covered) for name, rows in suites.items()}


@dataclass(frozen=True)
class _ItemText:
    """One side of one item, see `Overlap`. size: words in a stretch of it."""

    key: ItemKey
    side: str
    text: str
    words: tuple[str, ...]
    ngram: int


class ContaminationIndex:
    """The items of all suites, indexed, and what was found of them so far."""

    def __init__(self, suites: Mapping[str, Sequence[Example]], ngram: int, characters: int, common: int) -> None:
        self._common = common
        self._texts = [one for name, rows in suites.items() for one in _iter_item_texts(name, rows, ngram, characters)]
        self._index = SharedNgramIndex([(one.words, one.ngram) for one in self._texts], max_rows=common + 1)
        self._prompts = _items_by_words(suites, lambda row: () if is_plain_text(row) else prompt_messages(row))
        self._responses = _items_by_words(suites, lambda row: () if is_plain_text(row) else (response_message(row),))
        self._plain_texts = _items_by_words(suites, lambda row: row.messages if is_plain_text(row) else ())
        self._prompt_lengths = sorted({len(whole) for whole in self._prompts})
        self._prompt_matches: dict[ItemKey, int] = {}
        self._response_matches: set[ItemKey] = set()
        self._row_locations: dict[int, tuple[str, str]] = {}
        self._rows_read = 0

    def scan_rows(self, source: str, rows: Iterable[Example]) -> Iterator[int]:
        """Look for the items in rows of a source. Yields the rows read so far, in all sources, batch by batch."""
        left = iter(rows)
        while batch := list(islice(left, SCAN_BATCH_ROWS)):
            said: list[list[str | None]] = []
            kept: set[int] = set()
            for number, row in enumerate(batch, self._rows_read):
                before, after = (
                    split_words(conversation_text(prompt_messages(row))),
                    split_words(conversation_text((response_message(row),))),
                )
                for key in self._matching_items(row, before, after):
                    if key not in self._prompt_matches:
                        self._prompt_matches[key] = number
                        kept.add(number)
                self._response_matches.update(self._responses.get(tuple(after), ()))
                said.append([*before, None, *after])
            for number in kept | self._index.scan_rows(said, self._rows_read):
                self._row_locations[number] = (batch[number - self._rows_read].location, source)
            self._rows_read += len(batch)
            yield self._rows_read

    def _matching_items(
        self, row: Example, prompt_words: Sequence[str], response_words: Sequence[str]
    ) -> Iterator[ItemKey]:
        """The items that a row asks or says in the same words. before, after: those of its prompt and its response."""
        asked = (
            (tuple(response_words),)
            if is_plain_text(row)
            else (tuple(prompt_words), *self._matching_earlier_prompts(row, prompt_words))
        )
        for whole in asked:
            yield from self._prompts.get(whole, ())
        if self._plain_texts:
            trained = (one for one in row.messages[:-1] if one.role == "assistant" and one.train)
            for whole in (tuple(response_words), *(tuple(split_words(conversation_text((one,)))) for one in trained)):
                yield from self._plain_texts.get(whole, ())

    def _matching_earlier_prompts(self, row: Example, prompt_words: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """The words of the items' prompts that are those of the row's earlier trained responses. before: of its own."""
        if len(row.messages) < 4:
            return
        begins = {begin for size in self._prompt_lengths if (begin := tuple(prompt_words[:size])) in self._prompts}
        if begins:  # so that few rows are taken apart turn by turn
            yield from (
                begin
                for begin in (tuple(split_words(conversation_text(one))) for one in earlier_trained_prompts(row))
                if begin in begins
            )

    def report_for_suite(self, suite: str, rows: Sequence[Example], covered: float) -> Contamination:
        """What was found of one suite."""
        worst: dict[str, dict[ItemKey, Overlap]] = {"prompt": {}, "text": {}, "response": {}}
        overlapping, common = set(), set()
        for number, text in enumerate(self._texts):
            if text.key[0] != suite:
                continue
            place = rows[text.key[1]].location
            overlap, only_common = self._find_overlap(number, text, place)
            if overlap is not None:
                overlapping.add(text.key)
            elif only_common:
                common.add(text.key)
            if text.side != "response" and text.key in self._prompt_matches:
                overlap = Overlap(
                    place, *self._row_locations[self._prompt_matches[text.key]], text.side, 1.0, text.text
                )
            if overlap is not None:
                worst[text.side][text.key] = overlap
        given_away = {side: sum(one.covered >= covered for one in found.values()) for side, found in worst.items()}
        ordered = [one for found in worst.values() for one in sorted(found.values(), key=lambda one: -one.covered)]
        return Contamination(
            items=len(rows),
            same_prompts=sum(key[0] == suite for key in self._prompt_matches),
            same_responses=sum(key[0] == suite for key in self._response_matches),
            overlapping=len(overlapping),
            common=len(common - overlapping),
            prompts=given_away["prompt"] + given_away["text"],
            responses=given_away["response"],
            worst=tuple(ordered[:MAX_OVERLAPS_SHOWN]),
            kind="text" if any(map(is_plain_text, rows)) else "prompt",
        )

    def _find_overlap(self, text_index: int, text: _ItemText, location: str) -> tuple[Overlap | None, bool]:
        """How a text overlaps with training, and whether it does by common phrases alone."""
        stretches = self._index.ngrams_of_text(text_index)
        held = (
            np.where(stretches >= 0, self._index.row_counts[stretches], 0)
            if len(self._index.row_counts)
            else stretches * 0
        )
        at = np.flatnonzero((held > 0) & (held <= self._common))
        if not len(at):
            return None, bool((held > 0).any())
        mask = np.zeros(len(text.words), bool)
        for begin in at.tolist():
            mask[begin : begin + text.ngram] = True
        counts = Counter(row for begin in at.tolist() for row in self._index.rows_with_ngram(int(stretches[begin])))
        row = min(counts, key=lambda one: (-counts[one], one))
        own = [begin for begin in at.tolist() if row in self._index.rows_with_ngram(int(stretches[begin]))]
        begin, end = _longest_consecutive(own)
        shared = original_text_of_words(text.text, begin, end + text.ngram)
        return Overlap(location, *self._row_locations[row], text.side, float(mask.mean()), shared), False


def _iter_item_texts(suite: str, rows: Sequence[Example], ngram: int, characters: int) -> Iterator[_ItemText]:
    systems = Counter(message.content for row in rows for message in row.messages if message.role == "system")
    for item, row in enumerate(rows):
        own = [one for one in prompt_messages(row) if one.role != "system" or systems[one.content] == 1]
        asked = [] if is_plain_text(row) else [("prompt", conversation_text(own))]
        for side, said in (*asked, ("response" if asked else "text", conversation_text([response_message(row)]))):
            found = tuple(split_words(said))
            yield _ItemText((suite, item), side, said, found, characters if is_unspaced_script(found) else ngram)


def _items_by_words(
    suites: Mapping[str, Sequence[Example]], side: Callable[[Example], Iterable[Message]]
) -> dict[tuple[str, ...], list[ItemKey]]:
    found: dict[tuple[str, ...], list[ItemKey]] = {}
    for name, rows in suites.items():
        for item, row in enumerate(rows):
            whole = tuple(split_words(conversation_text(side(row))))
            if whole:
                found.setdefault(whole, []).append((name, item))
    return found


def _longest_consecutive(ascending: Sequence[int]) -> tuple[int, int]:
    """The first and the last of the longest run of consecutive numbers."""
    best = first = last = ascending[0]
    end = best
    for number in ascending[1:]:
        first = first if number == last + 1 else number
        last = number
        if last - first > end - best:
            best, end = first, last
    return best, end
