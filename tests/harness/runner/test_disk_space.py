"""A run warns of a small disk before its first step."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch

from harness.runner.disk_space import disk_space_warning, estimate_disk_use
from harness.types import Stage

MODEL = torch.nn.Linear(10, 10, bias=False)  # 100 weights


def make_stage(save_steps, save_limit):
    return Stage("one", (), {"save_steps": save_steps, "save_limit": save_limit})


@pytest.mark.parametrize(
    ("save_steps", "save_limit", "written", "checkpoints"),
    [(None, 2, 0, 0), (5, 2, 2, 2), (1, 2, 10, 3), (1, None, 10, 10), (20, 2, 1, 1)],
)
def test_the_estimate_counts_the_checkpoints_that_are_kept(save_steps, save_limit, written, checkpoints):
    needed = estimate_disk_use([make_stage(save_steps, save_limit)], [written], MODEL)
    assert needed == checkpoints * 100 * 12 + 100 * 4 + 100 * 4  # checkpoints, snapshot, model


def test_only_trainable_weights_are_in_checkpoints_and_snapshots():
    model = torch.nn.Sequential(MODEL, torch.nn.Linear(10, 10, bias=False).requires_grad_(False))
    assert estimate_disk_use([make_stage(5, 1)], [1], model) == 100 * 12 + 100 * 4 + 200 * 4


@pytest.mark.parametrize(("free", "warned"), [(2_000, False), (1_999, True)])
def test_a_warning_names_what_is_free_and_what_is_needed(monkeypatch, tmp_path, free, warned):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    text = disk_space_warning(tmp_path, [make_stage(5, 1)], [1], MODEL)
    assert (text is not None) is warned
    if warned:
        assert "2.0 kB are free, but the run may write 2.0 kB" in text
        assert "lower train.save_limit" in text
