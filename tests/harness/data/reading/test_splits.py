import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.reading.conversation import build_example
from harness.data.reading.corpus import Corpus
from harness.data.reading.splits import check_disjoint, hash_keys_for_split, limit_rows, shuffled_ids, split_corpus
from harness.errors import HarnessError
from harness.seeding import derive_seed
from harness.types import Message


def row(question, answer, place="x:1"):
    return build_example([Message("user", str(question)), Message("assistant", str(answer))], place)


def corpus(rows):
    return Corpus.from_examples(rows, "x")


def many(n):
    return corpus([row(f"question {k}", f"answer {k}", f"x:{k}") for k in range(n)])


def keys(corpus, indices):
    return set(corpus.content_hashes[indices].tolist())


pairs = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), min_size=1, max_size=80)


@settings(max_examples=60, deadline=None)
@given(pairs, st.floats(0, 0.9), st.one_of(st.none(), st.integers(1, 60)), st.integers(0, 2**32 - 1), st.booleans())
def test_no_prompt_stands_on_both_sides_and_every_row_is_accounted_for(asked, share, limit, seed, shuffle):
    rows = corpus([row(question, answer, f"x:{place}") for place, (question, answer) in enumerate(asked)])
    sides = split_corpus(rows, held_out=share, limit=limit, seed=seed, shuffle=shuffle)
    assert not np.isin(rows.prompt_hashes[sides.training_indices], rows.prompt_hashes[sides.held_out_indices]).any()
    check_disjoint({"x": rows.select(sides.training_indices)}, {"s": rows.select(sides.held_out_indices)})
    kept = [*sides.training_indices, *sides.held_out_indices]
    assert len(keys(rows, kept)) == len(kept) <= (limit or len(kept))
    assert sides.rows_read == len(rows) == sides.duplicates + sides.beyond_limit + len(kept)
    assert sides.duplicates == len(rows) - len(set(asked))
    assert sides.training_indices.dtype == sides.held_out_indices.dtype == np.int64
    assert list(sides.training_indices) == sorted(sides.training_indices)
    assert list(sides.held_out_indices) == sorted(sides.held_out_indices)


@settings(max_examples=30, deadline=None)
@given(pairs, st.floats(0, 0.9), st.integers(0, 9), st.randoms())
def test_the_split_does_not_depend_on_the_order_of_the_rows(asked, share, seed, random):
    rows = [row(question, answer) for question, answer in set(asked)]
    sides = []
    for given_rows in (corpus(rows), corpus(random.sample(rows, len(rows)))):
        made = split_corpus(given_rows, held_out=share, limit=20, seed=seed)
        sides.append((keys(given_rows, made.held_out_indices), keys(given_rows, made.training_indices)))
    assert sides[0] == sides[1]


def test_the_held_out_share_is_about_the_one_asked_for():
    for share in (0.1, 0.9):
        assert len(split_corpus(many(2000), held_out=share, limit=None, seed=3).held_out_indices) == pytest.approx(
            2000 * share, abs=40
        )
    assert len(split_corpus(many(50), held_out=0, limit=None, seed=3).held_out_indices) == 0


def test_an_added_row_moves_no_other_row_to_the_other_side():
    few, more = many(100), many(150)
    before, after = (split_corpus(rows, held_out=0.3, limit=None, seed=0) for rows in (few, more))
    assert keys(few, before.held_out_indices) <= keys(more, after.held_out_indices)
    assert keys(few, before.training_indices) <= keys(more, after.training_indices)


def test_a_prompt_stands_on_the_same_side_in_every_source():
    one, two = many(100), corpus([row(f"question {k}", "another answer") for k in range(99, -1, -1)])
    sides = [split_corpus(rows, held_out=0.3, limit=None, seed=0) for rows in (one, two)]
    assert set(one.prompt_hashes[sides[0].held_out_indices].tolist()) == set(
        two.prompt_hashes[sides[1].held_out_indices].tolist()
    )


def talk(*said, trained=True, place="x:1"):
    turns = [
        Message("assistant", text, train=trained or number == len(said) - 1) if number % 2 else Message("user", text)
        for number, text in enumerate(said)
    ]
    return build_example(turns, place)


