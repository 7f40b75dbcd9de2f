"""`harness plan`: memory by kind, the time, whether it fits a device, and the keys with which it would."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from harness.model import matrix_speed
from harness.model.memory_limits import USABLE_SHARE
from harness.training.memory_kinds import MemoryEstimate, with_offloaded_shards

NF4 = {"bitsandbytes": {}}


def planned(desk, capsys, document, *options):
    assert desk.command("plan", desk.write(document), "--json", *options) == 0
    return json.loads(capsys.readouterr().out)["memory"]


def test_the_peak_has_activations_or_gradients_unless_gradients_accumulate():
    estimate = MemoryEstimate(weights=100, gradients=40, optimizer=80, activations=10, logits=5, mitigations=1)
    assert estimate.peak == 100 + 80 + 1 + 40
    accumulating = MemoryEstimate(100, 40, 80, 10, 5, 1, accumulates=True)
    assert accumulating.peak == 100 + 80 + 1 + 40 + 10 + 5
    assert MemoryEstimate(100, 40, 80, 60, 5, 1, head_gradient=7).peak == 100 + 80 + 1 + 7 + 60 + 5


def test_kinds_follow_the_trained_weights_and_the_optimizer(desk, capsys):
    full = planned(desk, capsys, desk.document())
    assert full["trained"] == full["weights"]
    assert full["kinds"]["weights"] == full["kinds"]["gradients"] == 4 * full["weights"]
    assert full["kinds"]["optimizer"] == 8 * full["weights"]
    lion = planned(desk, capsys, desk.document(), "--set", "train.optimizer=lion")
    assert lion["kinds"]["optimizer"] == 4 * full["weights"]


def test_mitigations_state_what_they_hold(desk, capsys):
    full = planned(desk, capsys, desk.document(mitigations={"ewc": {"source": "general"}}))
    assert full["kinds"]["mitigations"] == 8 * full["weights"]  # float32 anchor and importances
    kl = planned(desk, capsys, desk.document(mitigations={"kl": {"source": "general", "rows": 2}}))
    assert kl["kinds"]["mitigations"] == 4 * kl["weights"]
    assert kl["kinds"]["activations"] > full["kinds"]["activations"]
    lora = planned(desk, capsys, desk.document(mitigations={"lora": {}, "kl": {"source": "general"}}))
    assert lora["kinds"]["mitigations"] == 0


def test_quantized_weights_take_half_a_byte(desk, capsys):
    document = desk.document(mitigations={"lora": {"rank": 2}})
    plain = planned(desk, capsys, document)
    small = planned(desk, capsys, {**document, "model": {"path": "./tiny", "quantization": NF4}})
    layers = 2 * (16 * 16 * 2 + 16 * 8 * 2 + 3 * 16 * 32)
    assert plain["kinds"]["weights"] - small["kinds"]["weights"] == pytest.approx(layers * (4 - 0.516), abs=2)


def test_offloaded_shards_leave_the_memory_of_a_gpu_but_not_that_of_a_cpu(desk, capsys):
    document = desk.document()
    document["train"] |= {"sharding": "fsdp2", "precision": "float32"}
    device = ("--device", "rtx-4090")
    plain = planned(desk, capsys, document, *device)
    document["train"] |= {"offload_shards": True}
    offloaded = planned(desk, capsys, document, *device)
    kinds = offloaded["kinds"]
    assert kinds["optimizer"] == plain["kinds"]["main_memory"] == 0
    assert kinds["main_memory"] == plain["bytes"] == 16 * plain["weights"]
    assert kinds["weights"] == plain["kinds"]["weights"], "the model has two layers, which are gathered at once"
    assert kinds["peak"] < plain["kinds"]["peak"]
    assert planned(desk, capsys, document)["kinds"]["optimizer"] == plain["kinds"]["optimizer"]
    desk.command("plan", desk.write(document), *device)
    text = " ".join(capsys.readouterr().out.split())
    assert "shards in main memory" in text
    assert "in main memory: about" in text


def test_offloaded_layer_inputs_leave_the_memory_of_a_gpu(desk, capsys):
    document = desk.document()
    document["train"] |= {"gradient_checkpointing": True, "precision": "float32"}
    device = ("--device", "rtx-4090")
    plain = planned(desk, capsys, document, *device)
    document["train"] |= {"offload_activations": True}
    offloaded = planned(desk, capsys, document, *device)
    # Two layers of width 16 in float32; both inputs may still be on their way, so the peak is the same.
    assert offloaded["kinds"]["main_memory"] == 2 * 16 * 4 * offloaded["batch_tokens"]
    assert offloaded["kinds"]["activations"] == plain["kinds"]["activations"] == plain["checkpointed"]
    assert planned(desk, capsys, document)["kinds"]["main_memory"] == 0


def test_only_gathered_weights_of_offloaded_shards_are_on_the_device():
    whole = MemoryEstimate(100, 40, 80, 10, 5, 1, head_gradient=7, accumulates=True)
    offloaded = with_offloaded_shards(whole, 0.25)
    assert (offloaded.weights, offloaded.gradients, offloaded.optimizer) == (25, 10, 0)
    assert offloaded.main_memory == 100 + 40 + 80
    assert offloaded.peak == 100, "the whole model is on the device before and after the stage"
    assert with_offloaded_shards(replace(whole, activations=900), 0.25).peak == 25 + 1 + 7 + 900 + 5


def test_a_device_says_what_fits_and_how_long_it_takes(desk, capsys, monkeypatch):
    document = desk.document()
    memory = planned(desk, capsys, document, "--device", "rtx-4090")
    assert (memory["device"], memory["fits"], memory["remedies"], memory["note"]) == ("rtx-4090", True, [], None)
    assert memory["hours"] > 0
    peak = memory["kinds"]["peak"]
    monkeypatch.setattr("harness.runner.memory_plan.CONTEXT_BYTES", int(USABLE_SHARE * 23.6 * 2**30) - peak + 1)
    memory = planned(desk, capsys, document, "--device", "rtx-4090")
    assert not memory["fits"]
    (keys,) = memory["remedies"]
    options = [word for key in keys for word in ("--set", key)]
    assert planned(desk, capsys, document, "--device", "rtx-4090", *options)["fits"]
    assert desk.command("plan", desk.write(document), "--device", "rtx-4090") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "does not fit into the" in text
    assert f"it would fit with --set {keys[0]}" in text
    assert "training: less than a second at 35 %" in text


def test_on_a_cpu_the_time_follows_from_the_measured_rate_of_matrix_products(desk, capsys, monkeypatch):
    monkeypatch.setattr("harness.runner.memory_plan.matrix_operations_per_second", lambda: 1e9)
    memory = planned(desk, capsys, desk.document())
    gpu = planned(desk, capsys, desk.document(), "--device", "t4-16")
    assert memory["hours"] == pytest.approx(gpu["hours"] * (0.35 * 65e12) / (0.6 * 1e9))
    assert planned(desk, capsys, desk.document(), "--gpus", "2")["hours"] == pytest.approx(memory["hours"], rel=0.2)
    assert planned(desk, capsys, desk.document(), "--set", "train.precision=bfloat16")["hours"] is None
    assert desk.command("plan", desk.write(desk.document())) == 0
    assert "on this CPU as busy as it is now, without evaluation" in " ".join(capsys.readouterr().out.split())


def test_the_rate_of_matrix_products_counts_two_operations_for_each_product_and_sum(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("harness.model.matrix_speed.time.perf_counter", lambda: float(next(clock)))
    assert matrix_speed.matrix_operations_per_second() == 2 * matrix_speed.SIZE**3


def test_settings_that_are_left_to_the_device_are_those_of_a_run_there(desk, capsys, monkeypatch):
    document = desk.document()
    document["train"] |= {"batch_size": 2, "accumulation": 4, "find_batch_size": True, "gradient_checkpointing": "auto"}
    memory = planned(desk, capsys, document, "--device", "rtx-4090")
    chosen = {"batch_size": 8, "accumulation": 1, "gradient_checkpointing": False}
    assert memory["settings"] == {"domain": chosen}
    assert memory["fits"]
    usable = int(USABLE_SHARE * 23.6 * 2**30)
    monkeypatch.setattr("harness.runner.memory_plan.CONTEXT_BYTES", usable - memory["kinds"]["peak"] + 1)
    smaller = planned(desk, capsys, document, "--device", "rtx-4090")
    assert smaller["settings"]["domain"]["batch_size"] < 8
    assert smaller["fits"]
    monkeypatch.setattr("harness.runner.memory_plan.CONTEXT_BYTES", usable)
    least = planned(desk, capsys, document, "--device", "rtx-4090")
    assert least["settings"] == {"domain": {"batch_size": 1, "accumulation": 8, "gradient_checkpointing": True}}
    assert not least["fits"]
    desk.command("plan", desk.write(document), "--device", "rtx-4090")
    assert "there: batch_size 1, accumulation 8, gradient_checkpointing True" in " ".join(
        capsys.readouterr().out.split()
    )
    assert "settings" not in planned(desk, capsys, document)


def test_an_unknown_device_is_one_line(desk, capsys):
    assert desk.command("plan", desk.write(desk.document()), "--device", "h100-8") == 2
    assert capsys.readouterr().err == "harness: --device: 'h100-8' is not a known device; did you mean 'h100-80'?\n"


def test_a_device_without_bfloat16_needs_another_precision(desk, capsys):
    assert "t4-16 has no bfloat16" in planned(desk, capsys, desk.document(), "--device", "t4-16")["note"]
