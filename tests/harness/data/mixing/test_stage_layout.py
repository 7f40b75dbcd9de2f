"""Stage datasets: rows, shares and order, checked against counts made row by row."""

import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.mixing import batch_order, partial_epochs
from harness.data.mixing.mixture import MAX_SHARE_ERROR, UNITS
from harness.data.mixing.stage_layout import build_stage_dataset, sizes_by_source
from harness.data.row_hashing import shuffled_indices
from harness.data.tokenization.tokenized_rows import TokenizedRows
from harness.errors import HarnessError
from harness.seeding import create_generator
from harness.types import Share, Stage, StageSource, TokenizedExample

TRAIN = {"epochs": 1, "steps": None, "batch_size": 4, "accumulation": 1, "packing": False, "max_length": 128}


def build_pool(source, counts, first=0):
    """Return rows of (prompt tokens, loss tokens), plus one token, since the first token is never predicted."""
    return TokenizedRows.from_rows(
        TokenizedExample(f"{first + n:016x}", source, (1,) * (1 + prompt + loss), (-100,) * (1 + prompt) + (1,) * loss)
        for n, (prompt, loss) in enumerate(counts)
    )


def build_stage(parts, *shares, **train):
    roles = {"d": "domain", "r": "replay"}
    stage_sources = tuple(
        p if isinstance(p, StageSource) else StageSource(p, roles.get(p[0], "general")) for p in parts
    )
    return Stage("only", stage_sources, {**TRAIN, **train}, tuple(shares))


def split_epochs(data):
    """Return the order of each epoch."""
    ends = [0, *(min(end, len(data.order)) for end in data.epoch_ends)]
    return [data.order[a:b] for a, b in pairwise(ends)]


def count_trained(data, source, sequences=None):
    """Return row id -> how often it is trained, for one source."""
    rows = (data.rows[index] for sequence in (data.order if sequences is None else sequences) for index in sequence)
    return Counter(row.id for row in rows if row.source == source)


def count_shares(data, sequences):
    """Return source -> unit -> share, counted row by row."""
    totals = {part.source: dict.fromkeys(UNITS, 0) for part in data.stage.sources}
    for sequence in sequences:
        for index in sequence:
            row = data.rows[index]
            totals[row.source]["rows"] += 1
            totals[row.source]["tokens"] += len(row.input_ids)
            totals[row.source]["loss_tokens"] += row.loss_tokens
    return {
        source: {unit: part[unit] / sum(sizes[unit] for sizes in totals.values()) for unit in UNITS}
        for source, part in totals.items()
    }


counts = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 60)), min_size=1, max_size=100)
amounts = st.floats(0.01, 0.6)
units = st.sampled_from(UNITS)


# -- shares -----------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    counts, counts, counts, amounts, units, st.booleans(), st.booleans(), st.booleans(),
    st.sampled_from([(None, None), ((1.0, 3.0), None), (None, 2.0), (None, 0.5)]), st.integers(0, 1000),
)  # fmt: skip
def test_share_is_met_in_every_epoch_or_refused_with_the_possible_share(
    domain, first, second, amount, unit, upsample, resample, packing, split, seed
):
    pools = {"d": build_pool("d", domain), "g": build_pool("g", first, 1000), "h": build_pool("h", second, 2000)}
    weights, temperature = split
    share = Share(("g", "h"), amount, unit, weights, temperature, upsample, resample)
    requested = build_stage("dgh", share, epochs=2, packing=packing)
    try:
        data = build_stage_dataset(requested, pools, seed)
    except HarnessError as error:
        message = str(error)
        assert message.startswith("stage only: ")
        assert re.search("cannot be met: (with all|the nearest)", message)
        possible = re.search(r"at most ([\d.]+) % is possible", message)
        if possible:
            assert not upsample
            lower = float(possible[1]) / 100
            assert 0 < lower <= amount
            build_stage_dataset(replace(requested, shares=(replace(share, amount=lower, resample=False),)), pools, seed)
        return
    assert len(data.epoch_shares) == 2
    parts = expected_fractions(share, pools)
    for epoch, reported in zip(split_epochs(data), data.epoch_shares, strict=True):
        measured_shares = count_shares(data, epoch)
        assert reported == {source: pytest.approx(of) for source, of in measured_shares.items()}
        assert abs(measured_shares["g"][unit] + measured_shares["h"][unit] - amount) <= MAX_SHARE_ERROR + 1e-9
        assert abs(measured_shares["g"][unit] - amount * parts[0]) <= MAX_SHARE_ERROR + 1e-9
        assert set(count_trained(data, "d", epoch).values()) == {1}
        assert len(count_trained(data, "d", epoch)) == len(pools["d"])
        for source in "gh":
            repetitions = set(count_trained(data, source, epoch).values())
            assert repetitions <= (
                {1} if not upsample else {min(repetitions, default=0), min(repetitions, default=0) + 1}
            )
    assert data.shares == {source: pytest.approx(of) for source, of in count_shares(data, data.order).items()}
    assert build_stage_dataset(requested, pools, seed).order == data.order


