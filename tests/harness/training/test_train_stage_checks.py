"""A stage that somebody looks at on its way is the stage that nobody looked at; and it ends when the look says so."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch

from harness.training.checkpoint import latest_checkpoint as latest_checkpoint


def weights(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def dropping(tiny_model):
    """A model whose training draws random numbers at every forward pass."""
    model = copy.deepcopy(tiny_model)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.3
    return model


@pytest.mark.parametrize("engine", ["trl", "transformers"])
def test_a_look_that_draws_and_switches_leaves_no_trace(fit, make_stage, dropping, engine):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    adapted = get_peft_model(dropping, LoraConfig(task_type="CAUSAL_LM", r=2, lora_dropout=0.2))
    net, seen = copy.deepcopy(adapted), []

    def look(step):
        seen.append(step)
        torch.rand(5), np.random.rand(5), random.random()
        net.eval()
        net(input_ids=torch.tensor([[7, 8, 9]]))
        with net.disable_adapter():
            net(input_ids=torch.tensor([[7, 8, 9]]))
        return False

    data = make_stage(engine=engine)
    alone, trained, _ = fit(data, model=copy.deepcopy(adapted))
    watched, told, _ = fit(data, model=net, stop_check=look)
    assert seen == [1, 2, 3]
    assert same(weights(alone), weights(watched))
    assert [one["loss"] for one in trained.log] == [one["loss"] for one in told.log]


def test_a_stage_ends_where_the_look_says_and_says_how_far_it_came(fit, make_stage):
    data = make_stage(log_steps=4)
    model, trained, gradients = fit(data, stop_check=lambda step: step == 2)
    assert trained.steps == len(gradients) == 2
    assert [one["step"] for one in trained.log] == [2], "what was not logged yet is logged at the end"
    assert trained.tokens == sum(len(data.rows[index].input_ids) for slot in data.order[:8] for index in slot)
    other, _, _ = fit(data)
    assert not same(weights(model), weights(other))


def test_a_stage_that_had_ended_at_its_checkpoint_is_not_trained_further(fit, make_stage, tmp_path):
    data = make_stage(save_steps=1)
    ended, trained, _ = fit(data, stop_check=lambda step: step == 2)
    folder = latest_checkpoint(tmp_path / "checkpoints")
    again, told, gradients = fit(data, stop_check=lambda step: step == 2, resume=folder)
    assert gradients == []
    assert same(weights(ended), weights(again))
    assert (told.steps, told.loss, told.tokens) == (trained.steps, trained.loss, trained.tokens)
