"""Which rows of a source are used, which are held out, and the proof that no suite's row is trained on.

Every choice is by the hash of a row's content and the plan's seed: it does not change with the order of the file,
and a row that is added moves no other row to the other side. All work is on arrays, a few bytes a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.data.reading.conversation_store import Indices
from harness.data.reading.corpus import Corpus, CorpusView, HashArray
from harness.errors import HarnessError, raise_all
from harness.seeding import derive_seed

MAX_PAIRS_NAMED = 3


@dataclass(frozen=True, eq=False)
class Split:
    """The rows of a corpus, told apart: ascending int64 indices, without duplicates and rows beyond the limit.

    read = duplicates + beyond_limit + len(training) + len(held_out).
    """

    training_indices: Indices
    held_out_indices: Indices
    rows_read: int
    duplicates: int
    beyond_limit: int


def split_corpus(corpus: Corpus, *, held_out: float, limit: int | None, seed: int, shuffle: bool = True) -> Split:
    """A corpus's rows, each content once, `limit` of them, with a share of their conversations held out.

    held_out: in [0, 1): a row is held out when the seeded hash of its opening (all that is said before the first
    response: of most rows the prompt) falls below it. So all rows with the same prompt stand on one side, whichever
    source they are in, and so do a conversation and another that goes on from it. The realised share differs by chance.
    limit: how many of the distinct rows are used; the choice is made before they are held out: by seeded hash, or with
    `shuffle` False the first ones. Of rows with the same content the first is used.
    """
    _, first = np.unique(corpus.content_hashes, return_index=True)
    distinct = np.sort(first).astype(np.int64)
    kept = distinct[limit_rows(corpus.content_hashes[distinct], limit, seed, "limit")] if shuffle else distinct[:limit]
    aside = held_out_mask(corpus.opening_hashes[kept], held_out, seed)
    return Split(
        training_indices=kept[~aside],
        held_out_indices=kept[aside],
        rows_read=len(corpus),
        duplicates=len(corpus) - len(distinct),
        beyond_limit=len(distinct) - len(kept),
    )


def held_out_mask(opening_hashes: HashArray, share: float, seed: int) -> NDArray[np.bool_]:
    """Whether the seeded hash of each opening falls below `share` of all hashes; (N,) bool."""
    return hash_keys_for_split(opening_hashes, seed, "held_out") < np.uint64(min(int(share * 2**64), 2**64 - 1))


def limit_rows(keys: HashArray, limit: int | None, seed: int, *purpose: str | int) -> Indices:
    """Positions of at most `limit` keys, ascending: those whose seeded hashes are lowest. None: all of them.

    keys: (N,) uint64, each once. A smaller limit's choice is part of a larger one's.
    """
    if limit is None or limit >= len(keys):
        return np.arange(len(keys), dtype=np.int64)
    return np.sort(np.argpartition(hash_keys_for_split(keys, seed, *purpose), limit)[:limit]).astype(np.int64)


def hash_keys_for_split(keys: HashArray, seed: int, *purpose: str | int) -> HashArray:
    """A hash of each key by seed and purpose, (N,) uint64: one to one, so that different keys never tie.

    The finaliser of SplitMix64 (Steele, Lea, Flood 2014, doi:10.1145/2660193.2660195) over the key moved by the
    purpose's own seed; uint64 arithmetic wraps around.
    """
    move = np.uint64(derive_seed(seed, *purpose) * 0x9E3779B97F4A7C15 % 2**64)
    z = keys + move
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def shuffled_ids(ids: Sequence[str], seed: int, *purpose: str | int) -> list[str]:
    """The ids in an order that is random by seed and purpose, and does not depend on the order given."""
    return sorted(ids, key=lambda identity: (derive_seed(seed, *purpose, identity), identity))


def check_disjoint(trained: Mapping[str, CorpusView], suites: Mapping[str, CorpusView]) -> None:
    """Prove that no prompt of a suite is trained on, be it in the middle of a conversation.

    trained: source -> rows that may be trained on. suites: suite -> rows that it may evaluate.
    Raises HarnessError that names up to three pairs of rows for each suite and source that share a prompt.
    """
    raise_all(error for name, rows in suites.items() for error in _shared_prompt_errors(name, rows, trained))


def _shared_prompt_errors(suite: str, rows: CorpusView, trained: Mapping[str, CorpusView]) -> Iterator[HarnessError]:
    for source, others in trained.items():
        prompts, owners = others.trained_prompt_hashes()
        both = np.flatnonzero(np.isin(rows.prompt_hashes, prompts))
        if len(both):
            pairs = [
                (at, int(owners[np.argmax(prompts == rows.prompt_hashes[at])]))
                for at in both[:MAX_PAIRS_NAMED].tolist()
            ]
            named = ", ".join(f"{rows.location_of(at)} = {others.location_of(other)}" for at, other in pairs)
            more = f" and {len(both) - MAX_PAIRS_NAMED} more" if len(both) > MAX_PAIRS_NAMED else ""
            what = f"{len(both)} of its rows ask what the training source {source!r} also asks: {named}{more}"
            hint = "take them out of one side, or hold rows out with the source's option 'held_out'"
            yield HarnessError(f"evaluate.{suite}", what, hint)
