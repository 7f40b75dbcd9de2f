"""What the packages of TensorBoard and Weights & Biases themselves read and store of a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.testing.example_run import write_example_spec

pytestmark = pytest.mark.oracle

RUN = """
import sys
from pathlib import Path
from harness.runner import trackers
from harness.testing.example_run import run_spec
trackers.TIME_LIMIT = 600.0  # has tests of its own; the machine may be slow
print(run_spec(Path(sys.argv[1])))
"""


def run_with(tracker, folder):
    """Run the example with a tracker in a process of its own, at whose end everything is written."""
    spec = write_example_spec(folder, track=tracker)
    done = subprocess.run([sys.executable, "-c", RUN, str(spec)], capture_output=True, text=True, check=True)
    run = Path(done.stdout.splitlines()[-1])
    lines = (run / "stages" / "domain" / "steps.jsonl").read_text().splitlines()
    return run, [json.loads(line)["loss"] for line in lines]


def test_tensorboard_reads_the_losses_and_scores_of_a_run(tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is not installed; `make oracle` runs this",
    )
    run, losses = run_with({"tensorboard": {}}, tmp_path)
    stage = accumulator.EventAccumulator(str(run / "tensorboard" / "domain"))
    stage.Reload()
    assert [event.value for event in stage.Scalars("domain/loss")] == pytest.approx(losses, rel=1e-6)
    scores = accumulator.EventAccumulator(str(run / "tensorboard"))
    scores.Reload()
    assert [event.step for event in scores.Scalars("general/response_perplexity")] == [0, 1]


def test_wandb_stores_a_run_that_is_not_online(tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed; `make oracle` runs this")
    run, losses = run_with({"wandb": {"mode": "offline"}}, tmp_path)
    (file,) = (run / "wandb").glob(f"offline-run-*/run-{run.name}.wandb")
    stored = file.read_bytes()
    for key in (b"domain/loss", b"domain/learning_rate", b"general/response_perplexity", b"desk/chrf"):
        assert key in stored
    for loss in losses:
        assert json.dumps(loss).encode() in stored
