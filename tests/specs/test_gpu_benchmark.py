"""`benchmarks/gpu.py` runs as a whole with a tiny model, on a CPU too, and says what it skips."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_dry_run_measures_every_case_or_names_why_not(tmp_path):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'plugins'}", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--dry-run", "--out", str(tmp_path), "--seconds"]
    cases = ["TRL: LoRA", "QLoRA, NF4", "full, paged_adamw_8bit", "LoRA, interrupted and resumed"]
    done = subprocess.run(
        [*command, "800", "--only", *cases], env=environment, capture_output=True, text=True, timeout=850
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "gpu.json").read_text())["cases"]
    assert list(results) == cases
    assert results.pop("full, paged_adamw_8bit")["skipped"]
    if find_spec("bitsandbytes") is None:
        assert results.pop("QLoRA, NF4") == {"skipped": "the package bitsandbytes is not installed"}
    assert all(result["tokens_per_second"] > 0 for result in results.values())
    assert results["LoRA, interrupted and resumed"]["largest_difference"] == 0.0
    table = (tmp_path / "gpu.md").read_text()
    assert all(f"| {name} |" in table for name in cases)


def test_a_checkout_that_is_not_installed_has_the_built_in_components(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    gpu.write_distribution(tmp_path)
    (distribution,) = importlib.metadata.distributions(path=[str(tmp_path)])
    assert distribution.metadata["Name"] == "harness-sft"
    installed = importlib.metadata.distribution("harness-sft")
    assert {(point.name, point.value) for point in distribution.entry_points} == {
        (point.name, point.value) for point in installed.entry_points if point.group == "harness"
    }


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_how_to_run_it(tmp_path):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'plugins'}"}
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--out", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--dry-run runs the same code with a tiny model" in done.stderr
