"""Checkpoints hold the model, the optimizer and what the mitigations must keep."""

from __future__ import annotations

import pytest
import torch

from harness.errors import RunError
from harness.interfaces.mitigation import Mitigation
from harness.training.checkpoint import load_mitigation_states, save_mitigation_states


class Memory(Mitigation):
    """Counts its pulls and keeps a tensor."""

    def __init__(self):
        self.pulls, self.tensor = 0, torch.zeros(2)

    def add_weight_penalty(self, model):
        self.pulls += 1
        self.tensor += 0.5

    def state_dict(self):
        return {"pulls": self.pulls, "kept": {"tensor": self.tensor, "name": "memory"}}

    def load_state_dict(self, state):
        self.pulls, self.tensor = state["pulls"], state["kept"]["tensor"]


@pytest.mark.parametrize("engine", ["trl", "transformers"])
@pytest.mark.parametrize("lora", [False, True])
def test_a_checkpoint_holds_all_that_a_resumed_stage_needs(engine, lora, make_stage, fit, tmp_path, tiny_model):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_model, LoraConfig(task_type="CAUSAL_LM", r=2)) if lora else tiny_model
    fit(make_stage(engine=engine, batch_size=2, save_steps=2), {"memory": Memory()}, model=model)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "checkpoint-2",
        "checkpoint-4",
        "checkpoint-6",
    ]
    folder = tmp_path / "checkpoints" / "checkpoint-4"
    names = {path.name for path in folder.iterdir()}
    weights = "adapter_model.safetensors" if lora else "model.safetensors"
    expected = {weights, "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "mitigations.pt"}
    assert expected | {"tokenizer.json"} <= names
    assert "README.md" not in names, "a checkpoint is no publication"
    again = Memory()
    load_mitigation_states({"memory": again, "~spy": Mitigation()}, folder)
    assert again.pulls == 4
    assert again.tensor.tolist() == [2.0, 2.0]


def test_nothing_of_a_checkpoint_is_said_beside_our_own_lines(make_stage, fit, capsys):
    fit(make_stage(batch_size=2, save_steps=2))
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")


def test_states_survive_whole_and_replace_the_old(tmp_path):
    kept = Memory()
    for pulls in (3, 8):
        kept.pulls = pulls
        save_mitigation_states({"m": kept}, tmp_path)
    again = Memory()
    load_mitigation_states({"m": again}, tmp_path)
    assert again.pulls == 8
    assert [path.name for path in tmp_path.iterdir()] == ["mitigations.pt"]


def test_a_state_of_other_mitigations_is_an_error(tmp_path):
    save_mitigation_states({"m": Memory()}, tmp_path)
    with pytest.raises(RunError, match="of the mitigations m, the spec names ewc, lora"):
        load_mitigation_states({"lora": Mitigation(), "ewc": Mitigation()}, tmp_path)


def test_a_state_that_is_missing_or_damaged_is_an_error(tmp_path):
    with pytest.raises(RunError, match="cannot be read"):
        load_mitigation_states({}, tmp_path)
    save_mitigation_states({"m": Memory()}, tmp_path)
    path = tmp_path / "mitigations.pt"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RunError, match="cannot be read"):
        load_mitigation_states({"m": Memory()}, tmp_path)


def test_a_state_that_would_run_code_is_refused(tmp_path):
    class Danger:
        def __reduce__(self):
            return (print, ("run",))

    torch.save({"m": Danger()}, tmp_path / "mitigations.pt")
    with pytest.raises(RunError, match="cannot be read"):
        load_mitigation_states({"m": Memory()}, tmp_path)