def expected_fractions(share, pools):
    measured = {
        "rows": lambda p: len(p),
        "tokens": lambda p: p.lengths.sum(),
        "loss_tokens": lambda p: p.loss_tokens.sum(),
    }
    weights = share.weights or [1.0, 1.0]
    if share.temperature is not None:
        weights = [float(measured[share.unit](pools[source])) ** (1 / share.temperature) for source in share.sources]
    return [weight / sum(weights) for weight in weights]


@settings(max_examples=25, deadline=None)
@given(st.integers(100, 150), st.integers(5, 60), st.floats(0.02, 0.5), units, st.integers(0, 1000))
def test_share_is_met_with_enough_rows_of_small_size(count, longest, share, unit, seed):
    random = create_generator(seed, "sizes")
    pools = {
        "d": build_pool("d", [(3, random.randint(40, 80)) for _ in range(count)]),
        "g": build_pool("g", [(3, random.randint(1, longest)) for _ in range(25_000 // longest + 200)]),
    }
    data = build_stage_dataset(build_stage("dg", Share(("g",), share, unit)), pools, seed)
    assert abs(data.shares["g"][unit] - share) <= MAX_SHARE_ERROR


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.floats(0.05, 0.25), min_size=2, max_size=3), st.lists(units, min_size=3, max_size=3), st.integers(0, 99)
)
def test_shares_in_different_units_are_met_together(wanted, stated, seed):
    pools = {"d": build_pool("d", [(5, 5 + n % 30) for n in range(150)])}
    requested = []
    for n, share in enumerate(wanted):
        pools[f"g{n}"] = build_pool(f"g{n}", [(n, 1 + (7 * k) % (20 + n)) for k in range(1200)])
        requested.append(Share((f"g{n}",), share, stated[n]))
    data = build_stage_dataset(build_stage(list(pools), *requested), pools, seed)
    for n, share in enumerate(wanted):
        assert abs(data.shares[f"g{n}"][stated[n]] - share) <= MAX_SHARE_ERROR


def test_share_of_several_sources_is_split_by_weights_temperature_or_evenly():
    pools = {
        "d": build_pool("d", [(0, 10)] * 500),
        "g": build_pool("g", [(0, 10)] * 800, 1000),
        "h": build_pool("h", [(0, 10)] * 200, 5000),
    }

    def split(**how):
        data = build_stage_dataset(build_stage("dgh", Share(("g", "h"), 0.2, **how)), pools, 0)
        return [sum(count_trained(data, source).values()) for source in "gh"]

    assert split() == [62, 62], "the target is 62.5 rows each"
    assert split(weights=(4.0, 1.0)) == [100, 25]
    assert split(temperature=1.0) == [100, 25]
    assert split(temperature=2.0) == [83, 42], "the square roots of 800 and 200 are as 2 to 1"
    assert split(temperature=1e9) == [62, 62]


def test_mixture_is_the_largest_possible_when_every_source_has_a_share():
    pools = {"d": build_pool("d", [(0, 10)] * 100), "g": build_pool("g", [(0, 10)] * 1000)}
    data = build_stage_dataset(build_stage("dg", Share(("d",), 0.25), Share(("g",), 0.75)), pools, 0)
    assert [len(count_trained(data, source)) for source in "dg"] == [100, 300]
    data = build_stage_dataset(build_stage("dg", Share(("d", "g"), 1.0, weights=(1.0, 3.0))), pools, 0)
    assert [len(count_trained(data, source)) for source in "dg"] == [100, 300]
    data = build_stage_dataset(build_stage("dg", Share(("d", "g"), 1.0, weights=(1.0, 3.0), upsample=True)), pools, 0)
    assert [sum(count_trained(data, source).values()) for source in "dg"] == [333, 1000], (
        "every row of the larger one, once"
    )


def test_zero_share_takes_no_rows_and_no_share_takes_all_rows():
    pools = {"d": build_pool("d", [(0, 10)] * 9), "g": build_pool("g", [(0, 10)] * 7)}
    assert len(build_stage_dataset(build_stage("dg", Share(("g",), 0.0)), pools, 0).rows) == 9
    assert build_stage_dataset(build_stage("dg", Share(("g",), 0.0)), pools, 0).shares["g"] == dict.fromkeys(UNITS, 0.0)
    assert len(build_stage_dataset(build_stage("dg"), pools, 0).rows) == 16


def test_small_share_takes_at_least_one_row():
    pools = {"d": build_pool("d", [(0, 10)] * 1000), "g": build_pool("g", [(0, 30)] * 7)}
    assert len(count_trained(build_stage_dataset(build_stage("dg", Share(("g",), 0.001)), pools, 0), "g")) == 1


def test_share_is_computed_from_the_limited_rows():
    pools = {"d": build_pool("d", [(0, 10)] * 400), "g": build_pool("g", [(0, 10)] * 500)}
    data = build_stage_dataset(build_stage([StageSource("d", "domain", 90), "g"], Share(("g",), 0.1)), pools, 0)
    assert [len(count_trained(data, source)) for source in "dg"] == [90, 10]
    with pytest.raises(HarnessError, match=r"with all 5 loss tokens of 'g' at most"):
        build_stage_dataset(
            build_stage(["d", StageSource("g", "general", 5)], Share(("g",), 0.1)),
            {**pools, "g": build_pool("g", [(9, 1)] * 50)},
            0,
        )


# -- which rows -------------------------------------------------------------------------------------------------------


def test_rows_depend_on_the_seed_and_a_larger_share_contains_the_smaller_one():
    pools = {"d": build_pool("d", [(0, 10)] * 100), "g": build_pool("g", [(0, 10)] * 500)}

    def general(share, seed):
        return set(count_trained(build_stage_dataset(build_stage("dg", Share(("g",), share)), pools, seed), "g"))

    assert general(0.1, 0) < general(0.2, 0)
    assert general(0.1, 0) != general(0.1, 1)
    assert general(0.1, 0) != {row.id for row in list(pools["g"])[:11]}


def test_selection_is_independent_of_the_file_order():
    pools = {"d": build_pool("d", [(0, 10)] * 100), "g": build_pool("g", [(3, 5 + n % 20) for n in range(300)])}
    turned = {**pools, "g": TokenizedRows.from_rows(list(pools["g"])[::-1])}
    first, second = (
        build_stage_dataset(build_stage("dg", Share(("g",), 0.1)), row_pools, 0) for row_pools in (pools, turned)
    )
    assert count_trained(first, "g") == count_trained(second, "g")


def test_limit_keeps_the_same_rows_in_every_stage():
    pools = {"d": build_pool("d", [(0, 10)] * 100), "r": build_pool("r", [(0, 10)] * 100, 500)}
    first, second = (
        build_stage_dataset(replace(build_stage(["d", StageSource("r", "replay", 30)]), name=name), pools, 0)
        for name in ("one", "two")
    )
    assert count_trained(first, "r") == count_trained(second, "r")
    assert len(count_trained(first, "r")) == 30
    wider = build_stage_dataset(build_stage(["d", StageSource("r", "replay", 40)]), pools, 0)
    assert set(count_trained(first, "r")) < set(count_trained(wider, "r"))


def test_row_in_two_sources_is_taken_only_where_it_was_selected():
    pools = {"d": build_pool("d", [(0, 10)] * 200), "g": build_pool("g", [(0, 10)] * 200)}
    data = build_stage_dataset(build_stage("dg", Share(("g",), 0.1)), pools, 0)
    assert [len(count_trained(data, source)) for source in "dg"] == [200, 22]


def test_upsampled_rows_repeat_as_evenly_as_possible():
    pools = {"d": build_pool("d", [(0, 10)] * 100), "g": build_pool("g", [(0, 10)] * 7)}
    for packing in (False, True):
        data = build_stage_dataset(build_stage("dg", Share(("g",), 0.2, upsample=True), packing=packing), pools, 0)
        assert sorted(count_trained(data, "g").values()) == [3, 3, 3, 4, 4, 4, 4]
        assert len(data.rows) == 107


def test_row_repeats_only_after_all_other_rows_of_its_source():
    pools = {"d": build_pool("d", [(0, 10)] * 20), "g": build_pool("g", [(0, 10)] * 40)}
    requested = build_stage("dg", Share(("g",), 0.8, upsample=True), batch_size=1)
    order = [data.rows[index] for data in [build_stage_dataset(requested, pools, 0)] for (index,) in data.order]
    general = [row.id for row in order if row.source == "g"]
    assert len(general) == 80
    # Sequences move within a window of 16 batches to be with others of their length.
    assert len(set(general[: 40 - 16])) == 40 - 16


def test_resampled_epochs_take_unseen_rows_first():
    pools = {"d": build_pool("d", [(0, 10)] * 90), "g": build_pool("g", [(0, 10)] * 35)}
    data = build_stage_dataset(build_stage("dg", Share(("g",), 0.1, resample=True), epochs=7), pools, 0)
    drawn = [set(count_trained(data, "g", epoch)) for epoch in split_epochs(data)]
    assert [len(rows) for rows in drawn] == [10] * 7
    assert len(set.union(*drawn[:3])) == 30
    assert set.union(*drawn[:4]) == {row.id for row in pools["g"]}
    assert set(count_trained(data, "g").values()) == {2}
    fixed = build_stage_dataset(build_stage("dg", Share(("g",), 0.1), epochs=7), pools, 0)
    assert set(count_trained(fixed, "g").values()) == {7}
    assert set(count_trained(fixed, "g")) == drawn[0]


def test_partial_resampled_epoch_is_the_last_draw():
    pools = {"d": build_pool("d", [(0, 10)] * 90), "g": build_pool("g", [(0, 10)] * 35)}
    data = build_stage_dataset(build_stage("dg", Share(("g",), 0.1, resample=True), epochs=1.5), pools, 0)
    assert (len(data.order), data.epoch_ends) == (150, (100, 200))
    assert [round(epoch_shares["g"]["rows"], 2) for epoch_shares in data.epoch_shares] == [0.1, 0.1]


# -- shares that cannot be met ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("domain", "general", "share", "line"),
    [
        (
            [(0, 10)] * 100,
            [(0, 10)] * 7,
            Share(("g",), 0.1),
            "stage only: 10.0 % of 'g' cannot be met: with all 70 loss tokens of 'g' at most 6.5 % is possible; lower "
            "the share, add rows to it, let it repeat rows (upsample), or set a limit on the other sources",
        ),
        (
            [(0, 10)] * 10,
            [(0, 30)] * 50,
            Share(("g",), 0.1),
            "stage only: 10.0 % of 'g' in loss tokens cannot be met: the nearest share that complete rows allow is "
            "23.1 %; use more rows in the stage",
        ),
        (
            [(0, 10)] * 100,
            [(0, 10)] * 40,
            Share(("g", "h"), 0.3, weights=(1.0, 3.0)),
            "stage only: 30.0 % of 'g' and 'h' cannot be met: with all 20 loss tokens of 'h' at most 2.5 % is possible",
        ),
        (
            [(0, 10)] * 1000,
            [(0, 1)],
            Share(("g",), 0.1),
            "stage only: 10.0 % of 'g' cannot be met: with all 1 loss tokens of 'g' no such share is possible; lower",
        ),
    ],
)  # fmt: skip
def test_unreachable_share_is_refused_with_the_possible_share(domain, general, share, line):
    pools = {"d": build_pool("d", domain), "g": build_pool("g", general), "h": build_pool("h", [(0, 10)] * 2)}
    with pytest.raises(HarnessError) as caught:
        build_stage_dataset(build_stage(["d", *share.sources], share), pools, 0)
    assert str(caught.value).startswith(line)


