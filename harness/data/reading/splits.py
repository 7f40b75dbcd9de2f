"""Split a source into training and held-out rows, and verify that no suite's prompt is trained on.

Every choice depends on the hash of a row's content and the seed of the plan. It does not depend on the order of the
file, and an added row moves no other row to the other side. All work is done on arrays, a few bytes a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.reading.conversation_store import Indices
from harness.data.reading.corpus import Corpus, CorpusView, HashArray
from harness.data.reading.held_out_rule import HeldOutRule
from harness.data.row_hashing import GOLDEN_GAMMA, mix_bits
from harness.errors import HarnessError, raise_all
from harness.seeding import derive_seed

MAX_PAIRS_NAMED = 3


@dataclass(frozen=True, eq=False)
class Split:
    """The training and held-out rows of a corpus, without duplicates and rows beyond the limit.

    `rows_read == duplicates + beyond_limit + contaminating + len(training_indices) + len(held_out_indices)`.

    Attributes:
        training_indices: Rows for training, ascending.
        held_out_indices: Rows for evaluation, ascending.
        rows_read: Rows of the corpus.
        duplicates: Rows dropped because an earlier row has the same content, or one of another source.
        beyond_limit: Distinct rows that `limit` did not choose.
        contaminating: Rows dropped from training because they share text with an evaluated row.
        groups: `(N,)` the group of each row of the corpus, -1 for rows that are not used; None if rows are not held out
            in groups.
    """

    training_indices: Indices
    held_out_indices: Indices
    rows_read: int
    duplicates: int
    beyond_limit: int
    contaminating: int = 0
    groups: Indices | None = None

    @property
    def training_groups(self) -> int | None:
        """Number of groups of the training rows; None if rows are not held out in groups."""
        return None if self.groups is None else len(np.unique(self.groups[self.training_indices]))

    @property
    def held_out_groups(self) -> int | None:
        """Number of groups of the held-out rows; None if rows are not held out in groups."""
        return None if self.groups is None else len(np.unique(self.groups[self.held_out_indices]))

    @property
    def smallest_group(self) -> int | None:
        """Rows of the smallest group; None if rows are not held out in groups."""
        return (
            None if self.groups is None else int(np.unique(self.groups[self.groups >= 0], return_counts=True)[1].min())
        )


def split_corpus(
    corpus: Corpus,
    *,
    held_out: float | HeldOutRule,
    limit: int | None,
    seed: int,
    shuffle: bool = True,
    cluster_rows: Callable[[CorpusView], Indices] | None = None,
) -> Split:
    """Deduplicate a corpus, limit it, and hold out a share of its conversations.

    A row is held out when the seeded hash of its opening (everything before the first response; for most rows the
    prompt) is below the share. Rows with the same prompt are therefore on one side, whichever source they are in. So
    are a conversation and a longer one that starts with it. With groups or near duplicates, see `choose_groups`. By
    time, the value of a row's column decides alone.

    Args:
        corpus: The rows of a source; of rows with the same content the first is used.
        held_out: Share to hold out, in [0, 1), which is met by chance, or a rule.
        limit: Number of distinct rows to use, chosen before rows are held out; None uses all.
        seed: The seed of the plan.
        shuffle: Whether the limit chooses rows by their seeded hash; False chooses the first ones.
        cluster_rows: Returns the number of the cluster of near duplicates of each row, `(M,)`; needed if the rule asks
            for it.
    """
    rule = held_out if isinstance(held_out, HeldOutRule) else HeldOutRule(share=held_out)
    _, first_rows, contents = np.unique(corpus.content_hashes, return_index=True, return_inverse=True)
    distinct = np.sort(first_rows).astype(np.int64)
    if shuffle:
        selected = distinct[limit_rows(corpus.content_hashes[distinct], limit, seed, "limit")]
    else:
        selected = distinct[:limit]
    openings, groups = corpus.opening_hashes, None
    if rule.start is not None:
        assert corpus.split_keys is not None
        # Of equal rows the earliest decides, independent of the order of rows.
        is_held_out = lowest_by_code(contents, corpus.split_keys)[selected] == 1
    elif rule.group is not None or rule.near_duplicates:
        # Equal rows of different groups connect them, so that it does not matter which of the rows is used.
        names = [openings] if corpus.split_keys is None else [openings, corpus.split_keys]
        groups = connected_rows(names)
        keys = lowest_by_code(groups, names[-1])[selected]
        groups = groups[selected]
        if rule.near_duplicates:
            assert cluster_rows is not None
            groups = connected_rows([groups, cluster_rows(corpus.select(selected))])
        is_held_out = choose_groups(groups, keys, rule.share, seed)
    else:
        is_held_out = held_out_mask(openings[selected], rule.share, seed)
    return Split(
        training_indices=selected[~is_held_out],
        held_out_indices=selected[is_held_out],
        rows_read=len(corpus),
        duplicates=len(corpus) - len(distinct),
        beyond_limit=len(distinct) - len(selected),
        groups=None if groups is None else _place(groups, selected, len(corpus)),
    )


def _place(values: Indices, rows: Indices, count: int) -> Indices:
    """Return an array of this length with the values at the rows, and -1 elsewhere."""
    placed = np.full(count, -1, np.int64)
    placed[rows] = values
    return placed


def lowest_by_code(codes: NDArray[np.int64], values: HashArray) -> HashArray:
    """Return for each row the lowest value of all rows with its code, `(N,)`. codes: `(N,)`, below N."""
    lowest = np.full(len(codes), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(lowest, codes, values)
    return lowest[codes]


def connected_rows(names: Sequence[NDArray[Any]]) -> Indices:
    """Return the connected group of each row, `(N,)`: rows that have one of their names in common are in one group.

    Args:
        names: Arrays `(N,)`, such as the hash of each row's prompt, and that of its customer.

    Returns:
        The lowest row of each row's group.
    """
    codes = [np.unique(values, return_inverse=True)[1] for values in names]
    groups = np.arange(len(codes[0]), dtype=np.int64)
    while True:
        before = groups
        for code in codes:
            groups = lowest_by_code(code, groups.astype(np.uint64)).astype(np.int64)
        # The row that names a group follows its members, and they follow it, so that a long chain takes few rounds.
        np.minimum.at(groups, before, groups)
        groups = groups[groups]
        if np.array_equal(groups, before):
            return groups


def choose_groups(groups: Indices, keys: HashArray, share: float, seed: int) -> NDArray[np.bool_]:
    """Hold out whole groups, so that the held-out rows are as near to the share as one pass can make them.

    The groups are in the order of their seeded hashes. Each group that still fits is held out. If rows are still
    missing, the smallest other group is added where the result is nearer to the share.

    Args:
        groups: `(N,)` group of each row.
        keys: `(N,)` hashes of each row; the lowest of a group decides its place, independent of the order of rows.
        share: Share of the rows to hold out, in [0, 1).
        seed: The seed of the plan.
    """
    _, first_rows, inverse, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    lowest = lowest_by_code(inverse, keys)[first_rows]
    order = np.argsort(hash_keys_for_split(lowest, seed, "held_out"))
    missing = round(share * len(groups))
    is_chosen = np.zeros(len(sizes), bool)
    for group in order.tolist():
        if sizes[group] <= missing:
            is_chosen[group] = True
            missing -= int(sizes[group])
    others = order[~is_chosen[order]]
    if missing and len(others):
        smallest = others[np.argmin(sizes[others])]
        is_chosen[smallest] = sizes[smallest] < 2 * missing
    return is_chosen[inverse]


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
            hint = f"remove these rows from one side, set sources.{source}.held_out and evaluate on {source!r}, or set "
            hint += 'checks.contamination.drop to "training"'
            yield HarnessError(f"evaluate.{suite}", what, hint)
