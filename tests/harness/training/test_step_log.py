"""The log of a stage: entries, epochs and tokens."""

from __future__ import annotations

import pytest

from harness.training.step_log import StepLog
from harness.training.train_stage import no_step_callback
from harness.types import no_progress


@pytest.fixture
def log(make_stage):
    data = make_stage(order=[(0,), (1,), (2, 3), (4,), (5,), (0,), (1,), (2, 3), (4,), (5,)], epoch_ends=(5, 10))
    return data, StepLog(data, 2, 5, 2, no_progress, no_step_callback)


def test_epoch_counts_sequences_within_its_pass(log):
    _, step_log = log
    assert [step_log.epoch_at(step) for step in range(6)] == [0, 0.4, 0.8, 1.2, 1.6, 2.0]


def test_tokens_are_those_of_the_rows_without_padding(log):
    data, step_log = log
    lengths = [len(row.input_ids) for row in data.rows]
    assert step_log.tokens_until(1) == lengths[0] + lengths[1]
    assert step_log.tokens_until(5) == step_log.tokens_until(9) == 2 * sum(lengths[:6])


def test_entries_average_the_steps_since_the_last_entry(log):
    _, step_log = log
    step_log.start()
    for loss, penalty in [(4.0, None), (2.0, 5.0), (1.0, 3.0), (3.0, 1.0), (8.0, 2.0)]:
        metrics = {"loss": loss, "grad_norm": 2 * loss} | ({} if penalty is None else {"penalty/p": penalty})
        step_log.log_step(0.1, metrics)
    assert [entry["step"] for entry in step_log.entries] == [2, 4, 5]
    assert [entry["loss"] for entry in step_log.entries] == [3.0, 2.0, 8.0]
    assert [entry["grad_norm"] for entry in step_log.entries] == [6.0, 4.0, 16.0]
    assert [entry["penalty/p"] for entry in step_log.entries] == [5.0, 2.0, 2.0]
    assert all(entry["tokens_per_second"] > 0 for entry in step_log.entries)


def test_final_loss_is_of_at_least_one_step(log):
    _, step_log = log
    for loss in (5.0, 4.0, 3.0):
        step_log.log_step(0.1, {"loss": loss})
    assert step_log.final_loss() == 3.0


def test_a_resumed_stage_counts_the_seconds_up_to_its_checkpoint(log):
    data, step_log = log
    step_log.load_state_dict({**step_log.state_dict(), "seconds": 100.0})
    assert 100 < step_log.seconds < 110
    resumed = StepLog(data, 2, 5, 2, no_progress, no_step_callback)
    resumed.load_state_dict(step_log.state_dict())
    assert 100 < resumed.seconds < 110