def test_shares_that_leave_nothing_for_other_sources_are_refused():
    pools = {"d": build_pool("d", [(0, 10)] * 10), "g": build_pool("g", [(0, 10)] * 10)}
    with pytest.raises(HarnessError, match="the shares sum to 1, which leaves nothing"):
        build_stage_dataset(build_stage("dg", Share(("g",), 1.0)), pools, 0)


def test_source_without_rows_is_refused():
    with pytest.raises(HarnessError, match="stage only: 'g' has no row to train on"):
        build_stage_dataset(build_stage("dg"), {"d": build_pool("d", [(0, 10)]), "g": TokenizedRows.from_rows([])}, 0)


# -- order ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_epochs", "num_sequences", "ends"),
    [(0.25, 25, (100,)), (1.5, 150, (100, 200)), (2, 200, (100, 200)), (0.0001, 1, (100,)), (0.996, 100, (100,))],
)
def test_fraction_of_an_epoch_is_at_least_one_complete_sequence(num_epochs, num_sequences, ends):
    pools = {"d": build_pool("d", [(0, 1 + n % 50) for n in range(100)])}
    data = build_stage_dataset(build_stage("d", epochs=num_epochs), pools, 0)
    assert len(data.order) == num_sequences
    assert data.epoch_ends == ends
    in_complete_epochs = num_sequences // 100 * 100
    assert (
        data.order[:in_complete_epochs]
        == build_stage_dataset(build_stage("d", epochs=2), pools, 0).order[:in_complete_epochs]
    )
    assert len(set(data.order[in_complete_epochs:])) == num_sequences - in_complete_epochs, (
        "no row repeats in the partial epoch"
    )


