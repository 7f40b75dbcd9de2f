"""A resumed stage equals an uninterrupted one; checkpoints of other stages are rejected."""

from __future__ import annotations

import copy
import json
import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from harness.data.mixing.packing import PackedSequences
from harness.errors import RunError
from harness.interfaces.mitigation import Mitigation
from harness.training import checkpoint
from harness.training.checkpoint import complete_checkpoints
from harness.training.checkpoint_fingerprint import checkpoint_fingerprint
from harness.training.collator import Collator
from harness.training.stage_trainer import StageTrainer
from harness.training.train_stage import train_stage

ENGINES = ("trl", "transformers")


class Momentum(Mitigation):
    """A mitigation with a state that changes the weights: a decaying sum of all gradients, and a counter."""

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
def create_model(tiny_model):
    """The model as the stage finds it, in full or with an adapter with dropout."""

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
    """(model, data, folder, step to interrupt at, checkpoint to resume from) -> result and state of the stage."""
    seen = {}

    def recording_call(self, indices, collate=Collator.__call__):
        seen["rows"].append([row for index in indices for row in self.sequences[index]])
        return collate(self, indices)

    def recording_release(self, release=StageTrainer.free_memory):
        if self.optimizer is not None:
            seen["optimizer"] = copy.deepcopy(self.optimizer.state_dict())
            seen["scheduler"] = self.lr_scheduler.state_dict()
        release(self)

    monkeypatch.setattr(Collator, "__call__", recording_call)
    # The verification of packing isolation collates other rows than the stage's.
    monkeypatch.setattr("harness.training.packing_isolation.rows_are_isolated", lambda model: True)
    monkeypatch.setattr(StageTrainer, "free_memory", recording_release)

    def run(model, data, folder, stop=None, resume=None):
        seen.clear()
        seen["rows"] = []
        memory = Momentum()

        def on_step(step, metrics):
            if step == stop:
                raise Interrupted

        torch.rand(3 if resume else 8)  # earlier draws must not matter
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


def without_timing(log):
    """Return the log without its timing."""
    return [{key: value for key, value in entry.items() if key != "tokens_per_second"} for entry in log]


