"""What mitigations receive while a stage trains: complete batches and complete checkpoints."""

from __future__ import annotations

import pytest
import torch

from harness.interfaces.mitigation import Mitigation
from harness.training import checkpoint
from harness.training.loss import model_inputs, target_mask


class RunsAgain(Mitigation):
    """Runs the model a second time on each batch, and keeps how far its logits are from those of the loss."""

    requires_logits = True

    def __init__(self):
        self.differences, self.keys = [], set()

    def batch_penalty(self, model, batch, logits):
        self.keys |= batch.keys()
        with torch.no_grad():
            again = model(**model_inputs(batch)).logits[target_mask(batch["labels"])]
        self.differences.append(float((again - logits.detach()).abs().max()))


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_model_can_be_run_on_the_same_batch_again(packing, attention, make_stage, make_rows, fit, tiny_model):
    tiny_model.set_attn_implementation(attention)
    order = [(0, 1), (2,), (3, 4), (5,)] if packing else None
    mitigation = RunsAgain()
    fit(make_stage(make_rows(6), order, packing=packing, batch_size=2), {"again": mitigation})
    assert max(mitigation.differences) < 1e-5
    assert len(mitigation.differences) == (2 if packing else 3)
    assert {"input_ids", "labels"} < mitigation.keys <= {"input_ids", "labels", "attention_mask", "position_ids"}


def test_a_mitigation_receives_each_complete_checkpoint(make_stage, fit):
    seen = []

    class Copies(Mitigation):
        def after_checkpoint(self, path):
            assert (path / checkpoint.MANIFEST_FILE).is_file()
            seen.append(path.name)

    fit(make_stage(batch_size=2, save_steps=4), {"copies": Copies()})
    assert seen == ["checkpoint-4", "checkpoint-6"]