def test_steps_set_the_number_of_sequences_exactly():
    data = build_stage_dataset(
        build_stage("d", steps=7, batch_size=3, accumulation=2), {"d": build_pool("d", [(0, 9)] * 10)}, 0
    )
    assert len(data.order) == 42 == data.count_steps() * 6
    assert data.epoch_ends == (10, 20, 30, 40, 50)
    assert set(Counter(index for (index,) in data.order).values()) == {4, 5}
    assert len(data.epoch_shares) == 5


@pytest.mark.parametrize("steps", [1, 3, 10, 17])
def test_partial_epoch_keeps_sources_in_proportion(steps):
    pools = {"a": build_pool("a", [(0, 1 + n % 50) for n in range(180)]), "b": build_pool("b", [(0, 20)] * 20)}
    data = build_stage_dataset(build_stage("ab", steps=steps, batch_size=10), pools, 0)
    having = sum(count_trained(data, "b").values())
    assert abs(having - steps) <= 1, "a tenth of the rows are of b, however few are trained"
    assert data.epoch_shares[-1]["b"]["rows"] == pytest.approx(count_shares(data, split_epochs(data)[-1])["b"]["rows"])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(40, 200), st.integers(40, 200), st.floats(0.02, 0.5), units, st.integers(1, 60), st.booleans(),
    st.booleans(), st.booleans(), st.integers(0, 1000),
)  # fmt: skip
def test_share_is_met_in_a_partial_epoch_or_refused_with_working_remedies(
    domain, general, amount, unit, steps, upsample, resample, packing, seed
):
    random = create_generator(seed, "lengths")
    pools = {
        source: build_pool(source, [(random.randint(0, 40), random.randint(1, longest)) for _ in range(count)], first)
        for source, count, longest, first in (("d", domain, 60, 0), ("g", general, 80, 1000))
    }
    requested = build_stage(
        "dg", Share(("g",), amount, unit, upsample=upsample, resample=resample), steps=steps, packing=packing
    )
    try:
        data = build_stage_dataset(requested, pools, seed)
    except HarnessError as error:
        message = str(error)
        longer = re.search(r"set train.steps to (\d+)", message)
        if longer:
            build_stage_dataset(replace(requested, train={**requested.train, "steps": int(longer[1])}), pools, seed)
        nearest = re.search(r"set the share to ([\d.]+)", message)
        if nearest:
            lower = replace(requested.shares[0], amount=float(nearest[1]))
            build_stage_dataset(replace(requested, shares=(lower,)), pools, seed)
        assert longer or re.search("train longer|cannot be met: (with all|the nearest)", message)
        return
    assert len(data.order) == 4 * steps
    measured_shares = count_shares(data, data.order)
    assert abs(measured_shares["g"][unit] - amount) <= MAX_SHARE_ERROR + 1e-9
    assert data.shares["g"][unit] == pytest.approx(measured_shares["g"][unit])
    last = split_epochs(data)[-1]
    repetitions = set(count_trained(data, "d", last).values()) | (
        set() if upsample else set(count_trained(data, "g", last).values())
    )
    assert repetitions <= {1}, "no row repeats in the partial epoch"
    assert build_stage_dataset(requested, pools, seed).order == data.order


