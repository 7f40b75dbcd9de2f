"""A tiny model on disk."""

from __future__ import annotations

import pytest


@pytest.fixture
def untrained(tmp_path_factory, tiny_model, tokenizer):
    """The folder of the tiny model, which has a chat template."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
