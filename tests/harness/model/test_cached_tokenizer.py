"""The snapshot that is saved without torch is the one that is saved with it."""

from __future__ import annotations

import pytest
import transformers
from tokenizers import pre_tokenizers

from harness.model import cached_tokenizer
from harness.model.added_tokens import AddedTokens
from harness.model.cached_tokenizer import SharedLightTokenizers, save_snapshot_without_torch
from harness.model.locate import ModelLocation
from harness.model.tokenizer import load_tokenizer
from harness.model.tokenizer_snapshot import save_snapshot

BYTES = {token: index for index, token in enumerate(["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
PIECES = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", "▁", "a", "b", "ab"])}
CLASSES = {
    "Qwen2Tokenizer": lambda: transformers.Qwen2Tokenizer(vocab=BYTES, merges=[]),
    "LlamaTokenizer": lambda: transformers.LlamaTokenizer(vocab=PIECES, merges=[("a", "b")]),
}


@pytest.mark.parametrize("name", ["tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in CLASSES)])
def test_snapshots_saved_with_and_without_torch_are_equal(name, tokenizer, tiny_model, tmp_path):
    folder = tmp_path / "model"
    tiny_model.config.save_pretrained(folder)
    (tokenizer if name == "tiny" else CLASSES[name]()).save_pretrained(folder)
    location = ModelLocation("folder", str(folder), None, "digest", added=AddedTokens(("<own>",), ("<turn>",)))
    save_snapshot_without_torch(location, {}, tmp_path / "without.json")
    assert save_snapshot(load_tokenizer(location, {}), tmp_path / "with.json")
    assert (tmp_path / "without.json").read_bytes() == (tmp_path / "with.json").read_bytes()


@pytest.mark.slow
def test_a_folder_that_cannot_be_loaded_has_no_snapshot(tmp_path):
    save_snapshot_without_torch(ModelLocation("folder", str(tmp_path), None, "digest"), {}, tmp_path / "none.json")
    assert not (tmp_path / "none.json").exists()


def test_runs_with_the_same_model_share_a_tokenizer(monkeypatch):
    loaded = []
    monkeypatch.setattr(cached_tokenizer, "load_light_tokenizer", lambda *given: loaded.append(given) or object())
    load = SharedLightTokenizers()
    first, second = (ModelLocation("folder", path, None, path) for path in ("a", "b"))
    settings, others = {"path": "a", "attention": "auto"}, {"path": "a", "attention": "eager"}
    assert load(first, settings) is load(first, dict(reversed(settings.items())))
    assert len({id(load(*given)) for given in ((first, settings), (first, others), (second, settings))}) == 3
    assert len(loaded) == 3
