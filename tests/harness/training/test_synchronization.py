"""A step waits for the device a known number of times: every wait leaves a GPU without work.

Each operation that copies a value to the host waits: `float`, `bool`, `.item()`, `.tolist()`, `.cpu()`, `nonzero` and
indexing by a mask. They are counted on the CPU, in everything that a step runs, libraries included.
"""

from __future__ import annotations

from collections import Counter

import pytest
from harness_mitigations.ewc import Ewc
from harness_mitigations.kl import build_kl_mitigation
from support.wait_counter import WaitCounter

from harness.interfaces.mitigation import Mitigation
from harness.training.train_stage import train_stage

PLAIN = {
    "mask": 2,  # hidden states and labels of the trained tokens
    "tolist": 2,  # the positions of the line, for its rows, and all metrics of the step
    "scalar": 1,  # transformers looks for packed rows
}


class StepCounts(Mitigation):
    """Keeps how often was waited until the end of each step."""

    priority = 10_000

    def __init__(self, counter):
        self.counter, self.until_step = counter, []

    def on_step_end(self, model, learning_rate):
        self.until_step.append(Counter(self.counter.counts))


@pytest.fixture
def waits_of_a_step(tiny_model, tokenizer, make_stage, make_rows, tmp_path, monkeypatch):
    """(mitigations, changed settings) -> how often the third step of a stage waits, by kind."""

    def measure(mitigations, **settings):
        with WaitCounter(monkeypatch) as counter:
            data, steps = make_stage(precision="float32", **settings), StepCounts(counter)
            for mitigation in mitigations.values():
                mitigation.on_stage_start(data.stage, tiny_model, {"general": make_rows(9, 1)}, seed=0)
            train_stage(tiny_model, tokenizer, data, {**mitigations, "counts": steps}, seed=0, folder=tmp_path)
        return dict(steps.until_step[2] - steps.until_step[1])

    return measure


@pytest.mark.parametrize("engine", ["trl", "transformers"])
def test_a_step_waits_for_its_rows_its_trained_tokens_and_its_metrics_only(engine, waits_of_a_step):
    assert waits_of_a_step({}, engine=engine) == PLAIN


def test_a_weight_penalty_waits_not_at_all(waits_of_a_step):
    ewc = Ewc(
        "general", 1.0, "gradient", "sampled", 4, 4, True, None, 1.0, cache=False, dtype="float32", place="device"
    )
    assert waits_of_a_step({"ewc": ewc}) == PLAIN


def test_kl_on_the_task_waits_for_the_forward_pass_of_the_base_model(waits_of_a_step):
    kl = build_kl_mitigation("task", None, 4, 1.0, "forward", 1.0, False, "data", "data", {})
    assert waits_of_a_step({"kl": kl}) == {**PLAIN, "mask": PLAIN["mask"] + 1, "scalar": PLAIN["scalar"] + 1}


def test_each_micro_batch_waits_alike(waits_of_a_step):
    counts = waits_of_a_step({}, batch_size=2, accumulation=2)
    assert counts == {"mask": 4, "tolist": 3, "scalar": 2}
