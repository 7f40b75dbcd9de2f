"""Checkpoints and evaluations are due every n steps or every n epochs."""

from __future__ import annotations

import pytest

from harness.training.stage_schedule import checkpoint_steps, evaluation_steps, saves_checkpoints


@pytest.mark.parametrize(
    ("save_steps", "steps", "expected"),
    [(None, 6, ()), (4, 6, (4, 6)), (3, 6, (3, 6)), (9, 6, (6,)), (1, 2, (1, 2))],
)
def test_checkpoints_are_due_every_few_steps_and_at_the_end(make_stage, make_rows, save_steps, steps, expected):
    data = make_stage(make_rows(steps), batch_size=1, save_steps=save_steps)
    assert checkpoint_steps(data) == expected
    assert saves_checkpoints(data.stage.train) is (save_steps is not None)


@pytest.mark.parametrize(
    ("epochs", "batch_size", "processes", "expected"),
    [
        (1, 1, 1, (10, 20)),
        (0.5, 1, 1, (5, 10, 15, 20)),
        (2, 1, 1, (20,)),
        (1, 4, 1, (3, 5)),  # the epoch ends within the third step
        (1, 2, 2, (3, 5)),
        (3, 1, 1, ()),
    ],
)
def test_evaluations_are_due_at_fractions_of_epochs(make_stage, make_rows, epochs, batch_size, processes, expected):
    rows = make_rows(10)
    order = [(index,) for index in range(10)] * 2
    data = make_stage(rows, order, epoch_ends=(10, 20), batch_size=batch_size, evaluate_epochs=epochs)
    assert evaluation_steps(data, processes) == expected


def test_an_epoch_that_is_cut_short_is_not_due(make_stage, make_rows):
    order = [(index,) for index in range(10)] + [(index,) for index in range(4)]
    data = make_stage(make_rows(10), order, epoch_ends=(10, 20), batch_size=1, evaluate_epochs=1, save_epochs=1)
    assert evaluation_steps(data) == (10,)
    assert checkpoint_steps(data) == (10, 14)
