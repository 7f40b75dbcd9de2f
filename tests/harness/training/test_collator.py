"""The collator builds batches token by token as expected."""

from __future__ import annotations

import torch

from harness.training.collator import Collator, pad_with_empty_sequences
from harness.types import IGNORE_INDEX, TokenizedExample

ROWS = (
    TokenizedExample("a", "s", (11, 12, 13), (IGNORE_INDEX, 12, 13)),
    TokenizedExample("b", "s", (21, 22), (21, 22)),
    TokenizedExample("c", "s", (31,), (31,)),
    TokenizedExample("d", "s", (41, 42, 43, 44), (IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX, 44)),
)


def test_single_rows_are_padded_on_the_right_and_masked():
    batch = Collator(ROWS, [(0,), (1,), (3,)], pad_id=9)([2, 1])
    assert batch["input_ids"].tolist() == [[41, 42, 43, 44], [21, 22, 9, 9]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 44], [-100, 22, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.keys() == {"input_ids", "labels", "attention_mask"}
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_packed_rows_restart_their_positions_and_never_train_their_first_token():
    batch = Collator(ROWS, [(0, 1, 2), (3,)], pad_id=9)([0, 1])
    assert batch["input_ids"].tolist() == [[11, 12, 13, 21, 22, 31], [41, 42, 43, 44, 9, 9]]
    assert batch["labels"].tolist() == [[-100, 12, 13, -100, 22, -100], [-100, -100, -100, 44, -100, -100]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 1]]
    assert batch.keys() == {"input_ids", "labels", "position_ids"}


def test_flattened_sequences_form_one_line_without_padding():
    batch = Collator(ROWS, [(0, 1, 2), (3,), ()], pad_id=9, flatten=True)([1, 0, 2])
    assert batch["input_ids"].tolist() == [[41, 42, 43, 44, 11, 12, 13, 21, 22, 31]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 44, -100, 12, 13, -100, 22, -100]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1, 0]]
    assert Collator(ROWS, [(0, 1), ()], pad_id=9, flatten=True)([1])["input_ids"].tolist() == [[9]]
    single_rows = Collator(ROWS, [(0,), (3,)], pad_id=9, flatten=True)([0, 1])
    assert single_rows["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3]], "single rows are one line too"


def test_trained_tokens_of_a_batch_are_those_of_its_rows():
    for sequences in ([(0,), (1,), (2,), (3,)], [(0, 1, 2, 3)]):
        batch = Collator(ROWS, sequences, pad_id=9)(list(range(len(sequences))))
        assert int((batch["labels"] != IGNORE_INDEX).sum()) == sum(row.loss_tokens for row in ROWS)


def test_padding_completes_the_last_batch_with_sequences_that_train_nothing():
    sequences = pad_with_empty_sequences([(0,), (1,), (2,)], 4)
    assert list(sequences) == [(0,), (1,), (2,), ()]
    assert list(pad_with_empty_sequences([(0,), (1,)], 2)) == [(0,), (1,)]
    batch = Collator(ROWS, sequences, pad_id=9)([2, 3])
    assert batch["labels"][1].tolist() == [IGNORE_INDEX]
    assert batch["attention_mask"][1].tolist() == [1], "the softmax of a line without a visible token is undefined"
