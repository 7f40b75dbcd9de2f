"""Models of many architectures are trained, measured, saved and loaded alike."""

from __future__ import annotations

import gc

import pytest
from support.architectures import ARCHITECTURES
from support.model_matrix import ADAPTER, RUNS, ModelWorkspace, check_run, check_saved_model, run_case
from support.paths import ROOT

from harness.errors import HarnessError
from harness.model import quantization


@pytest.fixture(scope="module", autouse=True)
def quick_collection():
    """Exclude what is imported already from the garbage collection at the end of every stage."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, tokenizer):
    return ModelWorkspace(tmp_path_factory.mktemp("models"), tokenizer)


DEFAULT_CASES = {
    ("gemma2", "all weights"),
    ("gpt2", "`lora`, merged"),
    ("mixtral", "`lora`, continued"),
    ("minimax", "all weights"),
    ("rwkv", "all weights"),
}
"""Cases of the default tests: soft caps, transposed tied weights, fused experts, and two recurrent models."""


@pytest.mark.parametrize(
    ("name", "run"),
    [
        pytest.param(name, run, marks=[] if (name, run) in DEFAULT_CASES else pytest.mark.slow)
        for name in ARCHITECTURES
        for run in RUNS
    ],
)
def test_architecture_is_trained_measured_saved_and_loaded_alike_or_refused(workspace, name, run):
    if name == "rwkv" and "lora" in run:
        with pytest.raises(HarnessError, match=r"^mitigations\.lora: "):
            run_case(workspace, name, run)
        return
    run_case(workspace, name, run)


def test_document_has_the_outcome_of_every_architecture():
    lines = (ROOT / "docs" / "models.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    outcomes = {first: ["equal" if cell == "equal" else cell.split(":")[0] for cell in rest] for first, *rest in cells}
    equal = ["equal"] * len(RUNS)
    assert {name: outcomes.get(name) for name in ARCHITECTURES} == {
        name: equal if name != "rwkv" else ["equal", "refused", "refused"] for name in ARCHITECTURES
    }


TIED_EMBEDDINGS = [
    ("llama-tied", ["embed_tokens", "q_proj"]),
    pytest.param("gpt2", ["wte", "c_attn"], marks=pytest.mark.slow),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "target"), TIED_EMBEDDINGS)
def test_merged_adapter_of_embedding_leaves_output_head_as_it_is(workspace, name, target):
    lora = {"lora": {"rank": 2, "target": target}}
    check_run(workspace.run(name, lora, "merge"))
    check_saved_model(workspace.run(name, lora, "merge", second_learning_rate=0.01))


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["continue", "merge"])
def test_adapter_that_starts_from_transposed_weights_is_saved_as_measured(workspace, adapter):
    check_run(workspace.run("gpt2", {"lora": {"rank": 2, "start": "pissa"}}, adapter))


@pytest.mark.slow
def test_fused_experts_with_their_adapters_on_linear_layers_are_saved_as_measured(workspace):
    target = ["k_proj", "o_proj", "q_proj", "v_proj"]
    check_run(workspace.run("mixtral", {"orthogonal_lora": {"rank": 2, "target": target}}))
    check_run(workspace.run("mixtral", {"lora": {"rank": 2, "target": target}, "wise_ft": {"alpha": 0.5}}))


def test_quantized_model_is_refused_before_training_where_its_weights_would_change(workspace, monkeypatch):
    monkeypatch.setattr(quantization, "quantization_method", lambda model: "fp8")
    with pytest.raises(HarnessError, match=r"^model.path: its weights are quantized \(fp8\)"):
        workspace.run("llama", {})
    with pytest.raises(HarnessError, match=r"^model.path: its weights are quantized \(fp8\)"):
        workspace.run("llama", {"osf": {}})
    with pytest.raises(HarnessError, match=r"^mode.continual: an adapter cannot be merged"):
        workspace.run("llama", ADAPTER, "merge")
