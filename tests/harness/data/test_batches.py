from collections import Counter
from itertools import groupby, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.contracts import Row, Stage
from harness.data.batches import WINDOW, efficiency, longest_stretch, order, spread
from harness.seeds import generator


def rows(counts, seed=0):
    random = generator(seed, "lengths")
    return tuple(
        Row(f"{source}{n}", source, (1,) * (length := random.randint(2, 60)), (-100,) + (1,) * (length - 1))
        for source, count in counts.items()
        for n in range(count)
    )


def stage(epochs=1.0, steps=None, batch_size=4, accumulation=1, packing=False, max_length=64):
    return Stage("only", (), {
        "epochs": epochs, "steps": steps, "batch_size": batch_size, "accumulation": accumulation,
        "packing": packing, "max_length": max_length,
    })  # fmt: skip


def epochs(laid):
    return [laid.slots[a:b] for a, b in pairwise([0, *laid.epoch_ends])]


def stretches(sources, wanted):
    """Lengths of the runs of slots without the source."""
    return [len(list(run)) for without, run in groupby(sources, lambda here: wanted not in here) if without]


counts = st.dictionaries(st.sampled_from("abc"), st.integers(1, 150), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(counts, st.integers(1, 3), st.integers(1, 9), st.booleans(), st.integers(0, 99))
def test_every_row_stands_once_in_every_epoch(counts, passes, batch_size, packing, seed):
    data = rows(counts)
    laid = order(stage(epochs=passes, batch_size=batch_size, packing=packing), data, seed)
    assert len(laid.epoch_ends) == passes
    assert laid.epoch_ends[-1] == len(laid.slots)
    for epoch in epochs(laid):
        assert sorted(index for slot in epoch for index in slot) == list(range(len(data)))
    for slot in laid.slots:
        assert sum(len(data[index].input_ids) for index in slot) <= 64
        assert packing or len(slot) == 1


@settings(max_examples=80, deadline=None)
@given(counts, st.integers(1, 6), st.booleans(), st.integers(0, 99))
def test_no_stretch_of_an_epoch_is_without_a_source_for_longer_than_the_bound(counts, batch_size, packing, seed):
    counts = {"domain": 900, **counts}
    data = rows(counts)
    for epoch in epochs(order(stage(epochs=2, batch_size=batch_size, packing=packing), data, seed)):
        inside = [{data[index].source for index in slot} for slot in epoch]
        # Packed, the bound holds for the rarest source: the others may share their slots with it.
        for source in counts if not packing else [min(counts, key=lambda name: (counts[name], name))]:
            having = sum(source in here for here in inside)
            bound = longest_stretch(len(epoch), having, len(counts), batch_size)
            assert max(stretches(inside, source), default=0) <= bound


@settings(max_examples=60, deadline=None)
@given(counts, st.integers(0, 99))
def test_before_they_are_grouped_by_length_slots_of_a_kind_stand_at_even_distances(counts, seed):
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    spaced = spread(kinds, generator(seed, "x"))
    assert sorted(spaced) == list(range(len(kinds)))
    for kind, count in counts.items():
        longest = max(stretches([{kinds[slot]} for slot in spaced], kind), default=0)
        assert longest <= max(len(kinds) / count + len(counts) - 2, 0)


def test_each_window_of_batches_has_its_share_of_a_source():
    data = rows({"domain": 900, "general": 100})
    laid = order(stage(batch_size=4), data, 0)
    for at in range(0, 960, 4 * WINDOW):
        general = sum(data[slot[0]].source == "general" for slot in laid.slots[at : at + 4 * WINDOW])
        assert abs(general - 0.1 * 4 * WINDOW) <= 2


def test_the_order_is_the_seeds_and_each_epoch_has_its_own():
    data = rows({"a": 100, "b": 20})
    laid = order(stage(epochs=2), data, 0)
    assert laid == order(stage(epochs=2), data, 0)
    assert laid.slots != order(stage(epochs=2), data, 1).slots
    first, second = epochs(laid)
    assert first != second


@pytest.mark.parametrize(
    ("passes", "slots", "ends"),
    [(0.25, 25, (100,)), (1.5, 150, (100, 200)), (2, 200, (100, 200)), (0.0001, 1, (100,)), (0.996, 100, (100,))],
)
def test_a_fraction_of_an_epoch_is_whole_slots_and_one_at_least(passes, slots, ends):
    laid = order(stage(epochs=passes), rows({"a": 100}), 0)
    assert len(laid.slots) == slots
    assert laid.epoch_ends == ends
    whole = slots // 100 * 100
    assert laid.slots[:whole] == order(stage(epochs=2), rows({"a": 100}), 0).slots[:whole]
    assert len(set(laid.slots[whole:])) == slots - whole, "no row stands twice in the part of an epoch"


def test_steps_set_the_number_of_slots_exactly_over_as_many_epochs_as_that_takes():
    laid = order(stage(steps=7, batch_size=3, accumulation=2), rows({"a": 10}), 0)
    assert len(laid.slots) == 42
    assert laid.epoch_ends == (10, 20, 30, 40, 50)
    assert set(Counter(index for (index,) in laid.slots).values()) == {4, 5}


def test_rows_of_similar_length_share_a_batch_and_long_batches_stand_anywhere():
    data = rows({"a": 512})
    laid = order(stage(batch_size=8), data, 0)
    lengths = [len(data[slot[0]].input_ids) for slot in laid.slots]
    assert laid.efficiency == efficiency(lengths, 8) > 0.85 > efficiency([len(row.input_ids) for row in data], 8)
    longest = [max(lengths[at : at + 8]) for at in range(0, 512, 8)]
    assert longest != sorted(longest)
    assert longest != sorted(longest, reverse=True)


def test_efficiency_counts_the_padding_of_batches():
    assert efficiency([4, 2, 3], 2) == 9 / (4 + 4 + 3)


def test_packed_slots_are_nearly_full():
    laid = order(stage(packing=True, max_length=256, batch_size=1), rows({"a": 400}), 0)
    assert len(laid.slots) < 0.3 * 400
    assert laid.efficiency > 0.98


@pytest.mark.parametrize("steps", [1, 3, 10, 17])
def test_a_stage_that_ends_within_an_epoch_keeps_the_sources_in_proportion(steps):
    data = rows({"a": 180, "b": 20})
    laid = order(stage(steps=steps, batch_size=10), data, seed=0)
    assert len(laid.slots) == 10 * steps
    having = sum(data[index].source == "b" for slot in laid.slots for index in slot)
    assert abs(having - steps) <= 1, "a tenth of the rows are of b, however few are walked"
