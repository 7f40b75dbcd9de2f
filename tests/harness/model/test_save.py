from __future__ import annotations

import errno
import json

import pytest
import torch

from harness.errors import HarnessError, RunError
from harness.model.load import load_model
from harness.model.locate import resolve_model
from harness.model.save import adapter_disabled, save_model

torch.set_num_threads(1)
TOKENS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture
def loaded(tmp_path, tiny_model, tokenizer, monkeypatch):
    """The tiny model, saved as a base and loaded from there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    base = tmp_path / "base"
    tiny_model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    settings = {"path": str(base), "attention": "auto"}
    return load_model(resolve_model(settings), settings)


@pytest.fixture
def adapted(loaded):
    """The loaded model with a LoRA adapter that changes its outputs."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(loaded, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    return model.eval()


def test_a_full_model_loads_in_three_lines_and_computes_the_same(loaded, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.nn.init.normal_(loaded.model.norm.weight)
    save_model(loaded, tokenizer, tmp_path / "run" / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    words = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    torch.testing.assert_close(model(TOKENS).logits, loaded(TOKENS).logits)
    assert words.chat_template == tokenizer.chat_template
    assert words("<|im_start|>hi").input_ids == tokenizer("<|im_start|>hi").input_ids
    assert model.config.use_cache
    assert not loaded.config.use_cache
    assert {"model.safetensors", "config.json", "chat_template.jinja"} <= {
        f.name for f in (tmp_path / "run/model").iterdir()
    }


def test_an_adapter_loads_in_three_lines_and_records_its_base(adapted, tokenizer, tmp_path):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    save_model(adapted, tokenizer, tmp_path / "model")
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "model")
    words = AutoTokenizer.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(model(TOKENS).logits, adapted(TOKENS).logits)
    assert words.chat_template == tokenizer.chat_template
    config = json.loads((tmp_path / "model" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str((tmp_path / "base").resolve())
    names = {file.name for file in (tmp_path / "model").iterdir()}
    assert "adapter_model.safetensors" in names
    assert not {"model.safetensors", "README.md"} & names


def test_an_adapter_of_a_hub_model_records_its_id_and_commit(adapted, tokenizer, tmp_path):
    from harness.model.load import ORIGIN_ATTRIBUTE
    from harness.model.locate import ModelLocation

    setattr(
        adapted.get_base_model(),
        ORIGIN_ATTRIBUTE,
        ModelLocation("hub", "org/tiny", "c" * 40, "hub:org/tiny@" + "c" * 40),
    )
    save_model(adapted, tokenizer, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/tiny", "c" * 40)


def test_the_generation_config_that_was_published_is_saved_again(loaded, tokenizer, tmp_path, tiny_model):
    base = tmp_path / "base"
    # as Llama 2 was published: a temperature without sampling, which transformers refuses to save
    (base / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_p": 0.9, "eos_token_id": 2}))
    settings = {"path": str(base), "attention": "auto"}
    model = load_model(resolve_model(settings), settings)
    save_model(model, tokenizer, tmp_path / "model")
    saved = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert (saved["temperature"], saved["top_p"], saved["do_sample"]) == (0.6, 0.9, True)
    assert model.generation_config.do_sample is False


def test_saving_again_replaces_the_folder_and_leaves_nothing_beside_it(loaded, tokenizer, tmp_path):
    save_model(loaded, tokenizer, tmp_path / "run" / "model")
    (tmp_path / "run" / "model" / "stale.bin").touch()
    save_model(loaded, tokenizer, tmp_path / "run" / "model")
    assert not (tmp_path / "run" / "model" / "stale.bin").exists()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["model"]


def test_a_save_that_fails_keeps_the_former_folder_whole(loaded, tokenizer, tmp_path, monkeypatch):
    save_model(loaded, tokenizer, tmp_path / "run" / "model")
    before = {file.name: file.read_bytes() for file in (tmp_path / "run" / "model").iterdir()}

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(tokenizer), "save_pretrained", full)
    with pytest.raises(RunError, match=r"no disk space left to save the model; free some and run again"):
        save_model(loaded, tokenizer, tmp_path / "run" / "model")
    assert {file.name: file.read_bytes() for file in (tmp_path / "run" / "model").iterdir()} == before
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["model"]
    assert not loaded.config.use_cache


def test_a_folder_that_cannot_be_made_is_an_error_of_the_run(loaded, tokenizer, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"the model cannot be saved"):
        save_model(loaded, tokenizer, tmp_path / "file" / "model")


def test_saving_prints_nothing(adapted, tokenizer, tmp_path, capfd):
    capfd.readouterr()
    save_model(adapted, tokenizer, tmp_path / "model")
    assert capfd.readouterr() == ("", "")


def test_the_reference_is_the_model_before_its_adapter_and_only_within(adapted, loaded, tmp_path):
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")(TOKENS).logits
    trained = adapted(TOKENS).logits
    assert (trained - base).abs().max() > 0.01
    with adapter_disabled(adapted) as before:
        torch.testing.assert_close(before(TOKENS).logits, base)
    torch.testing.assert_close(adapted(TOKENS).logits, trained)


def test_the_adapter_is_on_again_after_an_error_within(adapted):
    trained = adapted(TOKENS).logits
    with pytest.raises(ZeroDivisionError), adapter_disabled(adapted):
        raise ZeroDivisionError
    torch.testing.assert_close(adapted(TOKENS).logits, trained)


def test_a_model_without_an_adapter_has_no_reference(loaded):
    with pytest.raises(HarnessError, match='has none; add "lora"'), adapter_disabled(loaded):
        pytest.fail("entered")
