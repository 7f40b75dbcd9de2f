"""Rows are held out by group, by near duplicates, or by time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.corpora import corpus_in_memory

from harness.data.checks import near_duplicate_clusters
from harness.data.checks.findings import TextSequence
from harness.data.checks.minhash import MinHashIndex
from harness.data.checks.near_duplicate_clusters import MAX_NEIGHBORS, cluster_near_duplicates
from harness.data.checks.near_duplicates import jaccard_similarity
from harness.data.reading import splits
from harness.data.reading.conversation import build_example
from harness.data.reading.corpus import read_corpus
from harness.data.reading.held_out_rule import HeldOutRule
from harness.data.reading.splits import choose_groups, connected_rows, lowest_by_code, split_corpus
from harness.errors import HarnessError
from harness.interfaces.source import Source
from harness.spec_keys import data as data_keys
from harness.types import Message, Record

DEFAULTS = {key: option["default"] for key, option in data_keys.SOURCE_KEYS.items()}
OBJECT_DEFAULTS = {key: option["default"] for key, option in data_keys.HELD_OUT_KEYS.items()}


class Rows(Source):
    def __init__(self, rows):
        self.rows = rows

    def records(self):
        return (Record(f"rows:{number}", row) for number, row in enumerate(self.rows, 1))


def read_rows(rows, **held_out):
    options = {**DEFAULTS, "held_out": {**OBJECT_DEFAULTS, **held_out}}
    return read_corpus(Rows(rows), options, "rows", folder=None), HeldOutRule.from_option(options["held_out"])


def split_rows(rows, seed=0, **held_out):
    """Return the corpus, and the numbers of the rows on both sides."""
    corpus, rule = read_rows(rows, **held_out)
    return corpus, split_corpus(corpus, held_out=rule, limit=None, seed=seed)


def row(number, **columns):
    return {"prompt": f"question {number}", "completion": f"answer {number}", **columns}


def ticket_rows(groups, size):
    return [row(f"{group} {index}", meta={"customer": f"c{group}"}) for index in range(size) for group in range(groups)]


def customers(corpus, indices):
    return {corpus.examples[index].messages[0].content.split()[1] for index in indices.tolist()}


def test_whole_groups_are_held_out_and_the_share_is_met_exactly_where_groups_allow_it():
    for seed in range(5):
        corpus, split = split_rows(ticket_rows(40, 5), seed, share=0.25, group="meta.customer")
        sides = customers(corpus, split.held_out_indices), customers(corpus, split.training_indices)
        assert not sides[0] & sides[1]
        assert (len(split.held_out_indices), split.held_out_groups, split.training_groups) == (50, 10, 30)
        assert split.smallest_group == 5


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=2, max_size=25), st.floats(0.02, 0.9), st.integers(0, 99))
def test_held_out_rows_are_as_near_to_the_share_as_one_more_group(sizes, share, seed):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    is_held_out = choose_groups(groups, groups.astype(np.uint64), share, seed)
    wanted = round(share * len(groups))
    per_group = [is_held_out[groups == group] for group in range(len(sizes))]
    assert all(mask.all() or not mask.any() for mask in per_group)
    left = [size for size, mask in zip(sizes, per_group, strict=True) if not mask.any()]
    missing = wanted - int(is_held_out.sum())
    # no group that is left would bring the number of rows nearer
    assert all(abs(missing - size) >= abs(missing) for size in left)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 30)), min_size=2, max_size=60, unique=True), st.randoms())
def test_groups_are_split_independently_of_the_order_of_rows(pairs, random):
    rows = [row(number, customer=group) for group, number in pairs]
    sides = []
    for shuffled in (rows, random.sample(rows, len(rows))):
        corpus, split = split_rows(shuffled, 3, share=0.3, group="customer")
        sides.append(set(corpus.content_hashes[split.held_out_indices].tolist()))
    assert sides[0] == sides[1]


def test_a_row_that_two_dates_have_is_trained_in_any_order():
    rows = [row(1, at="2026-03-01"), row(2, at="2026-03-01"), row(2, at="2025-03-01")]
    for ordered in (rows, rows[::-1]):
        corpus, split = split_rows(ordered, column="at", **{"from": "2026-01-01"})
        assert [corpus.examples[index].messages[0].content for index in split.held_out_indices] == ["question 1"]


def test_a_seed_holds_out_the_same_groups_and_another_seed_others():
    rows = ticket_rows(40, 3)
    held_out = [
        split_rows(rows, seed, share=0.2, group="meta.customer")[1].held_out_indices.tolist() for seed in (0, 0, 1)
    ]
    assert held_out[0] == held_out[1] != held_out[2]


def test_a_number_is_one_group_however_it_is_written_and_nan_is_none():
    rows = [row(number, customer=[number, float(number), str(number)][number % 3]) for number in range(9)]
    others = [row(f"other {number}", customer=number) for number in range(9)]
    corpus, _ = read_rows([*rows, *others], share=0.3, group="customer")
    assert corpus.split_keys[:9].tolist() == corpus.split_keys[9:].tolist()
    with pytest.raises(HarnessError, match="rows:2: has no 'customer'"):
        read_rows([row(1, customer=1), row(2, customer=float("nan"))], share=0.3, group="customer")


def test_groups_that_share_a_prompt_are_on_one_side():
    rows = [
        {"prompt": f"question {group}", "completion": f"{index}", "customer": index}
        for group in range(20)
        for index in (2 * group, 2 * group + 1)
    ]
    corpus, split = split_rows(rows, share=0.3, group="customer")
    assert split.held_out_groups + split.training_groups == 20
    assert not customers(corpus, split.held_out_indices) & customers(corpus, split.training_indices)


def test_rows_are_connected_by_chains_of_names():
    names = [np.array([0, 0, 1, 2, 3, 4], np.uint64), np.array([9, 8, 8, 7, 7, 6], np.uint64)]
    assert connected_rows(names).tolist() == [0, 0, 0, 3, 3, 5]
    chain = np.arange(400, dtype=np.uint64)
    assert connected_rows([chain // 2, (chain + 1) // 2])[[0, 200, 399]].tolist() == [0, 0, 0]


def test_a_chain_whose_first_row_is_its_last_link_takes_few_rounds(monkeypatch):
    links = np.roll(np.arange(2000), 1)  # row 0 is at the far end of the chain 1, 2, 3, …
    rounds = []

    def counted(*arguments):
        rounds.append(1)
        return lowest_by_code(*arguments)

    monkeypatch.setattr(splits, "lowest_by_code", counted)
    assert not connected_rows([links // 2, (links + 1) // 2]).any()
    assert len(rounds) < 60


def test_rows_on_or_after_a_date_are_held_out_by_the_moment_and_not_by_its_text():
    dates = ["2025-12-31", "2025-12-31T23:59:59Z", "2026-01-01", "2026-01-01T00:30:00+01:00", "2026-02-01T08:00:00"]
    rows = [row(number, at=date) for number, date in enumerate(dates)]
    for seed in (0, 1):
        _, split = split_rows(rows, seed, column="at", **{"from": "2026-01-01"})
        # half past midnight in Paris is still the old year in UTC
        assert split.held_out_indices.tolist() == [2, 4]
        assert split.held_out_groups is None


@pytest.mark.parametrize("values", [["9", "10", "11.5"], [9, 10, 11.5]])
def test_numbers_are_compared_as_numbers_also_if_they_are_text(values):
    rows = [row(number, version=value) for number, value in enumerate(values)]
    assert split_rows(rows, column="version", **{"from": 10})[1].held_out_indices.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("rows", "held_out", "message"),
    [
        (
            [row(1, client="a")],
            {"share": 0.1, "group": "customer"},
            "sources.rows.held_out: group names 'customer', which no row has; "
            "name a column of the rows: prompt, completion, client",
        ),
        (
            [row(1, created="2026-01-01")],
            {"column": "date", "from": "2026-01-01"},
            "sources.rows.held_out: column names 'date', which no row has",
        ),
        (
            [row(1, date="2026-01-01"), row(2, date="soon")],
            {"column": "date", "from": "2026-01-01"},
            "rows:2 has 'soon' in 'date', which held_out compares with '2026-01-01'; "
            "write a date such as 2026-01-31 there",
        ),
        (
            [row(1, date=3), row(2, date="nan")],
            {"column": "date", "from": 2},
            "rows:2 has 'nan' in 'date', which held_out compares with 2; write a number there",
        ),
        (
            [row(1, customer="a"), row(2, customer=" ")],
            {"share": 0.1, "group": "customer"},
            "rows:2 has no 'customer', a column by which held_out groups the rows",
        ),
    ],
)
def test_a_missing_column_or_value_is_one_clear_line(rows, held_out, message):
    with pytest.raises(HarnessError) as error:
        read_rows(rows, **held_out)
    assert message in str(error.value).replace(": has ", " has ")


TEXTS = [
    "The delivery of your order number seven is delayed by the storm until the end of the coming week.",
    "A refund takes between three and five working days, counted from the day on which we receive it.",
    "Please restart the router, wait for two minutes, and look at the second lamp from the left side.",
]


def near_duplicate_corpus(copies=4):
    messages = [
        [Message("user", f"{text} Ticket {number}."), Message("assistant", f"Case {number} of {place}.")]
        for number in range(copies)
        for place, text in enumerate(TEXTS)
    ]
    return corpus_in_memory([build_example(turns, f"rows:{index}") for index, turns in enumerate(messages)], "rows")


def test_near_duplicates_are_one_cluster_in_any_order():
    corpus = near_duplicate_corpus()
    texts = [text for _, text in TextSequence({"rows": corpus})]
    for order in (np.arange(12), np.random.default_rng(0).permutation(12)):
        clusters = cluster_near_duplicates([("", texts[index]) for index in order])
        by_text = [set(clusters[order % 3 == place].tolist()) for place in range(3)]
        assert [len(numbers) for numbers in by_text] == [1, 1, 1]
        assert len(set.union(*by_text)) == 3
    assert len(set(cluster_near_duplicates([("", ""), ("", "  "), ("", "one text")]).tolist())) == 3


def test_a_chain_of_near_duplicates_is_one_cluster():
    words = [f"word{number:03d}" for number in range(70)]
    # each text shares all but 4 of 60 words with the next: the ends of the chain are further apart than the threshold
    texts = [("", " ".join(words[start : start + 60])) for start in (0, 4, 8)]
    assert len(set(cluster_near_duplicates(texts, threshold=0.85).tolist())) == 1
    assert len(set(cluster_near_duplicates([texts[0], texts[2]], threshold=0.85).tolist())) == 2


def test_rows_that_are_all_alike_are_compared_with_few_others(monkeypatch):
    random = np.random.default_rng(0)
    words = [f"word{number:03d}" for number in range(100)]
    texts = [("", " ".join([*words[:80], *random.choice(words, 6)])) for _ in range(300)]
    compared = []

    def find_candidates(index, signature):
        candidates = original(index, signature)
        compared.append(len(candidates))
        return candidates

    original = MinHashIndex.find_candidates
    monkeypatch.setattr(MinHashIndex, "find_candidates", find_candidates)
    assert len(set(cluster_near_duplicates(texts).tolist())) == 1
    assert max(compared) <= 2 * MAX_NEIGHBORS


def test_few_of_many_similar_rows_that_are_no_near_duplicates_are_compared(monkeypatch):
    random = np.random.default_rng(0)
    words = [f"word{number:03d}" for number in range(1000)]
    texts = [("", " ".join([*words[:80], *random.choice(words, 12)])) for _ in range(200)]
    comparisons = []

    def compare(left, right):
        comparisons.append(1)
        return jaccard_similarity(left, right)

    def count_comparisons(limit):
        comparisons.clear()
        monkeypatch.setattr(near_duplicate_clusters, "MAX_UNLIKE_CANDIDATES", limit)
        cluster_near_duplicates(texts, threshold=0.84)
        return len(comparisons)

    monkeypatch.setattr(near_duplicate_clusters, "jaccard_similarity", compare)
    assert count_comparisons(5) < 6 * len(texts) < count_comparisons(len(texts))


def test_near_duplicates_are_held_out_together():
    corpus = near_duplicate_corpus()
    rule = HeldOutRule(share=1 / 3, near_duplicates=True)

    def cluster_rows(rows):
        return cluster_near_duplicates(TextSequence({"rows": rows}))

    split = split_corpus(corpus, held_out=rule, limit=None, seed=0, cluster_rows=cluster_rows)
    assert (split.held_out_groups, split.training_groups, len(split.held_out_indices)) == (1, 2, 4)
    assert len({index % 3 for index in split.held_out_indices.tolist()}) == 1
