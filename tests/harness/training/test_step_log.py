"""Entries, epochs and tokens of a stage's log."""

from __future__ import annotations

import pytest

from harness.training.step_log import StepLog
from harness.training.train_stage import no_step_callback
from harness.types import no_progress


@pytest.fixture
def log(make_stage):
    data = make_stage(order=[(0,), (1,), (2, 3), (4,), (5,), (0,), (1,), (2, 3), (4,), (5,)], epoch_ends=(5, 10))
    return data, StepLog(data, 2, 5, 2, no_progress, no_step_callback)


def test_epoch_counts_slots_within_its_pass(log):
    _, written = log
    assert [written.epoch_at(step) for step in range(6)] == [0, 0.4, 0.8, 1.2, 1.6, 2.0]


def test_tokens_are_those_of_the_rows_without_padding(log):
    data, written = log
    lengths = [len(row.input_ids) for row in data.rows]
    assert written.tokens_until(1) == lengths[0] + lengths[1]
    assert written.tokens_until(5) == written.tokens_until(9) == 2 * sum(lengths[:6])


def test_entries_average_what_came_since_the_last(log):
    _, written = log
    written.start()
    for loss, penalty in [(4.0, None), (2.0, 5.0), (1.0, 3.0), (3.0, 1.0), (8.0, 2.0)]:
        values = {"loss": loss, "grad_norm": 2 * loss} | ({} if penalty is None else {"penalty/p": penalty})
        written.log_step(0.1, values)
    assert [entry["step"] for entry in written.entries] == [2, 4, 5]
    assert [entry["loss"] for entry in written.entries] == [3.0, 2.0, 8.0]
    assert [entry["grad_norm"] for entry in written.entries] == [6.0, 4.0, 16.0]
    assert [entry["penalty/p"] for entry in written.entries] == [5.0, 2.0, 2.0]
    assert all(entry["tokens_per_second"] > 0 for entry in written.entries)


def test_final_loss_is_of_one_update_at_least(log):
    _, written = log
    for loss in (5.0, 4.0, 3.0):
        written.log_step(0.1, {"loss": loss})
    assert written.final_loss() == 3.0
