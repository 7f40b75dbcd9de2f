"""A stage that was interrupted and gone on with equals one that was not; what is no checkpoint of it is refused."""

from __future__ import annotations

import copy
import json
import random
import shutil

import numpy as np
import pytest
import torch

from harness.errors import RunError
from harness.interfaces.mitigation import Mitigation
from harness.training import checkpoint
from harness.training.checkpoint import latest_checkpoint as latest_checkpoint
from harness.training.collator import Collator
from harness.training.train_stage import train_stage
from harness.training.trainer import StageTrainer

ENGINES = ("trl", "transformers")


class Momentum(Mitigation):
    """A mitigation with a state of its own that moves the weights: a decaying memory of all gradients, and a count."""

    def __init__(self):
        self.memory, self.updates = {}, 0

    def add_weight_penalty(self, model):
        for name, weight in model.named_parameters():
            if weight.grad is not None:
                self.memory[name] = 0.5 * self.memory.get(name, 0.0) + weight.grad
                weight.grad += self.memory[name]
        return torch.tensor(float(self.updates))

    def on_step_end(self, model, learning_rate):
        self.updates += 1

    def state_dict(self):
        return {"memory": self.memory, "updates": self.updates}

    def load_state_dict(self, state):
        self.memory, self.updates = dict(state["memory"]), state["updates"]


class Interrupted(Exception):
    pass


@pytest.fixture
def begin(tiny_model):
    """The model as the stage finds it, in full or with an adapter that drops out."""

    def make(lora):
        model = copy.deepcopy(tiny_model)
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.1
        if not lora:
            return model
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(5)
        return get_peft_model(
            model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear", lora_dropout=0.2)
        )

    return make


@pytest.fixture
def run(tokenizer, tmp_path, monkeypatch):
    """(model, data, where to stop, what to go on from) -> all that a stage came to."""
    seen = {}

    def recording(self, indices, collate=Collator.__call__):
        seen["rows"].append([row for index in indices for row in self.sequences[index]])
        return collate(self, indices)

    def releasing(self, release=StageTrainer.free_memory):
        if self.optimizer is not None:
            seen["optimizer"] = copy.deepcopy(self.optimizer.state_dict())
            seen["scheduler"] = self.lr_scheduler.state_dict()
        release(self)

    monkeypatch.setattr(Collator, "__call__", recording)
    # It collates rows of its own to prove that packed rows cannot see each other; not the stage's.
    monkeypatch.setattr("harness.training.train_stage.verify_packing_isolation", lambda *given, **options: None)
    monkeypatch.setattr(StageTrainer, "free_memory", releasing)

    def run(model, data, folder, stop=None, resume=None):
        seen.clear()
        seen["rows"] = []
        memory = Momentum()

        def on_step(step, metrics):
            if step == stop:
                raise Interrupted

        torch.rand(3 if resume else 8)  # what was drawn before must not matter
        options = {"seed": 1, "folder": tmp_path / folder, "on_step": on_step, "resume": resume}
        if stop is not None:
            with pytest.raises(Interrupted):
                train_stage(model, tokenizer, data, {"memory": memory}, **options)
            return None
        trained = train_stage(model, tokenizer, data, {"memory": memory}, **options)
        weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        drawn = (random.random(), float(np.random.rand()), float(torch.rand(())))
        return {"trained": trained, "weights": weights, "memory": memory.state_dict(), "drawn": drawn, **seen}

    return run


