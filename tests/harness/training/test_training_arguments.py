"""The settings of a stage become arguments of the Trainer."""

from __future__ import annotations

import pytest
import torch
from transformers import TrainingArguments

from harness.training.learning import warmup_steps
from harness.training.train_stage import build_training_arguments


@pytest.mark.parametrize(("ratio", "steps", "expected"), [(0, 9, 0), (0.07, 100, 7), (0.1, 15, 2), (1, 8, 8)])
def test_warmup_is_rounded_up_to_whole_steps(ratio, steps, expected):
    assert warmup_steps(ratio, steps) == expected


def test_every_setting_reaches_the_trainer(make_stage, tmp_path):
    settings = make_stage(
        learning_rate=3e-4,
        batch_size=3,
        accumulation=5,
        weight_decay=0.07,
        max_grad_norm=0.3,
        save_steps=9,
    ).stage.train
    arguments = TrainingArguments(
        **build_training_arguments(settings, seed=17, folder=tmp_path, device=torch.device("cpu"), compute_dtype=None)
    )
    assert (arguments.learning_rate, arguments.weight_decay, arguments.max_grad_norm) == (3e-4, 0.07, 0.3)
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (3, 5)
    assert (arguments.seed, arguments.data_seed, arguments.output_dir) == (17, 17, str(tmp_path))
    assert (arguments.bf16, arguments.fp16, arguments.report_to) == (False, False, [])
