"""The exporter `mlflow`: a model in MLflow's format, uploaded to a store and registered."""

from __future__ import annotations

import numpy
import pytest
import torch

from harness import HarnessError


@pytest.mark.slow
def test_the_model_is_loaded_again_uploaded_and_registered(create, source, tiny_model, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    exporter = create("mlflow", uri=uri, register="desk", dtype="float32")
    folder = tmp_path / "out"
    folder.mkdir()
    assert exporter.export(source, folder) == "MLflow model in float32"
    loaded = exporter.load(folder, 64)
    tokens = loaded.encode_prompt([{"role": "user", "content": "Hi"}])
    assert tokens == source.tokenizer("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    with torch.no_grad():
        expected = tiny_model(torch.tensor([tokens])).logits[0].numpy()
    numpy.testing.assert_allclose(loaded.logits(tokens), expected, rtol=1e-5, atol=1e-6)
    assert exporter.publish(folder).endswith("registered as desk version 1")
    version = MlflowClient(uri, uri).get_model_version("desk", "1")
    assert version.source.endswith("/model")


def test_without_a_store_nothing_is_uploaded(create, tmp_path):
    assert create("mlflow").publish(tmp_path) == ""


def test_a_registration_needs_a_store(create):
    with pytest.raises(HarnessError, match="register needs a tracking store"):
        create("mlflow", register="desk")


def test_a_store_that_cannot_be_opened_is_one_line(create, tmp_path):
    (tmp_path / "model").mkdir()
    exporter = create("mlflow", uri="carrier-pigeon://store")
    with pytest.raises(HarnessError, match="cannot upload the model"):
        exporter.publish(tmp_path)
