from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from harness.contracts import Part, Row, Stage
from harness.data.mixture import TOLERANCE, UNITS, mix, nearest, shares
from harness.errors import HarnessError


def rows(source, sizes):
    """Rows of (prompt tokens, loss tokens); one token more, since the first token of a row is never predicted."""
    return tuple(
        Row(f"{source}{n}", source, (1,) * (1 + prompt + loss), (-100,) * (1 + prompt) + (1,) * loss)
        for n, (prompt, loss) in enumerate(sizes)
    )


def realised(mixture):
    return shares(mixture, [1] * len(mixture))


def stage(*parts):
    return Stage("only", tuple(Part(*part) for part in parts))


sizes = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 60)), min_size=1, max_size=120)


@settings(max_examples=150, deadline=None)
@given(sizes, sizes, st.floats(0.01, 0.9), st.sampled_from(UNITS), st.integers(0, 1000))
def test_a_share_is_met_within_half_a_point_or_refused(domain, general, share, unit, seed):
    data = {"d": rows("d", domain), "g": rows("g", general)}
    asked = stage(("d", "domain"), ("g", "general", share, unit))
    try:
        mixture = mix(asked, data, seed)
    except HarnessError as error:
        refused = str(error)
        assert refused.startswith("stage only: ")
        assert "cannot be met: w" in refused
        return
    assert abs(realised(mixture)["g"][unit] - share) <= TOLERANCE + 1e-9
    assert len({row.id for row in mixture}) == len(mixture)
    assert [row for row in mixture if row.source == "d"] == list(data["d"])
    assert mixture == mix(asked, data, seed)


@settings(max_examples=30, deadline=None)
@given(st.integers(100, 150), st.integers(5, 60), st.floats(0.02, 0.5), st.sampled_from(UNITS), st.integers(0, 1000))
def test_a_share_is_met_whenever_there_are_rows_enough_and_none_weighs_a_point(count, longest, share, unit, seed):
    random = Random(seed)
    data = {
        "d": rows("d", [(3, random.randint(40, 80)) for _ in range(count)]),
        "g": rows("g", [(3, random.randint(1, longest)) for _ in range(25_000 // longest + 200)]),
    }
    mixture = mix(stage(("d", "domain"), ("g", "general", share, unit)), data, seed)
    assert abs(realised(mixture)["g"][unit] - share) <= TOLERANCE


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0.05, 0.25), min_size=2, max_size=3), st.sampled_from(UNITS), st.integers(0, 99))
def test_several_shares_are_met_together(wanted, unit, seed):
    data = {"d": rows("d", [(5, 5 + n % 30) for n in range(150)])}
    parts = [("d", "domain")]
    for n, share in enumerate(wanted):
        data[f"g{n}"] = rows(f"g{n}", [(n, 1 + (7 * k) % (20 + n)) for k in range(1200)])
        parts.append((f"g{n}", "general", share, unit))
    mixture = mix(stage(*parts), data, seed)
    for n, share in enumerate(wanted):
        assert abs(realised(mixture)[f"g{n}"][unit] - share) <= TOLERANCE


def test_shares_in_different_units_are_met_together():
    data = {"d": rows("d", [(5, 20)] * 300), "a": rows("a", [(30, 5)] * 600), "b": rows("b", [(2, 50)] * 600)}
    mixture = mix(stage(("d", "domain"), ("a", "general", 0.2, "rows"), ("b", "general", 0.3, "loss_tokens")), data, 0)
    assert realised(mixture)["a"]["rows"] == pytest.approx(0.2, abs=TOLERANCE)
    assert realised(mixture)["b"]["loss_tokens"] == pytest.approx(0.3, abs=TOLERANCE)


def test_when_every_part_has_a_share_the_mixture_is_the_largest_possible():
    data = {"d": rows("d", [(0, 10)] * 100), "g": rows("g", [(0, 10)] * 1000)}
    mixture = mix(stage(("d", "domain", 0.25), ("g", "general", 0.75)), data, 0)
    assert [sum(row.source == source for row in mixture) for source in "dg"] == [100, 300]


def test_a_share_of_nothing_takes_nothing_and_no_share_takes_everything():
    data = {"d": rows("d", [(0, 10)] * 9), "g": rows("g", [(0, 10)] * 7)}
    assert len(mix(stage(("d", "domain"), ("g", "general", 0.0)), data, 0)) == 9
    assert len(mix(stage(("d", "domain"), ("g", "general")), data, 0)) == 16


