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
from harness.data.reading.corpus import Corpus, Hashes, View
from harness.errors import HarnessError, raise_all
from harness.seeding import derive

SHOWN = 3


@dataclass(frozen=True, eq=False)
class Split:
    """The rows of a corpus, told apart: ascending int64 indices, without duplicates and rows beyond the limit.

    read = duplicates + beyond_limit + len(training) + len(held_out).
    """

    training: Indices
    held_out: Indices
    read: int
    duplicates: int
    beyond_limit: int


def split(corpus: Corpus, *, held_out: float, limit: int | None, seed: int, shuffle: bool = True) -> Split:
    """A corpus's rows, each content once, `limit` of them, with a share of their conversations held out.

    held_out: in [0, 1): a row is held out when the seeded hash of its opening (all that is said before the first
    response: of most rows the prompt) falls below it. So all rows with the same prompt stand on one side, whichever
    source they are in, and so do a conversation and another that goes on from it. The realised share differs by chance.
    limit: how many of the distinct rows are used; the choice is made before they are held out: by seeded hash, or with
    `shuffle` False the first ones. Of rows with the same content the first is used.
    """
    _, first = np.unique(corpus.keys, return_index=True)
    distinct = np.sort(first).astype(np.int64)
    kept = distinct[chosen(corpus.keys[distinct], limit, seed, "limit")] if shuffle else distinct[:limit]
    aside = is_held_out(corpus.openings[kept], held_out, seed)
    return Split(
        training=kept[~aside],
        held_out=kept[aside],
        read=len(corpus),
        duplicates=len(corpus) - len(distinct),
        beyond_limit=len(distinct) - len(kept),
    )


def is_held_out(openings: Hashes, share: float, seed: int) -> NDArray[np.bool_]:
    """Whether the seeded hash of each opening falls below `share` of all hashes; (N,) bool."""
    return scattered(openings, seed, "held_out") < np.uint64(min(int(share * 2**64), 2**64 - 1))


def chosen(keys: Hashes, limit: int | None, seed: int, *purpose: str | int) -> Indices:
    """Positions of at most `limit` keys, ascending: those whose seeded hashes are lowest. None: all of them.

    keys: (N,) uint64, each once. A smaller limit's choice is part of a larger one's.
    """
    if limit is None or limit >= len(keys):
        return np.arange(len(keys), dtype=np.int64)
    return np.sort(np.argpartition(scattered(keys, seed, *purpose), limit)[:limit]).astype(np.int64)


def scattered(keys: Hashes, seed: int, *purpose: str | int) -> Hashes:
    """A hash of each key by seed and purpose, (N,) uint64: one to one, so that different keys never tie.

    The finaliser of SplitMix64 (Steele, Lea, Flood 2014, doi:10.1145/2660193.2660195) over the key moved by the
    purpose's own seed; uint64 arithmetic wraps around.
    """
    move = np.uint64(derive(seed, *purpose) * 0x9E3779B97F4A7C15 % 2**64)
    z = keys + move
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def ranked(ids: Sequence[str], seed: int, *purpose: str | int) -> list[str]:
    """The ids in an order that is random by seed and purpose, and does not depend on the order given."""
    return sorted(ids, key=lambda identity: (derive(seed, *purpose, identity), identity))


def check_disjoint(trained: Mapping[str, View], suites: Mapping[str, View]) -> None:
    """Prove that no prompt of a suite is trained on, be it in the middle of a conversation.

    trained: source -> rows that may be trained on. suites: suite -> rows that it may evaluate.
    Raises HarnessError that names up to three pairs of rows for each suite and source that share a prompt.
    """
    raise_all(error for name, rows in suites.items() for error in _shared(name, rows, trained))


def _shared(suite: str, rows: View, trained: Mapping[str, View]) -> Iterator[HarnessError]:
    for source, others in trained.items():
        prompts, owners = others.trained_prompts()
        both = np.flatnonzero(np.isin(rows.prompts, prompts))
        if len(both):
            pairs = [(at, int(owners[np.argmax(prompts == rows.prompts[at])])) for at in both[:SHOWN].tolist()]
            named = ", ".join(f"{rows.place(at)} = {others.place(other)}" for at, other in pairs)
            more = f" and {len(both) - SHOWN} more" if len(both) > SHOWN else ""
            what = f"{len(both)} of its rows ask what the training source {source!r} also asks: {named}{more}"
            hint = "take them out of one side, or hold rows out with the source's option 'held_out'"
            yield HarnessError(f"evaluate.{suite}", what, hint)
