"""Settings as the Trainer understands them."""

from __future__ import annotations

import pytest
import torch
from transformers import TrainingArguments

from harness.training.train_stage import autocast_dtype, build_training_arguments, warmup_steps


@pytest.mark.parametrize(("ratio", "steps", "expected"), [(0, 9, 0), (0.07, 100, 7), (0.1, 15, 2), (1, 8, 8)])
def test_warm_up_is_rounded_up_to_whole_updates(ratio, steps, expected):
    assert warmup_steps(ratio, steps) == expected


def test_a_cpu_computes_in_float32_unless_told_otherwise():
    assert autocast_dtype("auto", torch.device("cpu")) is None
    assert autocast_dtype("float32", torch.device("cpu")) is None
    assert autocast_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16


def test_every_setting_reaches_the_trainer(make_stage, tmp_path):
    settings = make_stage(
        learning_rate=3e-4,
        batch_size=3,
        accumulation=5,
        scheduler="cosine",
        weight_decay=0.07,
        max_grad_norm=0.3,
        save_steps=9,
    ).stage.train
    made = TrainingArguments(
        **build_training_arguments(settings, seed=17, folder=tmp_path, device=torch.device("cpu"), compute_dtype=None)
    )
    assert (made.learning_rate, made.weight_decay, made.max_grad_norm) == (3e-4, 0.07, 0.3)
    assert (made.per_device_train_batch_size, made.gradient_accumulation_steps) == (3, 5)
    assert (made.lr_scheduler_type.value, made.optim.value) == ("cosine", "adamw_torch_fused")
    assert (made.seed, made.data_seed, made.save_steps, made.output_dir) == (17, 17, 9, str(tmp_path))
    assert (made.bf16, made.fp16, made.report_to) == (False, False, [])
