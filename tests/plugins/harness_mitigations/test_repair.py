"""Repair: one repair by hand, what triggers it, its limit, its memory, and its state."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from harness_mitigations.repair import Repair, pull_weights

from harness import SuiteScores
from harness.errors import HarnessError
from harness.types import Stage

STAGE = Stage("one", (), {"evaluate_steps": 1})


def scores_of(start, now, *, higher=True, role="general", margin=0.1):
    return SuiteScores(role, "score", {"score": start}, {"score": now}, {"score": higher}, margin)


def make_repair(**options):
    return Repair(**{"suites": None, "tolerance": 0.02, "pull": 0.5, "max_repairs": None, "place": "device", **options})


def weights_of(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


@pytest.fixture
def moved_model():
    """A model with one frozen weight, and the function that moves its trainable weights."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    model[0].bias.requires_grad_(False)

    def move(seed=1):
        torch.manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.add_(torch.randn_like(weight))

    return model, move


@pytest.mark.parametrize("place", ["device", "cpu"])
@pytest.mark.parametrize("pull", [0.25, 0.5, 0.9])
def test_a_repair_is_the_interpolation_towards_the_start_of_the_stage(moved_model, pull, place):
    model, move = moved_model
    repair, start = make_repair(pull=pull, place=place), weights_of(model)
    repair.on_stage_start(STAGE, model, {}, seed=0)
    move()
    before = weights_of(model)
    stats = repair.on_evaluation(STAGE, model, {"general": scores_of(0.5, 0.4)})
    for name, weight in weights_of(model).items():
        assert torch.allclose(weight, before[name] + pull * (start[name] - before[name]), atol=1e-6)
    assert not torch.equal(model[1].weight, before["1.weight"])
    squares = sum(float((before[name] - start[name]).square().sum()) for name in start)
    assert stats == {"pulls": 1, "distance": pytest.approx(math.sqrt(squares), rel=1e-5), "triggered.general": 1.0}


def test_a_pull_of_one_gives_the_start_bit_for_bit_and_frozen_weights_never_move(moved_model):
    model, move = moved_model
    repair, start = make_repair(pull=1), weights_of(model)
    repair.on_stage_start(STAGE, model, {}, seed=0)
    move()
    with torch.no_grad():
        model[0].bias.fill_(7.0)  # frozen, so it is not part of the start
    repair.on_evaluation(STAGE, model, {"general": scores_of(0.5, 0.0)})
    assert bool((model[0].bias == 7.0).all())
    assert all(torch.equal(weight, start[name]) for name, weight in weights_of(model).items() if name != "0.bias")


def test_weights_of_16_bits_are_moved_in_place():
    weight, start = torch.full((2,), 3.0, dtype=torch.bfloat16), torch.ones(2)
    assert pull_weights([weight], [start], 0.5) == pytest.approx(math.sqrt(8))
    assert weight.tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    ("start", "now", "higher", "repairs"),
    [
        (0.5, 0.49, True, 0),  # within the tolerance
        (0.5, 0.9, True, 0),  # better
        (0.5, 0.47, True, 1),
        (2.0, 2.01, False, 0),
        (2.0, 1.0, False, 0),  # better
        (2.0, 2.03, False, 1),
        (2.0, math.inf, False, 1),
        (0.5, math.nan, True, 1),
        (math.nan, 0.1, True, 0),  # nothing to compare with
        (math.inf, 5.0, False, 0),
    ],
)
def test_a_score_triggers_a_repair_if_it_is_worse_by_more_than_the_tolerance(moved_model, start, now, higher, repairs):
    model, move = moved_model
    repair = make_repair()
    repair.on_stage_start(STAGE, model, {}, seed=0)
    move()
    before = weights_of(model)
    stats = repair.on_evaluation(STAGE, model, {"general": scores_of(start, now, higher=higher)})
    assert stats["pulls"] == repairs
    unchanged = all(torch.equal(weight, before[name]) for name, weight in weights_of(model).items())
    assert unchanged is (repairs == 0)