def test_a_question_in_the_middle_of_a_trained_conversation_is_trained_on():
    longer = talk("q 1", "a", "q 2", "b", "q 3", "c", place="t:2")
    trained = corpus([row("other", "a", "t:1"), longer])
    both = {"x": trained.select(np.array([0, 1]))}
    for asked in (talk("q  1", "z", place="e:1"), talk("q 1", "a", "q 2", "z", place="e:1"), longer):
        with pytest.raises(HarnessError, match=f"{asked.location} = t:2"):
            check_disjoint(both, {"s": corpus([asked]).select(np.array([0]))})
    for asked in (talk("q 2", "b"), talk("q 1", "another answer", "q 2", "b"), talk("q 3", "c")):
        check_disjoint(both, {"s": corpus([asked]).select(np.array([0]))})
    check_disjoint({"x": both["x"].select(np.array([0]))}, {"s": corpus([talk("q 1", "a")]).select(np.array([0]))})
    untrained = corpus([talk("q 1", "a", "q 2", "b", trained=False)])
    check_disjoint({"x": untrained.select(np.array([0]))}, {"s": corpus([talk("q 1", "a")]).select(np.array([0]))})


def test_a_conversation_and_one_that_goes_on_from_it_stand_on_one_side():
    one = corpus([talk(f"q {k}", "a") for k in range(200)])
    two = corpus([talk(f"q {k}", "b", "and then?", "c", place=f"x:{k}") for k in range(200)])
    for seed in range(3):
        sides = [split_corpus(rows, held_out=0.3, limit=None, seed=seed) for rows in (one, two)]
        assert sides[0].held_out_indices.tolist() == sides[1].held_out_indices.tolist()
        check_disjoint({"x": two.select(sides[1].training_indices)}, {"s": one.select(sides[0].held_out_indices)})


def test_another_seed_holds_other_rows_out():
    sides = [split_corpus(many(100), held_out=0.3, limit=None, seed=seed).held_out_indices.tolist() for seed in (0, 1)]
    assert sides[0] != sides[1]


def test_of_duplicates_the_first_is_used():
    rows = corpus([row(1, 1, "x:1"), row(2, 2, "x:2"), row(1, 1, "x:3")])
    sides = split_corpus(rows, held_out=0, limit=None, seed=0)
    assert [one.location for one in rows.select(sides.training_indices)] == ["x:1", "x:2"]
    assert sides.duplicates == 1


def test_a_limit_is_a_seeded_choice_and_not_the_first_rows_unless_that_is_asked_for():
    rows = many(200)
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


def test_the_scattering_is_splitmix64_one_to_one_and_another_for_each_purpose():
    # The generator of the same authors, from the state 0, gives this first: the finaliser over the golden gamma.
    golden, mask = 0x9E3779B97F4A7C15, 2**64 - 1

    def finalised(z):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    assert finalised(golden) == 0xE220A8397B1DCDAF
    some = np.array([0, 1, 2**63, 2**64 - 1], np.uint64)
    made = hash_keys_for_split(some, 7, "held_out")
    assert made.tolist() == [finalised((key + derive_seed(7, "held_out") * golden) & mask) for key in some.tolist()]
    assert (
        len(
            {
                *made.tolist(),
                *hash_keys_for_split(some, 7, "limit").tolist(),
                *hash_keys_for_split(some, 8, "limit").tolist(),
            }
        )
        == 12
    )


def test_the_scattering_is_even_and_two_purposes_are_independent():
    found = (
        hash_keys_for_split(np.arange(4000, dtype=np.uint64), 0, "a") / 2.0**64,
        hash_keys_for_split(np.arange(4000, dtype=np.uint64), 0, "b") / 2.0**64,
    )
    assert np.histogram(found[0], 10, (0, 1))[0] == pytest.approx(400, abs=80)
    assert abs(np.corrcoef(*found)[0, 1]) < 0.05


def test_a_ranking_is_a_permutation_of_its_own_for_each_purpose():
    ids = [f"{n:016x}" for n in range(50)]
    assert sorted(shuffled_ids(ids, 0, "a")) == ids != shuffled_ids(ids, 0, "a") != shuffled_ids(ids, 0, "b")


def test_a_question_that_is_trained_and_evaluated_is_refused_with_both_places():
    def whole(rows):
        return corpus(rows).select(np.arange(len(rows)))

    trained = {"shop": whole([row(k, "yes", f"shop:{k}") for k in range(9)]), "other": whole([row("else", 1)])}
    suites = {"held": whole([row(k, "no", f"held:{k}") for k in range(4, 12)]), "fine": whole([row("new", 1)])}
    with pytest.raises(HarnessError) as caught:
        check_disjoint(trained, suites)
    assert str(caught.value).startswith(
        "evaluate.held: 5 of its rows ask what the training source 'shop' also asks: "
        "held:4 = shop:4, held:5 = shop:5, held:6 = shop:6 and 2 more; "
    )
    check_disjoint(trained, {"fine": suites["fine"]})
    check_disjoint({"shop": trained["shop"].select(np.array([0, 1, 2, 3]))}, suites)
