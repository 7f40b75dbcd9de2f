"""Checkpoints hold the model, the optimizer and the mitigations' states."""

from __future__ import annotations

import pytest
import torch

from harness.errors import RunError
from harness.interfaces.mitigation import Mitigation
from harness.training.checkpoint import (
    MANIFEST_FILE,
    load_mitigation_states,
    save_mitigation_states,
    verify_checkpoint,
)
from harness.utils.manifest import write_manifest


class Counter(Mitigation):
    """Counts the calls of `add_weight_penalty` and has a tensor as state."""

    def __init__(self):
        self.calls, self.tensor = 0, torch.zeros(2)

    def add_weight_penalty(self, model):
        self.calls += 1
        self.tensor += 0.5

    def state_dict(self):
        return {"calls": self.calls, "kept": {"tensor": self.tensor, "name": "counter"}}

    def load_state_dict(self, state):
        self.calls, self.tensor = state["calls"], state["kept"]["tensor"]


@pytest.mark.parametrize("engine", ["trl", "transformers"])
@pytest.mark.parametrize("lora", [False, True])
def test_checkpoint_holds_everything_that_a_resumed_stage_needs(engine, lora, make_stage, fit, tmp_path, tiny_model):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_model, LoraConfig(task_type="CAUSAL_LM", r=2)) if lora else tiny_model
    fit(make_stage(engine=engine, batch_size=2, save_steps=2), {"counter": Counter()}, model=model)
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
    assert "README.md" not in names, "a checkpoint is not a publication"
    loaded = Counter()
    load_mitigation_states({"counter": loaded, "~spy": Mitigation()}, folder)
    assert loaded.calls == 4
    assert loaded.tensor.tolist() == [2.0, 2.0]


def test_writing_checkpoints_prints_nothing(make_stage, fit, capsys):
    fit(make_stage(batch_size=2, save_steps=2))
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", "")


def test_saved_states_replace_earlier_ones_and_load_equal(tmp_path):
    counter = Counter()
    for calls in (3, 8):
        counter.calls = calls
        save_mitigation_states({"m": counter}, tmp_path)
    loaded = Counter()
    load_mitigation_states({"m": loaded}, tmp_path)
    assert loaded.calls == 8
    assert [path.name for path in tmp_path.iterdir()] == ["mitigations.pt"]


def test_states_of_other_mitigations_are_an_error(tmp_path):
    save_mitigation_states({"m": Counter()}, tmp_path)
    with pytest.raises(RunError, match="saved with the mitigations m, but the spec has ewc, lora"):
        load_mitigation_states({"lora": Mitigation(), "ewc": Mitigation()}, tmp_path)


def test_missing_or_damaged_states_are_an_error(tmp_path):
    with pytest.raises(RunError, match="cannot be read"):
        load_mitigation_states({}, tmp_path)
    save_mitigation_states({"m": Counter()}, tmp_path)
    path = tmp_path / "mitigations.pt"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RunError, match="cannot be read"):
        load_mitigation_states({"m": Counter()}, tmp_path)


def test_states_that_would_run_code_are_rejected(tmp_path):
    class Danger:
        def __reduce__(self):
            return (print, ("run",))

    torch.save({"m": Danger()}, tmp_path / "mitigations.pt")
    with pytest.raises(RunError, match="cannot be read"):
        load_mitigation_states({"m": Counter()}, tmp_path)


@pytest.mark.parametrize("step", [None, "4", True])
def test_a_checkpoint_whose_manifest_has_no_step_is_named(tmp_path, step):
    write_manifest(tmp_path, MANIFEST_FILE, {} if step is None else {"step": step})
    with pytest.raises(RunError) as caught:
        verify_checkpoint(tmp_path, {})
    assert str(caught.value).startswith(f"{tmp_path / MANIFEST_FILE}: it does not say after which step")


def test_a_checkpoint_has_its_step(tmp_path):
    write_manifest(tmp_path, MANIFEST_FILE, {"step": 4})
    assert verify_checkpoint(tmp_path, {}) == 4