def test_without_a_tolerance_the_margin_of_the_suite_counts(moved_model):
    model, _ = moved_model
    repair = make_repair(tolerance=None)
    repair.on_stage_start(STAGE, model, {}, seed=0)
    assert repair.on_evaluation(STAGE, model, {"general": scores_of(0.5, 0.45, margin=0.1)}) == {"pulls": 0}
    assert repair.on_evaluation(STAGE, model, {"general": scores_of(0.5, 0.45, margin=0.01)})["pulls"] == 1


def test_the_named_suites_are_monitored_or_else_the_general_ones_that_are_measured(moved_model):
    model, _ = moved_model
    unmeasured = SuiteScores("general", None, {}, {}, {}, None)
    scores = {"desk": scores_of(0.5, 0.1, role="domain"), "general": scores_of(0.5, 0.5), "code": unmeasured}
    repair, named = make_repair(), make_repair(suites=["general", "desk"])
    for mitigation in (repair, named):
        mitigation.on_stage_start(STAGE, model, {}, seed=0)
    assert repair.monitored_suites is None
    assert repair.on_evaluation(STAGE, model, scores) == {"pulls": 0}
    assert tuple(named.monitored_suites) == ("general", "desk")
    assert named.on_evaluation(STAGE, model, scores) == {"pulls": 1, "distance": 0.0, "triggered.desk": 1.0}


def test_a_stage_has_at_most_max_repairs_and_the_next_stage_counts_again(moved_model):
    model, move = moved_model
    repair, worse = make_repair(max_repairs=2), {"general": scores_of(0.5, 0.1)}
    for _ in range(2):
        repair.on_stage_start(STAGE, model, {}, seed=0)
        pulls = []
        for seed in range(4):
            move(seed)
            before = weights_of(model)
            pulls.append(repair.on_evaluation(STAGE, model, worse)["pulls"])
            changed = not torch.equal(model[1].weight, before["1.weight"])
            assert changed is (seed < 2)
        assert pulls == [1, 2, 2, 2]
        repair.on_stage_end(STAGE, model, ())


def test_a_restored_instance_repairs_like_the_original(moved_model):
    model, move = moved_model
    original, restored = make_repair(max_repairs=2), make_repair(max_repairs=2)
    original.on_stage_start(STAGE, model, {}, seed=0)
    worse = {"general": scores_of(0.5, 0.1)}
    move()
    original.on_evaluation(STAGE, model, worse)
    state = copy.deepcopy(original.state_dict())
    move(2)
    other = copy.deepcopy(model)
    restored.on_stage_start(STAGE, other, {}, seed=0)
    restored.load_state_dict(state)
    for _ in range(2):
        assert original.on_evaluation(STAGE, model, worse) == restored.on_evaluation(STAGE, other, worse)
    ours, theirs = weights_of(model), weights_of(other)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_held_bytes_are_those_of_the_stored_start(moved_model):
    model, _ = moved_model
    repair = make_repair()
    repair.on_stage_start(STAGE, model, {}, seed=0)
    stored = sum(tensor.numel() * tensor.element_size() for tensor in repair.state_dict()["start"].values())
    assert repair.held_bytes(model, itemsize=2) == stored == 4 * (12 + 8 + 2)
    assert make_repair(place="cpu").held_bytes(model, itemsize=2) == 0
    repair.on_stage_end(STAGE, model, ())
    assert repair.state_dict() == {"start": {}, "repairs": 0}


def test_an_adapter_that_begins_elsewhere_is_an_error_of_the_spec():
    with pytest.raises(HarnessError, match="'merged_lora' a stage begins at other weights"):
        make_repair().check_compatible({"merged_lora": make_repair()})
    make_repair().check_compatible({"lora": make_repair()})