def test_beginning_of_an_epoch_meets_the_share_for_rows_of_very_different_length():
    sizes_of = [3 + 40 * (n % 5 == 0) for n in range(500)]
    pools = {
        "d": build_pool("d", [(0, size) for size in sizes_of]),
        "g": build_pool("g", [(0, 5 * size) for size in sizes_of], 1000),
    }
    share = Share(("g",), 0.1)
    for steps in (5, 20, 60):
        data = build_stage_dataset(build_stage("dg", share, steps=steps), pools, 0)
        assert abs(data.shares["g"]["loss_tokens"] - 0.1) <= MAX_SHARE_ERROR
        general = [position for position, sequence in enumerate(data.order) if data.rows.source_of(sequence[0]) == "g"]
        windows = [sum(at <= position < at + 64 for position in general) for at in range(0, 4 * steps - 63, 64)]
        assert max(windows, default=0) - min(windows, default=0) <= 2, "swapped sequences are spread evenly again"


@pytest.mark.parametrize("seed", [7, 1600, 3682])
def test_swaps_repeat_no_row_before_all_other_rows_of_its_source(seed):
    """In the last two cases a swap uses up a repetition, and later swaps must not take rows of the one before."""
    random = create_generator(seed, "repeated")
    rows, copies, single = random.randint(2, 6), random.randint(2, 4), random.randint(10, 40)
    repeated = np.arange(single + rows * copies) >= single
    turns = np.array([0] * single + [turn for turn in range(copies) for _ in range(rows)])
    sizes = [random.randint(1, 60) for _ in range(rows)] * copies
    sizes = np.array([random.randint(1, 60) for _ in range(single)] + sizes)
    selected = np.zeros(len(turns), bool)
    selected[: single // 2] = selected[single : single + random.randint(1, rows * copies - 1)] = True
    measured = np.stack([[np.where(repeated, sizes, 0)], [sizes]])
    wanted = np.array([random.uniform(0.1, 0.9)])
    partial_epoch = partial_epochs.PartialEpoch(
        measured, wanted, repeated.astype(int), turns, np.zeros((2, 1), np.int64)
    )
    rebalanced = partial_epochs.rebalance_by_swaps(selected, partial_epoch)
    assert rebalanced.sum() == selected.sum()
    assert turns[repeated & rebalanced].max(initial=0) <= turns[repeated & ~rebalanced].min(initial=copies)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("steps", [2, 3, 4, 5])
def test_swaps_keep_the_other_sources_in_proportion(steps, seed):
    random = create_generator(seed, "lengths")
    pools = {
        source: build_pool(source, [(9, random.randint(low, high)) for _ in range(count)], first)
        for source, low, high, count, first in (("a", 25, 34, 31, 0), ("b", 21, 28, 46, 1000), ("g", 21, 27, 54, 2000))
    }
    data = build_stage_dataset(build_stage("abg", Share(("g",), 0.2), steps=steps), pools, seed)
    assert abs(data.shares["g"]["loss_tokens"] - 0.2) <= MAX_SHARE_ERROR
    a, b = (sum(count_trained(data, source).values()) for source in "ab")
    assert abs(a - (a + b) * 31 / 77) <= 1.5


def test_no_swap_is_made_where_the_share_is_already_met(monkeypatch):
    pools = {"d": build_pool("d", [(0, 10)] * 90), "g": build_pool("g", [(0, 10)] * 35, 1000)}
    half_epoch = build_stage_dataset(build_stage("dg", Share(("g",), 0.1), epochs=0.5), pools, 0)
    monkeypatch.setattr("harness.data.mixing.partial_epochs.rebalance_by_swaps", lambda selected, *_: selected)
    assert build_stage_dataset(build_stage("dg", Share(("g",), 0.1), epochs=0.5), pools, 0).order == half_epoch.order


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (
            {"steps": 2},
            "stage only: 10.0 % of 'g' in rows cannot be met: the stage ends within an epoch, after 8 sequences, and "
            "the nearest share that complete rows allow is 12.5 %; set train.steps to 5, or set the share to 0.125",
        ),
        (
            {"steps": 1},
            "stage only: 10.0 % of 'g' in rows cannot be met: the stage ends within an epoch, after 4 sequences, and "
            "the nearest share that complete rows allow is 0.0 %; set train.steps to 5, or remove the share",
        ),
        (
            {"epochs": 0.07},
            "stage only: 10.0 % of 'g' in rows cannot be met: the stage ends within an epoch, after 7 sequences, and "
            "the nearest share that complete rows allow is 14.3 %; set train.epochs to 1, or set the share to 0.143",
        ),
    ],
)
def test_share_unreachable_in_few_rows_is_refused_with_remedies(more, line):
    pools = {"d": build_pool("d", [(0, 10)] * 90), "g": build_pool("g", [(0, 10)] * 35, 1000)}
    with pytest.raises(HarnessError) as caught:
        build_stage_dataset(build_stage("dg", Share(("g",), 0.1, "rows"), **more), pools, 0)
    assert str(caught.value).startswith(line)