def plain(log):
    """The log without what the clock says."""
    return [{key: value for key, value in entry.items() if key != "tokens_per_second"} for entry in log]


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("lora", "packing", "accumulation", "stop"),
    [
        (False, False, 1, 4),  # within epoch 0
        (False, True, 2, 5),  # within epoch 1
        (True, False, 2, 3),  # an adapter that drops out, within epoch 0
        (True, True, 1, 10),  # within epoch 1
    ],
)
def test_a_resumed_stage_equals_the_uninterrupted_one(
    engine, lora, packing, accumulation, stop, begin, run, make_stage, make_rows, tmp_path
):
    rows = make_rows(12)
    # Two epochs in different orders, the last batch of the stage not full.
    epochs = [random.Random(epoch).sample(range(12), 12) for epoch in range(2)]
    order = [(row,) for epoch in epochs for row in epoch]
    if packing:
        order = [pack for epoch in epochs for pack in ((epoch[0], epoch[1]), *((row,) for row in epoch[2:]))]
    data = make_stage(
        rows,
        order,
        (len(order) // 2, len(order)),
        engine=engine,
        packing=packing,
        accumulation=accumulation,
        batch_size=2,
        scheduler="cosine",
        warmup_ratio=0.2,
        log_steps=2 if accumulation == 1 else 1,
        save_steps=2,
    )
    whole = run(begin(lora), data, "whole")
    run(begin(lora), data, "cut", stop=stop)
    folder = latest_checkpoint(tmp_path / "cut" / "checkpoints")
    saved = (stop - 1) // 2 * 2  # an update is told before its checkpoint is written
    assert folder.name == f"checkpoint-{saved}"
    on = run(begin(lora), data, "cut", resume=folder)
    assert on["rows"] == whole["rows"][saved * accumulation :], "row by row where it stopped"
    for key in ("weights", "memory", "optimizer", "scheduler", "drawn"):
        assert equal(on[key], whole[key]), key
    assert plain(on["trained"].log) == plain(whole["trained"].log)
    assert (on["trained"].loss, on["trained"].steps, on["trained"].tokens) == (
        whole["trained"].loss,
        whole["trained"].steps,
        whole["trained"].tokens,
    )


def test_what_is_kept_beside_an_adapter_comes_back_with_it(begin, run, make_stage, tmp_path):
    from harness.model import frozen_lora

    def kept():
        model = begin(True)
        torch.manual_seed(9)
        layers = frozen_lora.lora_layers(model)
        frozen_lora.add_frozen_lora(
            model,
            {n: (torch.randn(3, layer.in_features), torch.randn(layer.out_features, 3)) for n, layer in layers.items()},
        )
        return model

    data = make_stage(batch_size=4, save_steps=2)
    whole = run(kept(), data, "whole")
    run(kept(), data, "cut", stop=3)
    on = run(kept(), data, "cut", resume=tmp_path / "cut" / "checkpoints" / "checkpoint-2")
    assert equal(on["weights"], whole["weights"])
    assert any(".kept." in name for name in whole["weights"])


def test_pending_values_of_an_entry_survive_an_interruption_within_it(begin, run, make_stage, tmp_path):
    data = make_stage(batch_size=2, log_steps=5, save_steps=3)
    whole = run(begin(False), data, "whole")
    run(begin(False), data, "cut", stop=5)
    on = run(begin(False), data, "cut", resume=tmp_path / "cut" / "checkpoints" / "checkpoint-3")
    assert plain(on["trained"].log) == plain(whole["trained"].log)
    assert [entry["step"] for entry in whole["trained"].log] == [5, 6]


def test_resuming_from_the_last_update_trains_nothing_more(begin, run, make_stage, tmp_path):
    data = make_stage(batch_size=4, save_steps=3)
    whole = run(begin(False), data, "whole")
    on = run(begin(False), data, "whole", resume=tmp_path / "whole" / "checkpoints" / "checkpoint-3")
    assert on["rows"] == []
    assert equal(on["weights"], whole["weights"])
    assert plain(on["trained"].log) == plain(whole["trained"].log)


def test_only_the_updates_after_the_checkpoint_are_told(tokenizer, begin, make_stage, tmp_path):
    data = make_stage(batch_size=2, save_steps=4)
    train_stage(begin(False), tokenizer, data, {}, seed=0, folder=tmp_path)
    heard = []
    folder = tmp_path / "checkpoints" / "checkpoint-4"
    options = {"seed": 0, "folder": tmp_path, "on_step": lambda step, _: heard.append(step), "resume": folder}
    train_stage(begin(False), tokenizer, data, {}, **options)
    assert heard == [5, 6]


# -- retention --------------------------------------------------------------------------------------------------------


def test_the_newest_checkpoints_stay(tokenizer, begin, make_stage, tmp_path):
    data = make_stage(batch_size=2, save_steps=1, save_limit=2)
    train_stage(begin(False), tokenizer, data, {}, seed=0, folder=tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["checkpoint-5", "checkpoint-6"]


def fake(folder, step, whole=True):
    made = folder / f"checkpoint-{step}"
    made.mkdir(parents=True)
    if whole:
        checkpoint.finalize_checkpoint(made, {"step": step})
    return made


def test_an_unfinished_checkpoint_does_not_count_and_is_not_the_latest(tmp_path):
    for step, whole in [(8, True), (9, True), (10, True), (7, False), (12, False)]:
        fake(tmp_path, step, whole)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-10", "by number, not by name"
    checkpoint.prune_checkpoints(tmp_path, 2)
    left = sorted(int(path.name[11:]) for path in tmp_path.iterdir())
    assert left == [9, 10, 12], "older unfinished ones go, one that is newer may be being written"
    checkpoint.prune_checkpoints(tmp_path, None)
    checkpoint.prune_checkpoints(tmp_path, 5)
    assert len(list(tmp_path.iterdir())) == 3
    assert latest_checkpoint(tmp_path / "nowhere") is None


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tokenizer, begin, make_stage, tmp_path):
    data = make_stage(batch_size=4, save_steps=2)
    train_stage(begin(False), tokenizer, data, {}, seed=0, folder=tmp_path)
    return data, tmp_path / "checkpoints" / "checkpoint-2"


def resumed(tokenizer, model, data, folder, mitigations=None, seed=0):
    return train_stage(model, tokenizer, data, mitigations or {}, seed=seed, folder=folder.parents[1], resume=folder)


def test_a_checkpoint_that_was_not_finished_or_is_not_there_is_refused(saved, tokenizer, begin):
    data, folder = saved
    with pytest.raises(RunError, match="there is no such folder"):
        resumed(tokenizer, begin(False), data, folder.parent / "checkpoint-9")
    (folder / "checkpoint.json").unlink()
    with pytest.raises(RunError, match=r"not written to the end.*earlier checkpoint") as caught:
        resumed(tokenizer, begin(False), data, folder)
    assert str(folder) in str(caught.value)
    (folder / "checkpoint.json").write_text('{"files"')
    with pytest.raises(RunError, match=r"checkpoint\.json: it cannot be read"):
        resumed(tokenizer, begin(False), data, folder)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "mitigations.pt", "log.json"])
