"""A stop check does not affect training, and ends the stage when it returns true."""

from __future__ import annotations

import copy
import random
import signal

import numpy as np
import pytest
import torch

from harness.training import checkpoint
from harness.training.checkpoint import complete_checkpoints
from harness.training.stage_trainer import StageTrainer
from harness.utils import stop_signals


def weights(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def weights_are_equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def model_with_dropout(tiny_model):
    """A model whose training draws random numbers at every forward pass."""
    model = copy.deepcopy(tiny_model)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.3
    return model


@pytest.mark.parametrize("engine", ["trl", "transformers"])
def test_stop_check_that_draws_random_numbers_and_switches_modes_does_not_affect_training(
    fit, make_stage, model_with_dropout, engine
):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    adapted = get_peft_model(model_with_dropout, LoraConfig(task_type="CAUSAL_LM", r=2, lora_dropout=0.2))
    checked_model, steps = copy.deepcopy(adapted), []

    def evaluate_and_draw(step):
        steps.append(step)
        torch.rand(5), np.random.rand(5), random.random()
        checked_model.eval()
        checked_model(input_ids=torch.tensor([[7, 8, 9]]))
        with checked_model.disable_adapter():
            checked_model(input_ids=torch.tensor([[7, 8, 9]]))
        return False

    data = make_stage(engine=engine)
    unchecked, result, _ = fit(data, model=copy.deepcopy(adapted))
    checked, checked_result, _ = fit(data, model=checked_model, stop_check=evaluate_and_draw)
    assert steps == [1, 2, 3]
    assert weights_are_equal(weights(unchecked), weights(checked))
    assert [entry["loss"] for entry in result.log] == [entry["loss"] for entry in checked_result.log]


def test_stage_ends_at_the_step_where_the_stop_check_returns_true(fit, make_stage):
    data = make_stage(log_steps=4)
    model, result, gradients = fit(data, stop_check=lambda step: step == 2)
    assert result.steps == len(gradients) == 2
    assert [entry["step"] for entry in result.log] == [2], "what was not logged yet is logged at the end"
    assert result.tokens == sum(len(data.rows[index].input_ids) for sequence in data.order[:8] for index in sequence)
    other, _, _ = fit(data)
    assert not weights_are_equal(weights(model), weights(other))


def test_stage_that_ended_at_its_checkpoint_is_not_trained_further(fit, make_stage, tmp_path):
    data = make_stage(save_steps=1)
    first, result, _ = fit(data, stop_check=lambda step: step == 2)
    folder = complete_checkpoints(tmp_path / "checkpoints")[-1]
    resumed, checked_result, gradients = fit(data, stop_check=lambda step: step == 2, resume=folder)
    assert gradients == []
    assert weights_are_equal(weights(first), weights(resumed))
    assert (checked_result.steps, checked_result.loss, checked_result.tokens) == (
        result.steps,
        result.loss,
        result.tokens,
    )


@pytest.mark.slow
@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("reads", [False, True])
def test_weights_are_loaded_for_the_check_of_a_resumed_step_only_if_it_reads_them(
    fit, make_stage, tmp_path, monkeypatch, reads, ends
):
    data, real = make_stage(save_steps=2), checkpoint.load_checkpoint_weights
    loaded, loaded_before_checks = [], []

    def check(step):
        loaded_before_checks.append(len(loaded))
        return ends and step == 2

    whole, _, _ = fit(data, stop_check=lambda step: ends and step == 2)
    folder = next(each for each in complete_checkpoints(tmp_path / "checkpoints") if each.name == "checkpoint-2")
    monkeypatch.setattr(checkpoint, "load_checkpoint_weights", lambda *given: loaded.append(given) or real(*given))
    resumed, _, _ = fit(data, stop_check=check, resume=folder, check_reads_weights=lambda step: reads)
    assert weights_are_equal(weights(whole), weights(resumed))
    assert loaded_before_checks[0] == (1 if reads else 0)
    assert len(loaded) == 1, "weights that the check has changed are not loaded again"


@pytest.mark.parametrize("engine", ["transformers", "trl"])
def test_weights_that_the_check_of_a_resumed_step_changes_are_trained_further(
    fit, make_stage, tmp_path, tiny_model, engine
):
    def halve_weights(model):
        def check(step):
            if step == 2:
                for weight in model.parameters():
                    weight.mul_(0.5)
            return False

        return check

    whole_model, resumed_model = (copy.deepcopy(tiny_model) for _ in range(2))
    fit(make_stage(engine=engine), model=whole_model, stop_check=halve_weights(whole_model))
    data = make_stage(engine=engine, save_steps=1)
    fit(data)
    folder = next(each for each in complete_checkpoints(tmp_path / "checkpoints") if each.name == "checkpoint-2")
    fit(data, model=resumed_model, stop_check=halve_weights(resumed_model), resume=folder)
    assert weights_are_equal(weights(whole_model), weights(resumed_model))


@pytest.mark.parametrize("step", [2, 3])
def test_a_signal_is_obeyed_before_the_check_of_its_step_which_is_made_up_for_when_resumed(
    fit, make_stage, tmp_path, monkeypatch, tiny_model, step
):
    """The last step, 3, too: its check may take as long as any other."""
    data = make_stage()

    def check_weights(checks, model):
        def check(step):
            checks[step] = weights(model)
            return False

        return check

    whole_model, stopped_model, resumed_model = (copy.deepcopy(tiny_model) for _ in range(3))
    whole, stopped = {}, {}
    fit(data, model=whole_model, stop_check=check_weights(whole, whole_model))
    real = StageTrainer.after_optimizer_step

    def step_with_signal(self, learning_rate):
        if self.state.global_step == step - 1:
            signal.raise_signal(signal.SIGTERM)
        real(self, learning_rate)

    with monkeypatch.context() as patch, stop_signals.handle_stop_signals():
        patch.setattr(StageTrainer, "after_optimizer_step", step_with_signal)
        with pytest.raises(stop_signals.Interrupted):
            fit(data, model=stopped_model, stop_check=check_weights(stopped, stopped_model))
    assert list(stopped) == list(range(1, step))
    folder = complete_checkpoints(tmp_path / "checkpoints")[-1]
    fit(data, model=resumed_model, stop_check=check_weights(stopped, resumed_model), resume=folder)
    assert list(stopped) == [1, 2, 3]
    assert all(weights_are_equal(stopped[each], whole[each]) for each in whole)
