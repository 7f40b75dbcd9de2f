"""Split a source into training and held-out rows, and verify that no suite's prompt is trained on.

Every choice depends on the hash of a row's content and the seed of the plan. It does not depend on the order of the
file, and an added row moves no other row to the other side. All work is done on arrays, a few bytes a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.data.reading.conversation_store import Indices
from harness.data.reading.corpus import Corpus, CorpusView, HashArray
from harness.data.row_hashing import GOLDEN_GAMMA, mix_bits
from harness.errors import HarnessError, raise_all
from harness.seeding import derive_seed

MAX_PAIRS_NAMED = 3


@dataclass(frozen=True, eq=False)
class Split:
    """The training and held-out rows of a corpus, without duplicates and rows beyond the limit.

    `rows_read == duplicates + beyond_limit + len(training_indices) + len(held_out_indices)`.

    Attributes:
        training_indices: Rows for training, ascending.
        held_out_indices: Rows for evaluation, ascending.
        rows_read: Rows of the corpus.
        duplicates: Rows dropped because an earlier row has the same content.
        beyond_limit: Distinct rows that `limit` did not choose.
    """

    training_indices: Indices
    held_out_indices: Indices
    rows_read: int
    duplicates: int
    beyond_limit: int


def split_corpus(corpus: Corpus, *, held_out: float, limit: int | None, seed: int, shuffle: bool = True) -> Split:
    """Deduplicate a corpus, limit it, and hold out a share of its conversations.

    A row is held out when the seeded hash of its opening (everything before the first response; for most rows the
    prompt) is below `held_out`. Rows with the same prompt are therefore on one side, whichever source they are in. So
    are a conversation and a longer one that starts with it.

    Args:
        corpus: The rows of a source; of rows with the same content the first is used.
        held_out: Share to hold out, in [0, 1). The realized share differs by chance.
        limit: Number of distinct rows to use, chosen before rows are held out; None uses all.
        seed: The seed of the plan.
        shuffle: Whether the limit chooses rows by their seeded hash; False chooses the first ones.
    """
    _, first_rows = np.unique(corpus.content_hashes, return_index=True)
    distinct = np.sort(first_rows).astype(np.int64)
    if shuffle:
        selected = distinct[limit_rows(corpus.content_hashes[distinct], limit, seed, "limit")]
    else:
        selected = distinct[:limit]
    is_held_out = held_out_mask(corpus.opening_hashes[selected], held_out, seed)
    return Split(
        training_indices=selected[~is_held_out],
        held_out_indices=selected[is_held_out],
        rows_read=len(corpus),
        duplicates=len(corpus) - len(distinct),
        beyond_limit=len(distinct) - len(selected),
    )


def held_out_mask(opening_hashes: HashArray, share: float, seed: int) -> NDArray[np.bool_]:
    """Return whether the seeded hash of each opening is in the lowest `share` of all hashes, `(N,)`."""
    return hash_keys_for_split(opening_hashes, seed, "held_out") < np.uint64(min(int(share * 2**64), 2**64 - 1))


def limit_rows(keys: HashArray, limit: int | None, seed: int, *purpose: str | int) -> Indices:
    """Return the positions of the `limit` keys with the lowest seeded hashes, ascending.

    Args:
        keys: `(N,)` distinct hashes.
        limit: Number of keys to choose; None chooses all. A smaller limit chooses a subset of a larger one's keys.
        seed: The seed of the plan.
        purpose: What the choice is for; each purpose has an independent choice.
    """
    if limit is None or limit >= len(keys):
        return np.arange(len(keys), dtype=np.int64)
    return np.sort(np.argpartition(hash_keys_for_split(keys, seed, *purpose), limit)[:limit]).astype(np.int64)


def hash_keys_for_split(keys: HashArray, seed: int, *purpose: str | int) -> HashArray:
    """Return a hash of each key by seed and purpose, `(N,)`; different keys have different hashes.

    The key is shifted by a multiple of the golden gamma, unlike in `row_hashing.hash_keys`. Do not unify the two: a
    seed must hold out the same rows in every version.
    """
    shift = np.uint64(derive_seed(seed, *purpose) * GOLDEN_GAMMA % 2**64)
    return mix_bits(keys + shift)


def check_disjoint(trained: Mapping[str, CorpusView], suites: Mapping[str, CorpusView]) -> None:
    """Verify that no prompt of a suite is trained on, even in the middle of a conversation.

    Args:
        trained: Source -> rows that may be trained on.
        suites: Suite -> rows that it may evaluate.

    Raises:
        HarnessError: A suite and a source share a prompt; each error names up to three pairs of rows.
    """
    raise_all(error for name, rows in suites.items() for error in _shared_prompt_errors(name, rows, trained))


def _shared_prompt_errors(suite: str, rows: CorpusView, trained: Mapping[str, CorpusView]) -> Iterator[HarnessError]:
    for source, training_rows in trained.items():
        prompts, prompt_rows = training_rows.trained_prompt_hashes()
        shared = np.flatnonzero(np.isin(rows.prompt_hashes, prompts))
        if len(shared):
            pairs = [
                (row, int(prompt_rows[np.argmax(prompts == rows.prompt_hashes[row])]))
                for row in shared[:MAX_PAIRS_NAMED].tolist()
            ]
            named = ", ".join(
                f"{rows.location_of(row)} = {training_rows.location_of(training_row)}" for row, training_row in pairs
            )
            more = f" and {len(shared) - MAX_PAIRS_NAMED} more" if len(shared) > MAX_PAIRS_NAMED else ""
            what = (
                f"{len(shared)} of its rows have a prompt that the training source {source!r} also has: {named}{more}"
            )
            hint = f"remove these rows from one side, or set sources.{source}.held_out and evaluate on {source!r}"
            yield HarnessError(f"evaluate.{suite}", what, hint)
