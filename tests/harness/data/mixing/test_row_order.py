"""Rows in the order of their keys: within each source, with the shares held at every point."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from harness_modes.curriculum import CurriculumMode

from harness.data.mixing.batch_order import interleave_sources
from harness.data.mixing.row_choice import choose_rows
from harness.data.mixing.stage_layout import build_stage_dataset
from harness.data.tokenization.tokenize import TokenizedCorpus
from harness.data.tokenization.tokenized_rows import TokenizedRows
from harness.errors import HarnessError
from harness.interfaces.mode import Mode
from harness.types import Example, Share, SourceRows, Stage, StageSource, TokenizedExample

TRAIN = {"epochs": 1, "steps": None, "batch_size": 4, "accumulation": 1, "packing": False, "max_length": 128}
SOURCES = (StageSource("desk", "domain"), StageSource("chat", "general"))
OPTIONS = {"by": "tokens", "column": None, "descending": False, "fraction": 1}


class NoExamples:
    """Conversations that must not be read."""

    def select(self, indices):
        return ()


def build_corpus(source, lengths, first=0):
    rows = TokenizedRows.from_rows(
        TokenizedExample(f"{first + n:016x}", source, (1,) * length, (-100,) + (1,) * (length - 1))
        for n, length in enumerate(lengths)
    )
    return TokenizedCorpus(rows, np.arange(len(rows)), np.zeros(len(rows)), 0)


def build(mode, *shares, desk, chat=(), seed=0, longest_unpadded_row=0, **train):
    sources = SOURCES if chat else SOURCES[:1]
    stage = Stage("only", sources, {**TRAIN, **train}, shares)
    corpora = {"desk": build_corpus("desk", desk)} | ({"chat": build_corpus("chat", chat, 1000)} if chat else {})
    pools, keys = choose_rows(mode, stage, corpora, dict.fromkeys(corpora, NoExamples()))
    return build_stage_dataset(stage, pools, seed, 1, longest_unpadded_row, keys)


def lengths_in_order(data, source="desk"):
    rows = [data.rows[index] for sequence in data.order for index in sequence]
    return [len(row.input_ids) for row in rows if row.source == source]


LENGTHS = [int(length) for length in np.random.default_rng(1).integers(3, 60, 40)]


@pytest.mark.parametrize("longest_unpadded_row", [0, 128], ids=["padded", "unpadded"])
@pytest.mark.parametrize("descending", [False, True])
def test_rows_are_trained_in_the_order_of_their_length_in_every_epoch(descending, longest_unpadded_row):
    mode = CurriculumMode(domain=["desk"], general=[], **OPTIONS | {"descending": descending})
    data = build(mode, desk=LENGTHS, epochs=2, longest_unpadded_row=longest_unpadded_row)
    assert lengths_in_order(data) == 2 * sorted(LENGTHS, reverse=descending)
    first, second = data.order[:40], data.order[40:]
    assert first != second, "rows of equal length are in random order"


def test_general_rows_stay_random_and_evenly_spread():
    mode = CurriculumMode(domain=["desk"], general=["chat"], **OPTIONS)
    data = build(mode, Share(("chat",), 0.2, "rows"), desk=LENGTHS, chat=LENGTHS)
    assert lengths_in_order(data) == sorted(LENGTHS)
    assert lengths_in_order(data, "chat") != sorted(lengths_in_order(data, "chat"))
    is_chat = [data.rows[index].source == "chat" for (index,) in data.order]
    assert sum(is_chat) == 10
    for half in (is_chat[:25], is_chat[25:]):
        assert sum(half) == pytest.approx(5, abs=1)


def test_a_fraction_keeps_the_first_rows_of_the_order():
    mode = CurriculumMode(domain=["desk"], general=[], **OPTIONS | {"fraction": 0.25, "descending": True})
    assert lengths_in_order(build(mode, desk=LENGTHS)) == sorted(LENGTHS, reverse=True)[:10]


def test_a_stage_that_ends_within_an_epoch_has_the_first_rows():
    mode = CurriculumMode(domain=["desk"], general=[], **OPTIONS)
    assert lengths_in_order(build(mode, desk=LENGTHS, steps=3)) == sorted(LENGTHS)[:12]


def test_the_order_of_a_mode_that_orders_nothing_is_unchanged():
    data = build(Mode(), desk=LENGTHS, chat=LENGTHS)
    stage = Stage("only", SOURCES, TRAIN)
    pools = {"desk": build_corpus("desk", LENGTHS).rows, "chat": build_corpus("chat", LENGTHS, 1000).rows}
    plain = build_stage_dataset(stage, pools, 0)
    assert (data.order, data.rows) == (plain.order, plain.rows)


def test_upsampled_rows_are_ordered_within_each_repetition():
    order = interleave_sources(
        np.zeros(6, int), 0, "test", repeat_indices=np.array([0, 0, 0, 1, 1, 1]), keys=np.array([3, 1, 2, 3, 1, 2])
    )
    assert order.tolist() == [1, 2, 0, 4, 5, 3]


def test_packing_an_ordered_stage_is_refused():
    mode = CurriculumMode(domain=["desk"], general=[], **OPTIONS)
    with pytest.raises(HarnessError, match="the mode orders the rows, but packing"):
        build(mode, desk=LENGTHS, packing=True)


def test_selecting_no_row_of_a_source_is_refused():
    class Nothing(Mode):
        def select(self, stage, rows):
            return [False] * len(rows)

    with pytest.raises(HarnessError, match="the mode selects none of the 40 rows of 'desk'"):
        build(Nothing(), desk=LENGTHS)


def test_a_column_needs_a_name():
    with pytest.raises(HarnessError, match="'by' is 'column', but no column is named"):
        CurriculumMode(domain=["desk"], general=[], **OPTIONS | {"by": "column"})


def test_rows_are_ordered_by_a_column_of_numbers_and_a_row_without_one_is_named():
    mode = CurriculumMode(domain=["desk"], general=[], **OPTIONS | {"by": "column", "column": "level"})

    def rows(*levels):
        examples = [Example(f"{n}", (), f"desk.jsonl:{n + 1}", data={"level": level}) for n, level in enumerate(levels)]
        return SourceRows("desk", [1] * len(levels), [1] * len(levels), examples)

    stage = mode.stages()[0]
    assert mode.order(stage, rows(3, 1.5, 2)) == [3, 1.5, 2]
    with pytest.raises(HarnessError, match=r"desk\.jsonl:2: the column 'level' is None, not a number; add 'level' to"):
        mode.order(stage, rows(3, None))


@pytest.mark.parametrize(("longest_unpadded_row", "is_padded"), [(0, True), (128, False)])
def test_ordered_rows_are_padded_where_the_model_needs_it_although_they_are_not_grouped(
    longest_unpadded_row, is_padded
):
    data = build(
        CurriculumMode(domain=["desk"], general=[], **OPTIONS), desk=LENGTHS, longest_unpadded_row=longest_unpadded_row
    )
    assert data.is_padded is is_padded
    assert (data.efficiency < 1) is is_padded


class CountedRows(Sequence):
    """Conversations with a column, which count how often one is read."""

    def __init__(self, values):
        self.values, self.reads = values, []

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        example = Example(f"{index:016x}", (), f"desk.jsonl:{index}", data={"level": self.values[index]})
        self.reads.append(index)
        return example


def test_a_selected_fraction_is_ordered_without_reading_its_rows_again():
    mode = CurriculumMode(domain=["desk"], general=[], **OPTIONS | {"by": "column", "column": "level", "fraction": 0.5})
    stage, rows = Stage("only", SOURCES[:1]), CountedRows([3, 1, 2, 0])
    assert mode.select(stage, SourceRows("desk", [1] * 4, [1] * 4, rows)) == [False, True, False, True]
    selected = CountedRows([1, 0])
    assert mode.order(stage, SourceRows("desk", [1] * 2, [1] * 2, selected)) == [1, 0]
    assert (rows.reads, selected.reads) == ([0, 1, 2, 3], [])
    assert mode.order(stage, SourceRows("desk", [1] * 2, [1] * 2, selected)) == [1, 0]
    assert selected.reads == [0, 1]
