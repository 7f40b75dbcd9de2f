"""The memory of a stage by kind: what is measured after it, and what is estimated before."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from harness_mitigations.ewc import Ewc
from harness_mitigations.kl import build_kl_mitigation
from harness_mitigations.lora import Lora
from support.architectures import build_architecture
from transformers import LlamaConfig, LlamaForCausalLM

from harness.model.load import parameter_count
from harness.model.row_attention import row_attention
from harness.training import memory, memory_estimate
from harness.training.collator import Collator
from harness.training.loss import summed_nll


def create_ewc():
    options = {"dtype": "bfloat16", "place": "device"}
    return Ewc("general", 1.0, "gradient", "sampled", 4, 4, True, None, 1.0, cache=False, **options)


def test_weights_gradients_and_optimizer_are_counted_by_their_bytes(make_stage, fit, tiny_model):
    _, result, _ = fit(make_stage(precision="float32"))
    count = parameter_count(tiny_model)
    steps = 4 * len(list(tiny_model.parameters()))  # AdamW counts the steps of each weight in a scalar
    assert result.memory["weights"] == result.memory["gradients"] == 4 * count
    assert result.memory["optimizer"] == 8 * count + steps
    assert result.memory["peak"] > 16 * count
    assert result.totals()["memory"] == result.memory


def test_an_adapter_has_small_gradients_and_optimizer_state(make_stage, fit, tiny_model):
    model = Lora(4, None, 0.0, "all-linear", False, False, "zero", None, 1, 1, ()).prepare_model(tiny_model, seed=0)
    _, result, _ = fit(make_stage(precision="float32"), model=model)
    trained = parameter_count(model, trainable=True)
    assert result.memory["gradients"] == 4 * trained
    assert 8 * trained <= result.memory["optimizer"] < 9 * trained
    assert result.memory["weights"] == 4 * parameter_count(model)


def test_tensors_and_base_models_of_mitigations_are_counted_once(make_rows, make_stage, tiny_model):
    rows, stage = {"general": make_rows(4)}, make_stage().stage
    ewc, kl = (
        create_ewc(),
        [build_kl_mitigation("task", None, 4, 1.0, "forward", 1.0, False, "data", "data", {}) for _ in range(2)],
    )
    for mitigation in (ewc, *kl):
        mitigation.on_stage_start(stage, tiny_model, rows, seed=0)
    count = parameter_count(tiny_model)
    of_ewc = memory.measure_stage_memory(tiny_model, None, [ewc])["mitigations"]
    assert 4 * count <= of_ewc <= 6 * count  # F in bfloat16, the anchor in bfloat16 or float32
    assert memory.measure_stage_memory(tiny_model, None, kl)["mitigations"] == 4 * count
    assert memory.measure_stage_memory(tiny_model, None, [ewc, *kl])["mitigations"] == of_ewc + 4 * count


@pytest.mark.slow
def test_the_peak_of_a_process_grows_with_what_it_holds():
    before = memory.peak_memory(torch.device("cpu"))
    held = torch.ones(before // 4 + 2**24)  # more than the process has ever had
    assert memory.peak_memory(torch.device("cpu")) >= held.numel() * 4


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_estimate_of_activations_is_near_to_what_a_batch_stores(dtype, adapter, make_rows, tiny_model):
    model = tiny_model
    if adapter:
        model = Lora(4, None, 0.0, "all-linear", False, False, "zero", None, 1, 1, ()).prepare_model(model, seed=0)
    rows = make_rows(40)
    batch = Collator(rows, [(index,) for index in range(40)], 0, flatten=True)(range(40))
    weights = {memory_estimate.storage_id(weight) for weight in model.parameters()}
    with torch.autocast("cpu", dtype) if dtype else nullcontext():
        size = memory_estimate.activation_size(model)
        with row_attention(model), memory_estimate._recording_saved_tensors() as saved:
            loss = summed_nll(model, model, batch)
    stored = {memory_estimate.storage_id(tensor): tensor.untyped_storage().nbytes() for tensor in saved}
    total = sum(bytes for storage, bytes in stored.items() if storage not in weights)
    assert loss.requires_grad
    assert size.stored * batch["input_ids"].numel() == pytest.approx(total, rel=0.35)
    assert size.checkpointed < size.stored


def test_activations_are_measured_without_weights_too(tiny_model):
    size = memory_estimate.activation_size(tiny_model)
    on_meta = memory_estimate.activation_size(copy.deepcopy(tiny_model).to("meta"))
    assert on_meta.stored == pytest.approx(size.stored, rel=0.3)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "llama4"])
def test_activations_of_experts_are_measured_without_weights_too(name, tokenizer):
    model = build_architecture(name, tokenizer)
    size = memory_estimate.activation_size(model)
    on_meta = memory_estimate.activation_size(model.to("meta"))
    assert on_meta.stored == pytest.approx(size.stored, rel=0.1)


def test_at_most_five_inputs_of_layers_are_left_on_the_device():
    config = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 50}
    with torch.device("meta"):
        few, many = (LlamaForCausalLM(LlamaConfig(**config, num_hidden_layers=layers)) for layers in (3, 9))
    small, large = memory_estimate.activation_size(few), memory_estimate.activation_size(many)
    assert small.offloaded == small.checkpointed
    assert large.checkpointed - large.offloaded == (9 - 5) * 16 * 4
    assert (small.layer_inputs, large.layer_inputs) == (3 * 16 * 4, 9 * 16 * 4)


def test_a_probe_changes_neither_random_numbers_nor_mode_nor_gradients(tiny_model):
    state = torch.get_rng_state()
    memory_estimate.activation_size(tiny_model.eval())
    assert torch.equal(torch.get_rng_state(), state)
    assert not tiny_model.training
    assert all(weight.grad is None for weight in tiny_model.parameters())


def test_a_model_that_cannot_be_probed_has_no_estimate(tiny_model, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("no")

    monkeypatch.setattr(tiny_model, "forward", fail)
    assert memory_estimate.activation_size(tiny_model) is None


def fitting(model, data):
    return memory_estimate.with_fitting_settings(model, data, None, 8.0).stage.train


def test_checkpointing_is_on_only_where_a_stage_does_not_fit(make_stage, fit, tiny_model, monkeypatch):
    data = make_stage(precision="float32", gradient_checkpointing="auto")
    size = memory_estimate.activation_size(tiny_model)
    tokens = max(sum(len(row.input_ids) for row in data.rows[i : i + 4]) for i in (0, 4, 8))
    estimate = memory_estimate.estimate_stage(tiny_model, tokens, tokens * size.stored, None, 8.0, False)
    assert (estimate.gradients, estimate.optimizer) == (
        4 * parameter_count(tiny_model),
        8 * parameter_count(tiny_model),
    )
    assert (estimate.weights, estimate.head_gradient) == (0, 4 * tiny_model.lm_head.weight.numel())
    data, needed = replace(data, is_padded=False), estimate.peak
    monkeypatch.setattr(memory_estimate, "available_bytes", lambda device, processes: 2 * needed)
    assert not fitting(tiny_model, data)["gradient_checkpointing"]
    monkeypatch.setattr(memory_estimate, "available_bytes", lambda device, processes: needed)
    with pytest.warns(UserWarning, match="stage 'stage' would need about .* train.gradient_checkpointing is on"):
        trained, _, _ = fit(data)
    plain, _, _ = fit(make_stage(precision="float32"))
    for first, second in zip(trained.parameters(), plain.parameters(), strict=True):
        assert torch.equal(first, second)


def test_a_container_limits_the_available_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_estimate, "_CGROUP", tmp_path)
    cpu = torch.device("cpu")
    unlimited = memory_estimate.available_bytes(cpu)
    assert unlimited > 2**20
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    assert memory_estimate.available_bytes(cpu) == 300_000
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 100000\n")
    assert memory_estimate.available_bytes(cpu, processes=2) == 200_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_estimate.available_bytes(cpu) > 2**20


def test_a_model_whose_memory_cannot_be_estimated_trains_without_checkpointing_and_a_warning(
    tiny_model, make_stage, monkeypatch
):
    monkeypatch.setattr(memory_estimate, "activation_size", lambda model: None)
    with pytest.warns(UserWarning, match="cannot be measured, so train.gradient_checkpointing is off; set it to true"):
        assert fitting(tiny_model, make_stage(gradient_checkpointing="auto"))["gradient_checkpointing"] is False
    with pytest.warns(UserWarning, match=r"cannot be measured, so train.batch_size stays 4; set it to true or lower"):
        assert fitting(tiny_model, make_stage(find_batch_size=True))["batch_size"] == 4


@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": "auto"}, {"find_batch_size": True}])
def test_activations_are_measured_once_and_only_where_a_setting_depends_on_them(
    settings, tiny_model, make_stage, monkeypatch
):
    calls, returned, real = [], [], memory_estimate.activation_size
    monkeypatch.setattr(memory_estimate, "activation_size", lambda model: calls.append(model) or real(model))
    monkeypatch.setattr(memory_estimate.allocator, "return_freed_memory", lambda: returned.append(True))
    fitting(tiny_model, make_stage(**settings))
    assert len(returned) == bool(settings), "freed blocks are returned where the memory matters"
    both = {"gradient_checkpointing": "auto", "find_batch_size": True}
    fitting(tiny_model, make_stage(**both))
    assert len(calls) == 1 + bool(settings)


def test_a_model_without_checkpointing_that_does_not_fit_has_a_warning(tiny_model, make_stage, monkeypatch):
    monkeypatch.setattr(memory_estimate, "available_bytes", lambda device, processes: 1)
    monkeypatch.setattr(type(tiny_model), "supports_gradient_checkpointing", False)
    with pytest.warns(UserWarning, match="this model has no gradient checkpointing; lower train.batch_size"):
        assert fitting(tiny_model, make_stage(gradient_checkpointing="auto"))["gradient_checkpointing"] is False
