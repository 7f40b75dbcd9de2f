"""Models of many architectures are trained, measured, saved and loaded alike."""

from __future__ import annotations

import gc

import pytest
import torch
from support.model_matrix import ModelWorkspace, check_run, check_saved_model

torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def quick_collection():
    """Exclude what is imported already from the garbage collection at the end of every stage."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, tokenizer):
    return ModelWorkspace(tmp_path_factory.mktemp("models"), tokenizer)


TIED_EMBEDDINGS = [("llama-tied", ["embed_tokens", "q_proj"]), ("gpt2", ["wte", "c_attn"])]


@pytest.mark.parametrize(("name", "target"), TIED_EMBEDDINGS)
def test_merged_adapter_of_embedding_leaves_output_head_as_it_is(workspace, name, target):
    lora = {"lora": {"rank": 2, "target": target}}
    check_run(workspace.run(name, lora, "merge"))
    check_saved_model(workspace.run(name, lora, "merge", second_learning_rate=0.01))
