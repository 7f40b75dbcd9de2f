"""Splits: deduplication, limits, held-out rows and the check that no prompt is on both sides."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.corpora import corpus_in_memory

from harness.data.reading.conversation import build_example
from harness.data.reading.splits import check_disjoint, hash_keys_for_split, limit_rows, split_corpus
from harness.errors import HarnessError
from harness.seeding import derive_seed
from harness.types import Message


def build_row(question, answer, location="x:1"):
    return build_example([Message("user", str(question)), Message("assistant", str(answer))], location)


def build_corpus(rows):
    return corpus_in_memory(rows, "x")


def build_questions(count):
    return build_corpus([build_row(f"question {k}", f"answer {k}", f"x:{k}") for k in range(count)])


def content_hashes(corpus, indices):
    return set(corpus.content_hashes[indices].tolist())


pairs = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), min_size=1, max_size=80)


@settings(max_examples=60, deadline=None)
@given(pairs, st.floats(0, 0.9), st.one_of(st.none(), st.integers(1, 60)), st.integers(0, 2**32 - 1), st.booleans())
def test_no_prompt_is_on_both_sides_and_every_row_is_counted(questions, share, limit, seed, shuffle):
    rows = build_corpus(
        [build_row(question, answer, f"x:{index}") for index, (question, answer) in enumerate(questions)]
    )
    sides = split_corpus(rows, held_out=share, limit=limit, seed=seed, shuffle=shuffle)
    assert not np.isin(rows.prompt_hashes[sides.training_indices], rows.prompt_hashes[sides.held_out_indices]).any()
    check_disjoint({"x": rows.select(sides.training_indices)}, {"s": rows.select(sides.held_out_indices)})
    used = [*sides.training_indices, *sides.held_out_indices]
    assert len(content_hashes(rows, used)) == len(used) <= (limit or len(used))
    assert sides.rows_read == len(rows) == sides.duplicates + sides.beyond_limit + len(used)
    assert sides.duplicates == len(rows) - len(set(questions))
    assert sides.training_indices.dtype == sides.held_out_indices.dtype == np.int64
    assert list(sides.training_indices) == sorted(sides.training_indices)
    assert list(sides.held_out_indices) == sorted(sides.held_out_indices)


@settings(max_examples=30, deadline=None)
@given(pairs, st.floats(0, 0.9), st.integers(0, 9), st.randoms())
def test_split_does_not_depend_on_the_order_of_rows(questions, share, seed, random):
    rows = [build_row(question, answer) for question, answer in set(questions)]
    sides = []
    for given_rows in (build_corpus(rows), build_corpus(random.sample(rows, len(rows)))):
        split = split_corpus(given_rows, held_out=share, limit=20, seed=seed)
        sides.append(
            (content_hashes(given_rows, split.held_out_indices), content_hashes(given_rows, split.training_indices))
        )
    assert sides[0] == sides[1]


def test_held_out_share_is_close_to_the_requested_one():
    for share in (0.1, 0.9):
        assert len(
            split_corpus(build_questions(2000), held_out=share, limit=None, seed=3).held_out_indices
        ) == pytest.approx(2000 * share, abs=40)
    assert len(split_corpus(build_questions(50), held_out=0, limit=None, seed=3).held_out_indices) == 0


def test_added_rows_do_not_move_other_rows():
    few, more = build_questions(100), build_questions(150)
    before, after = (split_corpus(rows, held_out=0.3, limit=None, seed=0) for rows in (few, more))
    assert content_hashes(few, before.held_out_indices) <= content_hashes(more, after.held_out_indices)
    assert content_hashes(few, before.training_indices) <= content_hashes(more, after.training_indices)


def test_prompt_is_on_the_same_side_in_every_source():
    rows, other_rows = (
        build_questions(100),
        build_corpus([build_row(f"question {k}", "another answer") for k in range(99, -1, -1)]),
    )
    sides = [split_corpus(source_rows, held_out=0.3, limit=None, seed=0) for source_rows in (rows, other_rows)]
    assert set(rows.prompt_hashes[sides[0].held_out_indices].tolist()) == set(
        other_rows.prompt_hashes[sides[1].held_out_indices].tolist()
    )


def build_conversation(*texts, trained=True, location="x:1"):
    turns = [
        Message("assistant", text, train=trained or turn == len(texts) - 1) if turn % 2 else Message("user", text)
        for turn, text in enumerate(texts)
    ]
    return build_example(turns, location)


def test_question_within_a_trained_conversation_counts_as_trained():
    longer = build_conversation("q 1", "a", "q 2", "b", "q 3", "c", location="t:2")
    trained = build_corpus([build_row("other", "a", "t:1"), longer])
    both = {"x": trained.select(np.array([0, 1]))}
    for held_out in (
        build_conversation("q  1", "z", location="e:1"),
        build_conversation("q 1", "a", "q 2", "z", location="e:1"),
        longer,
    ):
        with pytest.raises(HarnessError, match=f"{held_out.location} = t:2"):
            check_disjoint(both, {"s": build_corpus([held_out]).select(np.array([0]))})
    for held_out in (
        build_conversation("q 2", "b"),
        build_conversation("q 1", "another answer", "q 2", "b"),
        build_conversation("q 3", "c"),
    ):
        check_disjoint(both, {"s": build_corpus([held_out]).select(np.array([0]))})
    check_disjoint(
        {"x": both["x"].select(np.array([0]))},
        {"s": build_corpus([build_conversation("q 1", "a")]).select(np.array([0]))},
    )
    untrained = build_corpus([build_conversation("q 1", "a", "q 2", "b", trained=False)])
    check_disjoint(
        {"x": untrained.select(np.array([0]))},
        {"s": build_corpus([build_conversation("q 1", "a")]).select(np.array([0]))},
    )


def test_conversation_and_its_continuation_are_on_one_side():
    short = build_corpus([build_conversation(f"q {k}", "a") for k in range(200)])
    long = build_corpus([build_conversation(f"q {k}", "b", "and then?", "c", location=f"x:{k}") for k in range(200)])
    for seed in range(3):
        sides = [split_corpus(rows, held_out=0.3, limit=None, seed=seed) for rows in (short, long)]
        assert sides[0].held_out_indices.tolist() == sides[1].held_out_indices.tolist()
        check_disjoint({"x": long.select(sides[1].training_indices)}, {"s": short.select(sides[0].held_out_indices)})


def test_other_seed_holds_out_other_rows():
    sides = [
        split_corpus(build_questions(100), held_out=0.3, limit=None, seed=seed).held_out_indices.tolist()
        for seed in (0, 1)
    ]
    assert sides[0] != sides[1]


def test_first_of_duplicates_is_used():
    rows = build_corpus([build_row(1, 1, "x:1"), build_row(2, 2, "x:2"), build_row(1, 1, "x:3")])
    sides = split_corpus(rows, held_out=0, limit=None, seed=0)
    assert [row.location for row in rows.select(sides.training_indices)] == ["x:1", "x:2"]
    assert sides.duplicates == 1


def test_limit_is_a_seeded_choice_or_the_first_rows_without_shuffle():
    rows = build_questions(200)
    picked = limit_rows(rows.content_hashes, 20, 0, "limit")
    assert len(picked) == 20
    assert picked.tolist() == sorted(picked) != list(range(20))
    assert (
        picked.tolist()
        == limit_rows(rows.content_hashes, 20, 0, "limit").tolist()
        != limit_rows(rows.content_hashes, 20, 1, "limit").tolist()
    )
    assert set(limit_rows(rows.content_hashes, 10, 0, "limit")) < set(picked)
    assert split_corpus(rows, held_out=0, limit=20, seed=0).training_indices.tolist() == picked.tolist()
    assert split_corpus(rows, held_out=0, limit=20, seed=0, shuffle=False).training_indices.tolist() == list(range(20))
    assert (
        limit_rows(rows.content_hashes, None, 0, "limit").tolist()
        == limit_rows(rows.content_hashes, 200, 0, "limit").tolist()
        == list(range(200))
    )


def test_split_hash_is_splitmix64_and_differs_for_each_purpose():
    # The first output of the published generator at state 0 is the mixing function of the golden gamma.
    golden, mask = 0x9E3779B97F4A7C15, 2**64 - 1

    def mix(z):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    assert mix(golden) == 0xE220A8397B1DCDAF
    keys = np.array([0, 1, 2**63, 2**64 - 1], np.uint64)
    hashes = hash_keys_for_split(keys, 7, "held_out")
    assert hashes.tolist() == [mix((key + derive_seed(7, "held_out") * golden) & mask) for key in keys.tolist()]
    assert (
        len(
            {
                *hashes.tolist(),
                *hash_keys_for_split(keys, 7, "limit").tolist(),
                *hash_keys_for_split(keys, 8, "limit").tolist(),
            }
        )
        == 12
    )


def test_split_hash_is_uniform_and_independent_between_purposes():
    hashes = (
        hash_keys_for_split(np.arange(4000, dtype=np.uint64), 0, "a") / 2.0**64,
        hash_keys_for_split(np.arange(4000, dtype=np.uint64), 0, "b") / 2.0**64,
    )
    assert np.histogram(hashes[0], 10, (0, 1))[0] == pytest.approx(400, abs=80)
    assert abs(np.corrcoef(*hashes)[0, 1]) < 0.05


def test_prompt_that_is_trained_and_evaluated_is_refused_with_both_locations():
    def build_view(rows):
        return build_corpus(rows).select(np.arange(len(rows)))

    trained = {
        "shop": build_view([build_row(k, "yes", f"shop:{k}") for k in range(9)]),
        "other": build_view([build_row("else", 1)]),
    }
    suites = {
        "held": build_view([build_row(k, "no", f"held:{k}") for k in range(4, 12)]),
        "fine": build_view([build_row("new", 1)]),
    }
    with pytest.raises(HarnessError) as caught:
        check_disjoint(trained, suites)
    assert str(caught.value).startswith(
        "evaluate.held: 5 of its rows have a prompt that the training source 'shop' also has: "
        "held:4 = shop:4, held:5 = shop:5, held:6 = shop:6 and 2 more; "
    )
    check_disjoint(trained, {"fine": suites["fine"]})
    check_disjoint({"shop": trained["shop"].select(np.array([0, 1, 2, 3]))}, suites)
