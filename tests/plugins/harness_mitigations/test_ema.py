"""EMA: its closed form, its use at the end of a stage, and its state."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from harness_mitigations.ema import Ema, ema_fraction, update_average

from harness.errors import HarnessError, RunError
from harness.interfaces.mitigation import Mitigation
from harness.types import Stage


class WeightRecorder(Mitigation):
    """Record the weights after each step."""

    def __init__(self):
        self.weights = []

    def on_step_end(self, model, learning_rate):
        assert learning_rate == 1e-2
        self.weights.append({name: weight.detach().clone() for name, weight in model.named_parameters()})


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.999])
def test_average_is_the_weighted_mean_of_the_weights_after_each_step(decay):
    torch.manual_seed(0)
    visited = [torch.randn(3, 4) for _ in range(7)]
    average = visited[0].clone()
    for number, weights in enumerate(visited[1:], start=2):
        update_average([average], [weights], ema_fraction(decay, number))
    shares = torch.tensor([decay ** (6 - t) for t in range(7)]).double()
    expected = sum(share * weights.double() for share, weights in zip(shares / shares.sum(), visited, strict=True))
    assert torch.allclose(average.double(), expected, atol=1e-6)


def test_a_stage_ends_with_its_average_and_the_next_stage_resets_it(run_stages, make_rows, tiny_model):
    visited = WeightRecorder()
    ends = []
    run_stages(
        tiny_model,
        {"ema": Ema(decay=0.5, last=None), "visited": visited},
        [make_rows(12), make_rows(8, 1)],
        watch=lambda number, m: ends.append({n: w.detach().clone() for n, w in m.named_parameters()}),
    )
    assert len(visited.weights) == 5
    first, second = visited.weights[:3], visited.weights[3:]
    for name in first[0]:
        one = (0.25 * first[0][name] + 0.5 * first[1][name] + first[2][name]) / 1.75
        two = (0.5 * second[0][name] + second[1][name]) / 1.5
        assert torch.allclose(ends[1][name], one, atol=1e-6)
        assert torch.allclose(ends[3][name], two, atol=1e-6)


def test_averaging_does_not_change_the_losses(run_stages, make_rows, tiny_model):
    logs = [
        run_stages(copy.deepcopy(tiny_model), given, [make_rows(12)])[1]
        for given in ({}, {"ema": Ema(decay=0.9, last=None)})
    ]
    assert [[entry["loss"] for entry in log] for log in logs[0]] == [[e["loss"] for e in log] for log in logs[1]]


def test_decay_zero_gives_the_last_weights_bit_for_bit(run_stages, make_rows, tiny_model):
    plain, _ = run_stages(copy.deepcopy(tiny_model), {}, [make_rows(12)])
    averaged, _ = run_stages(copy.deepcopy(tiny_model), {"ema": Ema(decay=0.0, last=None)}, [make_rows(12)])
    for one, two in zip(plain.parameters(), averaged.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_restored_average_continues_like_the_original(tiny_model):
    def perturb(model, seed):
        torch.manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight))

    stage, original, restored = Stage("one", ()), Ema(decay=0.8, last=None), Ema(decay=0.8, last=None)
    original.on_stage_start(stage, tiny_model, {}, seed=0)
    for seed in range(4):
        perturb(tiny_model, seed)
        original.on_step_end(tiny_model, 1e-3)
        if seed == 1:
            state = copy.deepcopy(original.state_dict())
            restored.on_stage_start(stage, tiny_model, {}, seed=0)
            restored.load_state_dict(state)
        elif seed > 1:
            restored.on_step_end(tiny_model, 1e-3)
    original_state, restored_state = original.state_dict(), restored.state_dict()
    assert original_state["updates"] == restored_state["updates"] == 4
    assert all(
        torch.equal(original_state["average"][name], restored_state["average"][name])
        for name in original_state["average"]
    )


class AverageOfSaves(Ema):
    """The mean of the last two checkpoints of a stage that writes them after given steps."""

    def __init__(self, *saves):
        super().__init__(decay=0.9, last=2)
        self.saves = saves

    def on_stage_start(self, stage, model, rows, *, seed):
        super().on_stage_start(replace(stage, planned_saves=self.saves), model, rows, seed=seed)


def test_a_stage_ends_with_the_mean_of_its_last_checkpoints(run_stages, make_rows, tiny_model):
    visited, ends = WeightRecorder(), []
    run_stages(
        tiny_model,
        {"ema": AverageOfSaves(1, 3, 4), "visited": visited},
        [make_rows(16), make_rows(16, 1)],
        watch=lambda number, m: ends.append({n: w.detach().clone() for n, w in m.named_parameters()}),
    )
    assert len(visited.weights) == 8
    for name in ends[0]:
        for end, steps in ((ends[1], visited.weights[:4]), (ends[3], visited.weights[4:])):
            assert torch.allclose(end[name], (steps[2][name] + steps[3][name]) / 2, atol=1e-6)


def test_a_restored_mean_of_checkpoints_continues_like_the_original(tiny_model):
    stage = Stage("one", (), planned_saves=(2, 4, 6))
    original, restored = Ema(decay=0.9, last=2), Ema(decay=0.9, last=2)
    original.on_stage_start(stage, tiny_model, {}, seed=0)
    restored.on_stage_start(stage, tiny_model, {}, seed=0)
    ends = []
    for step in range(1, 7):
        with torch.no_grad():
            for weight in tiny_model.parameters():
                weight.fill_(step)
        original.on_step_end(tiny_model, 1e-3)
        if step == 4:
            restored.load_state_dict(copy.deepcopy(original.state_dict()))
        elif step > 4:
            restored.on_step_end(tiny_model, 1e-3)
    for ema in (original, restored):
        ema.on_stage_end(stage, tiny_model, ())
        ends.append([weight.clone() for weight in tiny_model.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*ends, strict=True))
    assert all(bool((weight == 5.0).all()) for weight in ends[0])


def test_fewer_checkpoints_than_asked_for_are_a_warning(tiny_model):
    stage = Stage("one", (), planned_saves=(5,))
    with pytest.warns(UserWarning, match="ema.last is 2, but the stage 'one' writes 1 checkpoints"):
        Ema(decay=0.9, last=2).on_stage_start(stage, tiny_model, {}, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Ema(decay=0.9, last=1).on_stage_start(stage, tiny_model, {}, seed=0)


@pytest.mark.parametrize(
    ("train", "what"),
    [
        ({}, "writes no checkpoints to average; set train.save_steps or train.save_epochs"),
        ({"save_steps": 2, "early_stopping": {"patience": 2}}, "'one' has early stopping"),
    ],
)
def test_a_stage_whose_last_checkpoints_are_not_known_is_an_error_of_the_spec(train, what):
    with pytest.raises(HarnessError) as error:
        Ema(decay=0.9, last=2).check_stage(Stage("one", (), train))
    assert what in f"{error.value.what}; {error.value.hint}"
    Ema(decay=0.9, last=None).check_stage(Stage("one", (), train))
    Ema(decay=0.9, last=2).check_stage(Stage("one", (), {"save_epochs": 1, "early_stopping": None}))


def test_a_state_of_an_earlier_version_is_one_clear_line():
    with pytest.raises(RunError) as error:
        Ema(decay=0.9, last=None).load_state_dict({"average": {}, "updates": 3})
    (line,) = error.value.lines()
    assert line.startswith("mitigations.ema: the checkpoint is of an earlier version of ema; train the stage again")