def test_few_sequences_after_a_complete_epoch_need_not_meet_the_share_alone():
    pools = {"d": build_pool("d", [(0, 10)] * 900), "g": build_pool("g", [(0, 10)] * 350, 1000)}
    data = build_stage_dataset(build_stage("dg", Share(("g",), 0.1), steps=251), pools, 0)
    assert len(split_epochs(data)[-1]) == 4
    assert abs(data.shares["g"]["loss_tokens"] - 0.1) <= MAX_SHARE_ERROR


def test_several_shares_are_met_together_in_a_partial_epoch():
    pools = {
        s: build_pool(s, [(n % 9, 1 + (7 * n) % 50) for n in range(600)], 1000 * position)
        for position, s in enumerate("dghr")
    }
    shares = (Share(("g", "h"), 0.2, weights=(1.0, 3.0)), Share(("r",), 0.1, "tokens"))
    data = build_stage_dataset(build_stage("dghr", *shares, steps=30), pools, 3)
    assert abs(data.shares["g"]["loss_tokens"] - 0.05) <= MAX_SHARE_ERROR
    assert abs(data.shares["h"]["loss_tokens"] - 0.15) <= MAX_SHARE_ERROR
    assert abs(data.shares["r"]["tokens"] - 0.1) <= MAX_SHARE_ERROR