def test_one_changed_bit_or_a_missing_file_is_refused(name, saved, tokenizer, begin):
    data, folder = saved
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(bytes(content))
    model = begin(False)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RunError, match=rf"{name}: it is not what was written"):
        resumed(tokenizer, model, data, folder)
    assert equal(dict(before), dict(model.state_dict())), "nothing was loaded"
    (folder / name).unlink()
    with pytest.raises(RunError, match=f"its file {name} is missing"):
        resumed(tokenizer, model, data, folder)


def test_a_checkpoint_of_something_else_is_refused_with_what_differs(saved, tokenizer, begin, make_stage, make_rows):
    data, folder = saved
    settings = {"batch_size": 4, "save_steps": 2}
    for other, options, said in [
        (make_stage(**settings, learning_rate=5e-4), {}, r"train\.learning_rate 0\.001, not 0\.0005"),
        (make_stage(**settings, name="other"), {}, 'stage "stage", not "other"'),
        (make_stage(make_rows(12, seed=3), **settings), {}, "other rows or another order"),
        (make_stage(order=[(i,) for i in reversed(range(12))], **settings), {}, "other rows or another order"),
        (data, {"seed": 7}, "with seed"),
        (data, {"mitigations": {"memory": Momentum()}}, "of the mitigations none, the spec names memory"),
    ]:
        with pytest.raises(RunError, match=said):
            resumed(tokenizer, begin(False), other, folder, **options)
    with pytest.raises(RunError, match="a model of another shape"):
        resumed(tokenizer, begin(True), data, folder)


def test_settings_that_change_no_weight_may_differ(saved, tokenizer, begin, make_stage):
    _, folder = saved
    resumed(tokenizer, begin(False), make_stage(batch_size=4, save_steps=1, log_steps=3), folder)


def test_a_checkpoint_may_be_moved(saved, tokenizer, begin, tmp_path):
    data, folder = saved
    moved = tmp_path / "elsewhere" / "checkpoint-2"
    shutil.move(folder, moved)
    assert json.loads((moved / "checkpoint.json").read_text())["step"] == 2
    resumed(tokenizer, begin(False), data, moved)


def test_weights_that_lack_one_of_the_models_are_refused(begin, tmp_path):
    from safetensors.torch import save_file

    model = begin(False)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(state, tmp_path / "model.safetensors")
    checkpoint.load_checkpoint_weights(model, tmp_path)  # the tied head is the embeddings
    save_file({**state, "foreign": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(RunError, match="the model has no weight foreign"):
        checkpoint.load_checkpoint_weights(model, tmp_path)
    del state["model.norm.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(RunError, match=r"it has no weight model\.norm\.weight"):
        checkpoint.load_checkpoint_weights(model, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(RunError, match="it holds no weights"):
        checkpoint.load_checkpoint_weights(model, tmp_path)


def test_weights_in_several_files_are_loaded(begin, tmp_path):
    from safetensors.torch import save_file

    model, other = begin(False), begin(False)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    names = sorted(state)
    for number, half in enumerate((names[::2], names[1::2])):
        save_file({name: state[name] for name in half}, tmp_path / f"model-0000{number + 1}-of-00002.safetensors")
    checkpoint.load_checkpoint_weights(other, tmp_path)
    assert equal(dict(model.state_dict()), dict(other.state_dict()))
