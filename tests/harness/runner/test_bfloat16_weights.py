"""Runs whose trained weights are in bfloat16, and settings that the model refuses before anything is trained."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from harness import events
from harness.errors import HarnessError

NARROW = {"precision": "bfloat16", "weights": "bfloat16"}


def test_a_run_in_bfloat16_is_resumed_bit_for_bit(desk, same, listener):
    def at(event, recorder):
        return isinstance(event, events.StepLogged) and event.stage_index == 2 and event.step == 3

    document = desk.continual()
    document["train"] |= NARROW
    run = desk.start(document)
    with pytest.raises(KeyboardInterrupt):
        desk.start(document, listener(at))
    interrupted = desk.newest()
    desk.resume(interrupted)
    same(run, interrupted)
    trained, base = (
        load_file(run / "model" / "model.safetensors"),
        load_file(desk.folder / "tiny" / "model.safetensors"),
    )
    name = "model.layers.0.mlp.up_proj.weight"
    weight = trained[name].float()
    assert not torch.equal(weight, base[name].bfloat16().float())
    assert torch.equal(weight.bfloat16().float(), weight), "the matrices are numbers of bfloat16"


def test_the_plan_has_no_copy_of_the_weights_in_float32(desk, capsys):
    def kinds(**train):
        document = desk.document()
        document["train"] |= {"precision": "bfloat16", **train}
        assert desk.command("plan", desk.write(document), "--json") == 0
        return json.loads(capsys.readouterr().out)["memory"]

    wide, narrow = kinds(), kinds(weights="bfloat16")
    matrices = 2 * (16 * 16 * 2 + 16 * 8 * 2 + 3 * 16 * 32)  # the embeddings are tied
    assert wide["kinds"]["weights"] - narrow["kinds"]["weights"] == 4 * matrices  # and no copy of autocast
    assert wide["kinds"]["gradients"] - narrow["kinds"]["gradients"] == 2 * matrices
    assert wide["kinds"]["optimizer"] == narrow["kinds"]["optimizer"]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"weights": "bfloat16"}, "train.weights: the computation on this device is not in bfloat16"),
        (
            {"router_loss": 0.01},
            "train.router_loss: transformers has no loss that balances the experts of a llama model",
        ),
    ],
)
def test_what_the_model_does_not_have_is_refused_before_training(desk, train, message):
    document = desk.document()
    document["train"] |= train
    with pytest.raises(HarnessError, match=f"^{message}"):
        desk.start(document)
