"""Weights that are divided among two processes are trained like whole ones, and are whole again afterwards."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy

from harness.training.sharded_weights import ShardedWeights, sharded_weights

PROGRAM = Path(__file__).with_name("sharded_stage.py")


def run(folder, processes, batch_size, sharding):
    """Start the program in each process and return its results."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    started = []
    for rank in range(processes):
        own = {**common, "RANK": rank, "LOCAL_RANK": rank if processes > 1 else -1}
        environment = os.environ | {name: str(value) for name, value in own.items()}
        words = [sys.executable, str(PROGRAM), str(folder), str(batch_size), sharding]
        started.append(subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        errors = [process.communicate(timeout=240)[1] for process in started]
    finally:  # a process may wait for another one forever
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, "\n".join(errors)
    return torch.load(folder / "result.pt", weights_only=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sharded_weights_are_trained_like_whole_ones(tmp_path):
    whole, sharded = run(tmp_path / "one", 1, 4, "none"), run(tmp_path / "two", 2, 2, "fsdp2")
    for case, one in whole.items():
        two = sharded[case]
        tolerance = 2e-3 if "bfloat16" in case else 1e-6
        assert len(two["log"]) == len(one["log"]) == 4
        for entry, other in zip(one["log"], two["log"], strict=True):
            for key in ("loss", "grad_norm"):
                assert other[key] == pytest.approx(entry[key], rel=max(tolerance, 1e-5)), (case, key)
        for key in ("weights", *(["second"] if case == "full" else [])):
            assert two[key].keys() == one[key].keys()
            for name, weight in one[key].items():
                assert two[key][name].dtype == weight.dtype
                assert torch.allclose(two[key][name].float(), weight.float(), atol=tolerance), (case, name)
        # In the middle of a stage the main process runs the plain model alone.
        assert two["classes"] == one["classes"]
        assert torch.allclose(two["logits"], one["logits"], atol=50 * tolerance), case
        # A resumed stage has the same weights, bit for bit.
        assert all(torch.equal(two["resumed"][name], weight) for name, weight in two["weights"].items()), case
        for kind in ("weights", "gradients", "optimizer"):
            assert 0.49 < two["memory"][kind] / one["memory"][kind] < 0.65, (case, kind)
    offloaded = run(tmp_path / "offloaded", 2, 2, "offload")
    for case, two in sharded.items():
        for key in ("weights", "resumed", *(["second"] if case == "full" else [])):
            assert all(torch.equal(offloaded[case][key][name], weight) for name, weight in two[key].items()), case
        assert [entry["grad_norm"] for entry in offloaded[case]["log"]] == [entry["grad_norm"] for entry in two["log"]]


@pytest.mark.parametrize(("offload", "policy"), [(True, CPUOffloadPolicy), (False, OffloadPolicy)])
def test_the_parts_are_stored_in_main_memory_on_demand(tiny_model, monkeypatch, offload, policy):
    policies = []
    monkeypatch.setattr("torch.distributed.fsdp.fully_shard", lambda *_, **options: policies.append(options))
    monkeypatch.setattr("torch.distributed.device_mesh.init_device_mesh", lambda *_: None)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    for verb in ("gather", "release"):
        monkeypatch.setattr(ShardedWeights, verb, lambda _: None)
    with sharded_weights(tiny_model, {"sharding": "fsdp2", "offload_shards": offload}, 2):
        pass
    assert policies
    assert all(type(options["offload_policy"]) is policy for options in policies)
    assert not any(getattr(options["offload_policy"], "pin_memory", False) for options in policies)  # on a CPU


def test_one_process_has_nothing_to_divide(tiny_model):
    with (
        pytest.warns(UserWarning, match=r"train\.sharding has no effect in one process: start several with --gpus N"),
        sharded_weights(tiny_model, {"sharding": "fsdp2"}, 1) as shards,
    ):
        assert shards is None
    with sharded_weights(tiny_model, {"sharding": None}, 2) as shards:
        assert shards is None
