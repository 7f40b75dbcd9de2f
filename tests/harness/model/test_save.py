"""A trained model is saved to a folder that transformers or PEFT loads."""

from __future__ import annotations

import copy
import errno
import json

import pytest
import torch

from harness.errors import HarnessError, RunError
from harness.model.load import load_model
from harness.model.locate import resolve_model
from harness.model.save import adapter_disabled, base_model, save_model

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


def test_saved_full_model_computes_the_same(loaded, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.nn.init.normal_(loaded.model.norm.weight)
    save_model(loaded, tokenizer, tmp_path / "run" / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    saved_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    torch.testing.assert_close(model(TOKENS).logits, loaded(TOKENS).logits)
    assert saved_tokenizer.chat_template == tokenizer.chat_template
    assert saved_tokenizer("<|im_start|>hi").input_ids == tokenizer("<|im_start|>hi").input_ids
    assert model.config.use_cache
    assert not loaded.config.use_cache
    assert {"model.safetensors", "config.json", "chat_template.jinja"} <= {
        f.name for f in (tmp_path / "run/model").iterdir()
    }


def test_saved_adapter_computes_the_same_and_names_its_base_model(adapted, tokenizer, tmp_path):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    save_model(adapted, tokenizer, tmp_path / "model")
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "model")
    saved_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(model(TOKENS).logits, adapted(TOKENS).logits)
    assert saved_tokenizer.chat_template == tokenizer.chat_template
    config = json.loads((tmp_path / "model" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str((tmp_path / "base").resolve())
    names = {file.name for file in (tmp_path / "model").iterdir()}
    assert "adapter_model.safetensors" in names
    assert "model.safetensors" not in names


def run_readme(folder):
    """Return the model that the lines of a saved model's README load."""
    code = (folder / "README.md").read_text().split("```python")[1].split("```")[0]
    names = {}
    exec(code, names)
    return names["model"].eval()


@pytest.fixture
def published(tmp_path, tiny_model, tokenizer):
    """The tiny model, published in bfloat16 and loaded in float32."""
    tiny_model.to(torch.bfloat16).save_pretrained(tmp_path / "published")
    tokenizer.save_pretrained(tmp_path / "published")
    settings = {"path": str(tmp_path / "published")}
    return load_model(resolve_model(settings), settings, precision="float32")


@pytest.mark.parametrize("is_adapter", [False, True])
def test_readme_loads_the_model_as_it_was_evaluated(published, tokenizer, tmp_path, is_adapter):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(published, config).eval() if is_adapter else published
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1e-4 * weight.requires_grad)
    larger = copy.deepcopy(tokenizer)  # a token that no row needs must not resize the model
    larger.add_tokens(["<unused>"])
    save_model(model, larger, tmp_path / "model")
    loaded = run_readme(tmp_path / "model")
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)


def test_readme_names_the_16_bits_of_the_base_model(published, tokenizer, tmp_path):
    from peft import LoraConfig, get_peft_model

    settings = {"path": str(tmp_path / "published")}
    model = load_model(resolve_model(settings), settings, precision="bfloat16")
    save_model(get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])), tokenizer, tmp_path / "model")
    assert "dtype='bfloat16'" in (tmp_path / "model" / "README.md").read_text()


def test_adapter_of_a_hub_model_names_its_id_and_commit(adapted, tokenizer, tmp_path):
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


def test_published_generation_config_is_saved_again(loaded, tokenizer, tmp_path, tiny_model):
    base = tmp_path / "base"
    # as Llama 2 was published: a temperature without sampling, which transformers refuses to save
    (base / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_p": 0.9, "eos_token_id": 2}))
    settings = {"path": str(base), "attention": "auto"}
    model = load_model(resolve_model(settings), settings)
    save_model(model, tokenizer, tmp_path / "model")
    saved = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert (saved["temperature"], saved["top_p"], saved["do_sample"]) == (0.6, 0.9, True)
    assert model.generation_config.do_sample is False


def test_saving_replaces_the_folder_and_leaves_no_other_file(loaded, tokenizer, tmp_path):
    save_model(loaded, tokenizer, tmp_path / "run" / "model")
    (tmp_path / "run" / "model" / "stale.bin").touch()
    save_model(loaded, tokenizer, tmp_path / "run" / "model")
    assert not (tmp_path / "run" / "model" / "stale.bin").exists()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["model"]


def test_failed_save_keeps_the_previous_folder(loaded, tokenizer, tmp_path, monkeypatch):
    save_model(loaded, tokenizer, tmp_path / "run" / "model")
    (tmp_path / "run" / "spec.json").write_text("{}")
    before = {file.name: file.read_bytes() for file in (tmp_path / "run" / "model").iterdir()}

    def raise_disk_full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(tokenizer), "save_pretrained", raise_disk_full)
    with pytest.raises(
        RunError, match=r"no disk space is left to write the model; free some, then: harness run --resume"
    ):
        save_model(loaded, tokenizer, tmp_path / "run" / "model")
    assert {file.name: file.read_bytes() for file in (tmp_path / "run" / "model").iterdir()} == before
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["model", "spec.json"]
    assert not loaded.config.use_cache


def test_folder_that_cannot_be_created_is_a_run_error(loaded, tokenizer, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"the model cannot be written"):
        save_model(loaded, tokenizer, tmp_path / "file" / "model")


def test_saving_prints_nothing(adapted, tokenizer, tmp_path, capfd):
    capfd.readouterr()
    save_model(adapted, tokenizer, tmp_path / "model")
    assert capfd.readouterr() == ("", "")


def test_model_without_its_adapter_is_the_base_model_only_within_the_context(adapted, loaded, tmp_path):
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")(TOKENS).logits
    trained = adapted(TOKENS).logits
    assert (trained - base).abs().max() > 0.01
    with adapter_disabled(adapted) as before:
        torch.testing.assert_close(before(TOKENS).logits, base)
    torch.testing.assert_close(adapted(TOKENS).logits, trained)


def test_adapter_is_enabled_again_after_an_error_within_the_context(adapted):
    trained = adapted(TOKENS).logits
    with pytest.raises(ZeroDivisionError), adapter_disabled(adapted):
        raise ZeroDivisionError
    torch.testing.assert_close(adapted(TOKENS).logits, trained)


def test_disabling_the_adapter_of_a_model_without_one_is_rejected(loaded):
    with pytest.raises(HarnessError, match='has none; add "lora"'), adapter_disabled(loaded):
        pytest.fail("entered")


def test_base_model_of_an_adapted_model_computes_as_before_the_adapter(adapted, tmp_path):
    from transformers import AutoModelForCausalLM

    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "base")(TOKENS).logits
    assert not torch.equal(adapted(TOKENS).logits, expected)
    with base_model(adapted) as model:
        assert torch.equal(model(TOKENS).logits, expected)


def test_base_model_of_a_model_without_adapter_is_the_model_itself(loaded):
    with base_model(loaded) as model:
        assert model is loaded