def test_repeats_stay_even_in_a_partial_epoch():
    pools = {
        "d": build_pool("d", [(0, 10 + n % 40) for n in range(400)]),
        "g": build_pool("g", [(0, 2 + n % 60) for n in range(40)], 1000),
    }
    data = build_stage_dataset(build_stage("dg", Share(("g",), 0.4, upsample=True), steps=60), pools, 0)
    repetitions = count_trained(data, "g").values()
    assert len(repetitions) == 40
    assert max(repetitions) - min(repetitions) <= 1
    assert abs(data.shares["g"]["loss_tokens"] - 0.4) <= MAX_SHARE_ERROR


def max_gap_without_source(
    num_sequences: int, num_with_source: int, num_sources: int, batch_size: int, packed: bool
) -> int:
    """Return the maximum number of consecutive sequences of an epoch without a source.

    Packed, it is the even distance, `num_sequences / num_with_source + num_sources - 2`. Unpacked, it is two windows of
    `batch_order.WINDOW_BATCHES` batches, because sequences move within a window to be with others of their length. The
    even distance is added where it is at least a window.

    Args:
        num_sequences: Sequences of the epoch.
        num_with_source: Sequences of the source.
        num_sources: Number of sources in the epoch.
        batch_size: Sequences of a batch.
        packed: Whether sequences are packed.
    """
    even = max(num_sequences // num_with_source + num_sources - 2, 0)
    window = batch_order.WINDOW_BATCHES * batch_size
    return even if packed else (even if even >= window else 0) + 2 * (window - 1)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abc"), st.integers(1, 150), min_size=1, max_size=3),
    st.integers(1, 6), st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_gap_without_a_source_is_within_the_bound(extra, batch_size, packing, seed):
    random = create_generator(seed, "lengths")
    members = {"d": 600, **extra}
    pools = {
        s: build_pool(s, [(random.randint(0, 9), random.randint(1, 50)) for _ in range(n)]) for s, n in members.items()
    }
    data = build_stage_dataset(
        build_stage(list(members), epochs=2, batch_size=batch_size, packing=packing), pools, seed
    )
    rarity = {source: (count, list(members).index(source)) for source, count in members.items()}
    for epoch in split_epochs(data):
        sequence_sources = [{data.rows[index].source for index in sequence} for sequence in epoch]
        rarest_sources = [min(sources, key=rarity.__getitem__) for sources in sequence_sources]
        assert sorted(index for sequence in epoch for index in sequence) == list(range(len(data.rows)))
        for source, count in Counter(rarest_sources).items():
            bound = max_gap_without_source(len(epoch), count, len(set(rarest_sources)), batch_size, packing)
            positions = [
                -1,
                *(position for position, sources in enumerate(sequence_sources) if source in sources),
                len(epoch),
            ]
            assert max(after - before - 1 for before, after in pairwise(positions)) <= bound


@pytest.mark.parametrize("packing", [False, True])
def test_without_padding_rows_are_not_grouped_by_length(packing):
    random = create_generator(0, "lengths")
    pools = {
        s: build_pool(s, [(random.randint(0, 20), random.randint(1, 60)) for _ in range(n)])
        for s, n in (("d", 400), ("g", 40))
    }
    longest = max(int(pool.lengths.max()) for pool in pools.values())
    stage = build_stage("dg", epochs=2, packing=packing)
    unpadded, padded = (build_stage_dataset(stage, pools, 0, longest_unpadded_row=longest - n) for n in (0, 1))
    assert (unpadded.is_padded, padded.is_padded) == (False, True)
    assert unpadded.efficiency == 1 > padded.efficiency
    assert Counter(unpadded.order.row_indices.tolist()) == Counter(padded.order.row_indices.tolist())
    lengths = unpadded.order.sum_sizes(unpadded.rows.lengths)
    order = batch_order.padding_efficiency(lengths, 4)
    assert order == pytest.approx(
        batch_order.padding_efficiency(lengths[shuffled_indices(len(lengths), 0, "x")], 4), abs=0.05
    )
    if not packing:
        for epoch in split_epochs(unpadded):
            positions = [n for n, (index,) in enumerate(epoch) if unpadded.rows[index].source == "g"]
            assert max(after - before for before, after in pairwise(positions)) <= 440 / 40 + 1


def test_packing_fills_sequences_and_loses_no_row():
    random = create_generator(0, "lengths")
    pools = {
        s: build_pool(s, [(random.randint(0, 20), random.randint(1, 60)) for _ in range(n)])
        for s, n in (("d", 400), ("g", 90))
    }
    data = build_stage_dataset(build_stage("dg", Share(("g",), 0.1), epochs=2, packing=True, max_length=256), pools, 0)
    filled = data.order.sum_sizes(data.rows.lengths)
    assert filled.max() <= 256
    assert data.efficiency > 0.97
    assert set(count_trained(data, "d").values()) == {2}
    assert abs(data.shares["g"]["loss_tokens"] - 0.1) <= MAX_SHARE_ERROR
    first, second = split_epochs(data)
    assert sorted(first) == sorted(second)
    assert first != second


def test_rows_of_equal_length_are_packed_across_sources():
    pools = {"d": build_pool("d", [(0, 15)] * 320), "g": build_pool("g", [(0, 15)] * 320)}
    data = build_stage_dataset(build_stage("dg", packing=True), pools, 0)
    mixed = sum(len({data.rows[index].source for index in sequence}) > 1 for sequence in data.order)
    assert mixed > 0.95 * len(data.order)


def test_batches_hold_similar_lengths_and_are_in_random_order():
    data = build_stage_dataset(
        build_stage("d", batch_size=8), {"d": build_pool("d", [(0, 1 + (37 * n) % 60) for n in range(512)])}, 0
    )
    lengths = [int(data.rows.lengths[index]) for (index,) in data.order]
    assert data.efficiency > 0.85
    longest = [max(lengths[at : at + 8]) for at in range(0, 512, 8)]
    assert longest != sorted(longest)
    assert longest != sorted(longest, reverse=True)


def test_each_window_of_batches_contains_its_share_of_a_source():
    pools = {"d": build_pool("d", [(0, 1 + n % 50) for n in range(900)]), "g": build_pool("g", [(0, 60)] * 100)}
    data = build_stage_dataset(build_stage("dg"), pools, 0)
    for at in range(0, 960, 64):
        assert abs(sum(count_trained(data, "g", data.order[at : at + 64]).values()) - 6.4) <= 2


def test_order_depends_on_the_seed_and_differs_between_epochs():
    pools = {"d": build_pool("d", [(0, 1 + n % 50) for n in range(120)])}
    data = build_stage_dataset(build_stage("d", epochs=2), pools, 0)
    assert data.order == build_stage_dataset(build_stage("d", epochs=2), pools, 0).order
    assert data.order != build_stage_dataset(build_stage("d", epochs=2), pools, 1).order
    first, second = split_epochs(data)
    assert first != second


def test_sizes_are_counted_by_source():
    rows = TokenizedRows.concatenate([build_pool("d", [(0, 10)] * 3), build_pool("g", [(4, 5)])])
    assert sizes_by_source(rows) == {
        "d": {"rows": 3, "tokens": 33, "loss_tokens": 30}, "g": {"rows": 1, "tokens": 10, "loss_tokens": 5}
    }  # fmt: skip
    assert sizes_by_source(list(rows)) == sizes_by_source(rows)
    assert sizes_by_source(rows.select(np.array([3]))).keys() == {"g"}