def equal(first, second):
    """Return whether nested values with tensors are equal."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return first == second


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("lora", "packing", "accumulation", "stop"),
    [
        (False, False, 1, 4),  # within epoch 0
        (False, True, 2, 5),  # within epoch 1
        (True, False, 2, 3),  # an adapter with dropout, within epoch 0
        (True, True, 1, 10),  # within epoch 1
    ],
)
def test_resumed_stage_equals_the_uninterrupted_one(
    engine, lora, packing, accumulation, stop, create_model, run, make_stage, make_rows, tmp_path
):
    rows = make_rows(12)
    # Two epochs in different orders; the last batch of the stage is not full.
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
        scheduler={"cosine": {"final": 0.0}},
        warmup_ratio=0.2,
        log_steps=2 if accumulation == 1 else 1,
        save_steps=2,
    )
    uninterrupted = run(create_model(lora), data, "uninterrupted")
    run(create_model(lora), data, "interrupted", stop=stop)
    folder = complete_checkpoints(tmp_path / "interrupted" / "checkpoints")[-1]
    saved = (stop - 1) // 2 * 2  # a step is logged before its checkpoint is written
    assert folder.name == f"checkpoint-{saved}"
    resumed = run(create_model(lora), data, "interrupted", resume=folder)
    assert resumed["rows"] == uninterrupted["rows"][saved * accumulation :], "rows continue after the checkpoint"
    for key in ("weights", "memory", "optimizer", "scheduler", "drawn"):
        assert equal(resumed[key], uninterrupted[key]), key
    assert without_timing(resumed["trained"].log) == without_timing(uninterrupted["trained"].log)
    assert (resumed["trained"].loss, resumed["trained"].steps, resumed["trained"].tokens) == (
        uninterrupted["trained"].loss,
        uninterrupted["trained"].steps,
        uninterrupted["trained"].tokens,
    )


def test_frozen_factors_are_restored_with_the_adapter(create_model, run, make_stage, tmp_path):
    from harness.model import frozen_lora

    def create_model_with_frozen_factors():
        model = create_model(True)
        torch.manual_seed(9)
        layers = frozen_lora.lora_layers(model)
        frozen_lora.add_frozen_lora(
            model,
            {n: (torch.randn(3, layer.in_features), torch.randn(layer.out_features, 3)) for n, layer in layers.items()},
        )
        return model

    data = make_stage(batch_size=4, save_steps=2)
    uninterrupted = run(create_model_with_frozen_factors(), data, "uninterrupted")
    run(create_model_with_frozen_factors(), data, "interrupted", stop=3)
    resumed = run(
        create_model_with_frozen_factors(),
        data,
        "interrupted",
        resume=tmp_path / "interrupted" / "checkpoints" / "checkpoint-2",
    )
    assert equal(resumed["weights"], uninterrupted["weights"])
    assert any(".kept." in name for name in uninterrupted["weights"])


def test_pending_values_of_an_entry_survive_an_interruption_within_it(create_model, run, make_stage, tmp_path):
    data = make_stage(batch_size=2, log_steps=5, save_steps=3)
    uninterrupted = run(create_model(False), data, "uninterrupted")
    run(create_model(False), data, "interrupted", stop=5)
    resumed = run(
        create_model(False), data, "interrupted", resume=tmp_path / "interrupted" / "checkpoints" / "checkpoint-3"
    )
    assert without_timing(resumed["trained"].log) == without_timing(uninterrupted["trained"].log)
    assert [entry["step"] for entry in uninterrupted["trained"].log] == [5, 6]


def test_resuming_from_the_last_step_trains_nothing(create_model, run, make_stage, tmp_path):
    data = make_stage(batch_size=4, save_steps=3)
    uninterrupted = run(create_model(False), data, "uninterrupted")
    resumed = run(
        create_model(False), data, "uninterrupted", resume=tmp_path / "uninterrupted" / "checkpoints" / "checkpoint-3"
    )
    assert resumed["rows"] == []
    assert equal(resumed["weights"], uninterrupted["weights"])
    assert without_timing(resumed["trained"].log) == without_timing(uninterrupted["trained"].log)


def test_on_step_is_called_only_for_steps_after_the_checkpoint(tokenizer, create_model, make_stage, tmp_path):
    data = make_stage(batch_size=2, save_steps=4)
    train_stage(create_model(False), tokenizer, data, {}, seed=0, folder=tmp_path)
    steps = []
    folder = tmp_path / "checkpoints" / "checkpoint-4"
    options = {"seed": 0, "folder": tmp_path, "on_step": lambda step, _: steps.append(step), "resume": folder}
    train_stage(create_model(False), tokenizer, data, {}, **options)
    assert steps == [5, 6]


# -- retention --------------------------------------------------------------------------------------------------------


def test_newest_checkpoints_are_kept(tokenizer, create_model, make_stage, tmp_path):
    data = make_stage(batch_size=2, save_steps=1, save_limit=2)
    train_stage(create_model(False), tokenizer, data, {}, seed=0, folder=tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["checkpoint-5", "checkpoint-6"]


def create_checkpoint(folder, step, complete=True):
    checkpoint_folder = folder / f"checkpoint-{step}"
    checkpoint_folder.mkdir(parents=True)
    if complete:
        checkpoint.finalize_checkpoint(checkpoint_folder, {"step": step})
    return checkpoint_folder


def test_incomplete_checkpoint_does_not_count_and_is_not_the_latest(tmp_path):
    for step, complete in [(8, True), (9, True), (10, True), (7, False), (12, False)]:
        create_checkpoint(tmp_path, step, complete)
    assert complete_checkpoints(tmp_path)[-1] == tmp_path / "checkpoint-10", "by step, not by name"
    checkpoint.prune_checkpoints(tmp_path, 2)
    remaining = sorted(int(path.name[11:]) for path in tmp_path.iterdir())
    assert remaining == [9, 10, 12], "older incomplete ones are deleted; a newer one may still be written"
    checkpoint.prune_checkpoints(tmp_path, None)
    checkpoint.prune_checkpoints(tmp_path, 5)
    assert len(list(tmp_path.iterdir())) == 3
    assert complete_checkpoints(tmp_path / "nowhere") == []


# -- rejection --------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tokenizer, create_model, make_stage, tmp_path):
    data = make_stage(batch_size=4, save_steps=2)
    train_stage(create_model(False), tokenizer, data, {}, seed=0, folder=tmp_path)
    return data, tmp_path / "checkpoints" / "checkpoint-2"


def resume_stage(tokenizer, model, data, folder, mitigations=None, seed=0):
    return train_stage(model, tokenizer, data, mitigations or {}, seed=seed, folder=folder.parents[1], resume=folder)


def test_incomplete_or_missing_checkpoint_is_rejected(saved, tokenizer, create_model):
    data, folder = saved
    with pytest.raises(RunError, match="there is no such folder"):
        resume_stage(tokenizer, create_model(False), data, folder.parent / "checkpoint-9")
    (folder / "checkpoint.json").unlink()
    with pytest.raises(RunError, match=r"is incomplete.*earlier checkpoint") as caught:
        resume_stage(tokenizer, create_model(False), data, folder)
    assert str(folder) in str(caught.value)
    (folder / "checkpoint.json").write_text('{"files"')
    with pytest.raises(RunError, match=r"checkpoint\.json: it cannot be read"):
        resume_stage(tokenizer, create_model(False), data, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "mitigations.pt", "log.json"])
def test_one_changed_bit_or_a_missing_file_is_rejected(name, saved, tokenizer, create_model):
    data, folder = saved
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(bytes(content))
    model = create_model(False)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RunError, match=rf"{name}: its checksum differs"):
        resume_stage(tokenizer, model, data, folder)
    assert equal(dict(before), dict(model.state_dict())), "nothing was loaded"
    (folder / name).unlink()
    with pytest.raises(RunError, match=f"its file {name} is missing"):
        resume_stage(tokenizer, model, data, folder)


def test_checkpoint_of_something_else_is_rejected_with_the_difference(
    saved, tokenizer, create_model, make_stage, make_rows
):
    data, folder = saved
    settings = {"batch_size": 4, "save_steps": 2}
    for other, options, message in [
        (make_stage(**settings, learning_rate=5e-4), {}, r"train\.learning_rate 0\.001, but now it is 0\.0005"),
        (make_stage(**settings, name="other"), {}, 'stage "stage", but now it is "other"'),
        (make_stage(make_rows(12, seed=3), **settings), {}, "other rows or another order"),
        (make_stage(order=[(i,) for i in reversed(range(12))], **settings), {}, "other rows or another order"),
        (data, {"seed": 7}, "with seed"),
        (data, {"mitigations": {"memory": Momentum()}}, "with the mitigations none, but the spec has memory"),
    ]:
        with pytest.raises(RunError, match=message):
            resume_stage(tokenizer, create_model(False), other, folder, **options)
    with pytest.raises(RunError, match="a model of another shape"):
        resume_stage(tokenizer, create_model(True), data, folder)


def test_settings_that_change_no_weight_may_differ(saved, tokenizer, create_model, make_stage):
    _, folder = saved
    resume_stage(tokenizer, create_model(False), make_stage(batch_size=4, save_steps=1, log_steps=3), folder)


def test_checkpoint_can_be_moved(saved, tokenizer, create_model, tmp_path):
    data, folder = saved
    moved = tmp_path / "elsewhere" / "checkpoint-2"
    shutil.move(folder, moved)
    assert json.loads((moved / "checkpoint.json").read_text())["step"] == 2
    resume_stage(tokenizer, create_model(False), data, moved)


def test_checkpoint_without_a_weight_of_the_model_is_rejected(create_model, tmp_path):
    from safetensors.torch import save_file

    model = create_model(False)
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
    with pytest.raises(RunError, match="it has no weights"):
        checkpoint.load_checkpoint_weights(model, tmp_path)


def test_weights_in_several_files_are_loaded(create_model, tmp_path):
    from safetensors.torch import save_file

    model, other = create_model(False), create_model(False)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    names = sorted(state)
    for index, half in enumerate((names[::2], names[1::2])):
        save_file({name: state[name] for name in half}, tmp_path / f"model-0000{index + 1}-of-00002.safetensors")
    checkpoint.load_checkpoint_weights(other, tmp_path)
    assert equal(dict(model.state_dict()), dict(other.state_dict()))


def test_the_fingerprint_depends_on_the_order_and_not_on_how_it_is_stored(create_model, make_stage):
    data, model = make_stage(order=[(0, 1), (2,)]), create_model(False)

    def fingerprint(order):
        return checkpoint_fingerprint(replace(data, order=order), model, {}, seed=0, world_size=1)["rows"]

    assert fingerprint(PackedSequences.from_sequences(data.order)) == fingerprint(data.order)
    assert len({fingerprint(order) for order in (data.order, ((0,), (1, 2)), ((1, 0), (2,)))}) == 3