def test_a_small_share_still_takes_a_row():
    data = {"d": rows("d", [(0, 10)] * 1000), "g": rows("g", [(0, 30)] * 7)}
    assert sum(row.source == "g" for row in mix(stage(("d", "domain"), ("g", "general", 0.001)), data, 0)) == 1


def test_rows_are_chosen_by_the_seed_and_a_larger_share_keeps_those_of_a_smaller_one():
    data = {"d": rows("d", [(0, 10)] * 100), "g": rows("g", [(0, 10)] * 500)}

    def general(share, seed):
        return {row.id for row in mix(stage(("d", "domain"), ("g", "general", share)), data, seed) if row.source == "g"}

    assert general(0.1, 0) < general(0.2, 0)
    assert general(0.1, 0) != general(0.1, 1)
    assert general(0.1, 0) != {row.id for row in data["g"][:11]}


def test_the_same_row_in_two_sources_is_taken_only_where_it_was_chosen():
    shared = [Row(f"s{n}", "d", (1,) * 11, (-100,) + (1,) * 10) for n in range(200)]
    data = {"d": tuple(shared), "g": tuple(Row(r.id, "g", r.input_ids, r.labels) for r in shared)}
    mixture = mix(stage(("d", "domain"), ("g", "general", 0.1)), data, 0)
    assert [sum(row.source == source for row in mixture) for source in "dg"] == [200, 22]


@pytest.mark.parametrize(
    ("domain", "general", "share", "line"),
    [
        (
            [(0, 10)] * 100,
            [(0, 10)] * 7,
            0.1,
            "stage only: 10.0 % of 'g' cannot be met: with all its 70 loss tokens at most 6.5 % is possible; lower",
        ),
        (
            [(0, 10)] * 10,
            [(0, 30)] * 50,
            0.1,
            "stage only: 10.0 % of 'g' in loss tokens cannot be met: whole rows come no nearer than 23.1 %; use more",
        ),
    ],
)
def test_what_cannot_be_met_is_refused_with_what_can(domain, general, share, line):
    data = {"d": rows("d", domain), "g": rows("g", general)}
    with pytest.raises(HarnessError) as caught:
        mix(stage(("d", "domain"), ("g", "general", share)), data, 0)
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize(
    ("parts", "what"),
    [
        ([("d", "domain", 0.5), ("g", "general", 0.4)], "every source has a share, and the shares sum to 0.9"),
        ([("d", "domain"), ("g", "general", 1.0)], "the shares sum to 1, which leaves nothing"),
        ([("d", "domain"), ("g", "general", -0.1)], "a share lies outside 0 to 1"),
        ([("d", "domain", 0.5, "rows"), ("g", "general", 0.5, "tokens")], "in different units"),
        ([("d", "domain"), ("d", "general", 0.1)], "the source 'd' stands in it twice"),
    ],
)
def test_shares_that_make_no_whole_are_refused(parts, what):
    data = {"d": rows("d", [(0, 10)] * 10), "g": rows("g", [(0, 10)] * 10)}
    with pytest.raises(HarnessError, match=what):
        mix(stage(*parts), data, 0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.floats(0.5, 2000))
@example([30, 30, 7], 8.0)
def test_the_nearest_choice_names_each_index_once_and_is_no_worse_than_one_size_off(sizes, target):
    picked = nearest(sizes, target)
    assert len(set(picked)) == len(picked) >= 1
    total = sum(sizes[index] for index in picked)
    assert abs(total - target) <= max(sizes) or len(picked) == len(sizes)


def test_the_nearest_choice_exchanges_rows_to_come_nearer():
    assert nearest([9, 9, 4, 1], 10) == [0, 3]
    assert nearest([30, 7, 8], 8) == [2]
    assert sum([10, 10, 3, 11][index] for index in nearest([10, 10, 3, 11], 24)) == 24


def test_shares_weigh_rows_by_how_often_they_are_trained():
    data = rows("d", [(0, 10)]) + rows("g", [(0, 30)])
    assert shares(data, [3, 1])["g"] == {"rows": 0.25, "tokens": 31 / 64, "loss_tokens": 0.5}
