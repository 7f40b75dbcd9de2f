import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.contracts import Message
from harness.data.conversation import example, prompt_id
from harness.data.splits import check_disjoint, chosen, ranked, split
from harness.errors import HarnessError


def row(question, answer, place="x:1"):
    return example([Message("user", str(question)), Message("assistant", str(answer))], place)


def many(n):
    return [row(f"question {k}", f"answer {k}", f"x:{k}") for k in range(n)]


pairs = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), min_size=1, max_size=80)


@settings(max_examples=60, deadline=None)
@given(pairs, st.floats(0, 0.9), st.one_of(st.none(), st.integers(1, 60)), st.integers(0, 2**32 - 1))
def test_no_prompt_stands_on_both_sides_and_every_row_is_accounted_for(asked, share, limit, seed):
    rows = [row(question, answer, f"x:{place}") for place, (question, answer) in enumerate(asked)]
    sides = split(rows, held_out=share, limit=limit, seed=seed)
    assert not {prompt_id(r) for r in sides.training} & {prompt_id(r) for r in sides.held_out}
    kept = sides.training + sides.held_out
    assert len({r.id for r in kept}) == len(kept) <= (limit or len(kept))
    assert sides.read == len(rows) == sides.duplicates + sides.beyond_limit + len(kept)
    assert sides.duplicates == len(rows) - len(set(asked))


@settings(max_examples=30, deadline=None)
@given(pairs, st.floats(0, 0.9), st.integers(0, 9), st.randoms())
def test_the_split_does_not_depend_on_the_order_of_the_rows(asked, share, seed, random):
    rows = [row(question, answer) for question, answer in set(asked)]
    mixed = random.sample(rows, len(rows))
    sides = [{r.id for r in split(rs, held_out=share, limit=20, seed=seed).held_out} for rs in (rows, mixed)]
    assert sides[0] == sides[1]


def test_the_held_out_share_is_about_the_one_asked_for():
    assert len(split(many(2000), held_out=0.1, limit=None, seed=3).held_out) == pytest.approx(200, abs=40)


def test_an_added_row_moves_no_other_row_to_the_other_side():
    before = split(many(100), held_out=0.3, limit=None, seed=0)
    after = split(many(150), held_out=0.3, limit=None, seed=0)
    assert set(before.held_out) <= set(after.held_out)
    assert set(before.training) <= set(after.training)


def test_another_seed_holds_other_rows_out():
    sides = [split(many(100), held_out=0.3, limit=None, seed=seed).held_out for seed in (0, 1)]
    assert sides[0] != sides[1]


def test_of_duplicates_the_first_is_used():
    rows = [row(1, 1, "x:1"), row(2, 2, "x:2"), row(1, 1, "x:3")]
    sides = split(rows, held_out=0, limit=None, seed=0)
    assert [r.place for r in sides.training] == ["x:1", "x:2"]
    assert sides.duplicates == 1


def test_a_limit_is_a_seeded_choice_and_not_the_first_rows():
    rows = many(200)
    picked = chosen(rows, 20, 0, "limit")
    assert len(picked) == 20
    assert picked != rows[:20]
    assert picked == [r for r in rows if r in picked]
    assert picked == chosen(rows, 20, 0, "limit") != chosen(rows, 20, 1, "limit")
    assert set(chosen(rows, 10, 0, "limit")) < set(picked)


def test_a_ranking_is_a_permutation_of_its_own_for_each_purpose():
    ids = [f"{n:016x}" for n in range(50)]
    assert sorted(ranked(ids, 0, "a")) == ids != ranked(ids, 0, "a") != ranked(ids, 0, "b")


def test_a_question_that_is_trained_and_evaluated_is_refused_with_both_places():
    trained = {"shop": [row(k, "yes", f"shop:{k}") for k in range(9)], "other": [row("else", 1)]}
    suites = {"held": [row(k, "no", f"held:{k}") for k in range(4, 12)], "fine": [row("new", 1)]}
    with pytest.raises(HarnessError) as caught:
        check_disjoint(trained, suites)
    assert str(caught.value).startswith(
        "evaluate.held: 5 of its rows ask what the training source 'shop' also asks: "
        "held:4 = shop:4, held:5 = shop:5, held:6 = shop:6 and 2 more; "
    )
    check_disjoint(trained, {"fine": suites["fine"]})
