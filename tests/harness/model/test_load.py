"""Tokenizer and model are loaded as training and evaluation need them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.architectures import build_architecture

from harness.errors import HarnessError
from harness.model import device
from harness.model.load import (
    load_model,
    load_on_meta,
    load_tokenizer,
    parameter_count,
)
from harness.model.locate import ModelLocation, resolve_model
from harness.model.tokenizer import load_error

TOKENS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(autouse=True)
def on_cpu(request, monkeypatch):
    if "gpu" not in request.keywords:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def folder(tmp_path, tiny_model, tokenizer) -> Path:
    """The tiny model saved in bfloat16, as most models are published."""
    path = tmp_path / "saved"
    tiny_model.to(torch.bfloat16).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def locate(folder: Path, **changes):
    """Return the location of the model in the folder, and its settings."""
    settings = {"path": str(folder), "revision": None, "trust_remote_code": False, "attention": "auto", **changes}
    return resolve_model(settings), settings


def edit_json(file: Path, **changes) -> None:
    """Change keys of a JSON file; None removes a key."""
    values = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def test_bfloat16_model_is_loaded_in_float32_on_the_cpu(folder, tiny_model):
    model = load_model(*locate(folder))
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert {weight.device.type for weight in model.parameters()} == {"cpu"}
    assert not model.training
    for name, weight in tiny_model.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], weight.float(), rtol=0, atol=0)
    assert model.config._attn_implementation == "sdpa"
    assert model.config.pad_token_id == 0


def test_precision_and_attention_are_as_requested(folder):
    model = load_model(*locate(folder, attention="eager"), precision="bfloat16")
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert model.model.norm.weight.dtype == torch.float32
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss", "gptj", "gpt_neo", "bloom", "mpt", "xglm"])
def test_model_without_sdpa_is_loaded_with_eager_attention(name, tokenizer, tmp_path):
    model = build_architecture(name, tokenizer)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_model(*locate(tmp_path))
    assert loaded.config._attn_implementation == "eager"
    torch.testing.assert_close(loaded(TOKENS).logits, model(TOKENS).logits)
    with pytest.raises(HarnessError, match=r"^model.attention: the code of .* does not support sdpa; use 'auto'"):
        load_model(*locate(tmp_path, attention="sdpa"))


def test_weights_of_rwkv_are_the_same_after_evaluation(tokenizer, tmp_path):
    build_architecture("rwkv", tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = load_model(*locate(tmp_path))
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    model.eval()(TOKENS)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_forward_pass_keeps_no_cache_but_generation_does(folder):
    model = load_model(*locate(folder))
    tokens = torch.tensor([[5, 6, 7]])
    assert model(tokens).past_key_values is None
    input_lengths = []
    model.model.register_forward_pre_hook(
        lambda _, a, k: input_lengths.append(k["input_ids"].shape[1]), with_kwargs=True
    )
    model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=3, eos_token_id=None)
    assert input_lengths == [3, 1, 1]


def test_greedy_generation_does_not_warn_whatever_generation_config_was_published(folder, capfd):
    (folder / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "max_length": 4096})
    )
    model = load_model(*locate(folder))
    tokens = torch.tensor([[5, 6, 7]])
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answers = [
            model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=8, do_sample=False),
            model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=8),
        ]
    assert torch.equal(*answers)
    assert capfd.readouterr() == ("", "")


def test_loading_prints_nothing(folder, capfd):
    location, settings = locate(folder)
    capfd.readouterr()
    load_model(location, settings)
    assert capfd.readouterr() == ("", "")


def test_pad_token_is_that_of_the_tokenizeror_the_end_of_sequence(folder):
    assert load_tokenizer(*locate(folder)).pad_token == "<pad>"
    edit_json(folder / "tokenizer_config.json", pad_token=None)
    tokenizer = load_tokenizer(*locate(folder))
    assert tokenizer.is_fast
    assert tokenizer.pad_token == tokenizer.eos_token == "</s>"
    assert load_model(*locate(folder)).generation_config.pad_token_id == tokenizer.eos_token_id
    edit_json(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(HarnessError, match=r"neither a pad nor an end-of-sequence token"):
        load_tokenizer(*locate(folder))


def test_slow_tokenizeris_rejected(folder, monkeypatch):
    from transformers import PreTrainedTokenizerBase

    tokenizer = load_tokenizer(*locate(folder))
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *a, **k: tokenizer)
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    with pytest.raises(HarnessError, match=r"is a slow tokenizer.*tokenizer.json"):
        load_tokenizer(*locate(folder))


def test_folder_without_a_tokenizeris_a_one_line_error(folder):
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink()
    with pytest.raises(HarnessError, match=r"the tokenizer of .* cannot be loaded") as caught:
        load_tokenizer(*locate(folder))
    assert len(str(caught.value).splitlines()) == 1


def test_weights_that_do_not_fill_the_model_are_rejected(folder):
    edit_json(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(HarnessError, match=r"do not fill LlamaForCausalLM: model\.layers\.2.*\(\d+ in all\)"):
        load_model(*locate(folder))


def test_truncated_weights_are_a_one_line_error(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(HarnessError, match=r"the model of .* cannot be loaded") as caught:
        load_model(*locate(folder))
    assert len(str(caught.value).splitlines()) == 1


class Foreign:
    """An object that is not a tensor."""


def write_bin(folder, contents):
    """Replace the weights by a file of torch.save. contents: the file, or additional objects."""
    if isinstance(contents, dict):
        torch.save({**load_file(folder / "model.safetensors"), **contents}, folder / "pytorch_model.bin")
    else:
        (folder / "pytorch_model.bin").write_bytes(contents)
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("contents", "what"),
    [
        ({"extra": Foreign()}, r"holds an object of \S*Foreign, .*model\.save_pretrained\(FOLDER\)"),
        (b"no weights", r"is damaged or has no weights; .*model\.safetensors"),
        (b"", r"is damaged or has no weights; .*model\.safetensors"),
    ],
)
def test_bin_file_that_is_not_only_weights_is_a_one_line_error(folder, contents, what):
    write_bin(folder, contents)
    with pytest.raises(HarnessError, match=rf"the model of .* cannot be loaded: a \.bin file {what}") as caught:
        load_model(*locate(folder))
    assert len(str(caught.value).splitlines()) == 1
    assert "weights_only" not in str(caught.value)


def test_code_of_a_model_runs_only_if_the_spec_and_the_command_agree(folder, monkeypatch):
    edit_json(
        folder / "config.json",
        model_type="own",
        architectures=["Own"],
        auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"},
    )
    (folder / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    for load in (load_model, load_on_meta):
        with pytest.raises(HarnessError, match=r"needs code that comes with it.*model.trust_remote_code"):
            load(*locate(folder))
    trusted = locate(folder, trust_remote_code=True)
    for load in (load_model, load_on_meta):
        with pytest.raises(HarnessError, match=r"the command does not; .*--trust-remote-code"):
            load(*trusted)
    monkeypatch.setenv("HARNESS_TRUST_REMOTE_CODE", "1")
    assert type(load_model(*trusted)).__name__ == "Own"
    assert type(load_on_meta(*trusted)).__name__ == "Own"


def test_flash_attention_without_its_package_is_rejected_before_loading(folder, recorder):
    with pytest.raises(HarnessError, match=r"model.attention"):
        load_model(*locate(folder, attention="flash_attention_2"), progress=recorder)
    assert not recorder.calls


def test_parameters_are_counted_from_the_config_with_tied_weights_once(folder, tiny_model):
    (folder / "model.safetensors").write_bytes(b"never read")
    assert parameter_count(load_on_meta(*locate(folder))) == sum(weight.numel() for weight in tiny_model.parameters())
    edit_json(folder / "config.json", tie_word_embeddings=False)
    head_size = tiny_model.get_input_embeddings().weight.numel()
    assert (
        parameter_count(load_on_meta(*locate(folder)))
        == sum(weight.numel() for weight in tiny_model.parameters()) + head_size
    )


def test_config_of_an_unknown_model_type_is_an_error(folder):
    edit_json(folder / "config.json", model_type="nosuchmodel", architectures=None)
    with pytest.raises(HarnessError, match=r"the config of .* cannot be loaded"):
        load_on_meta(*locate(folder))


def test_parameters_of_a_converted_model_are_counted_without_its_weights(gguf_source):
    settings = {"path": str(gguf_source), "attention": "auto"}
    location = resolve_model(settings)
    count = parameter_count(load_on_meta(location, settings))
    assert count == load_model(location, settings).num_parameters()
    assert load_tokenizer(location, settings).pad_token == "<|im_end|>"


def test_hub_model_that_was_never_downloaded_is_an_error_and_has_no_known_size():
    settings = {"path": "nobody/nothing", "revision": "v1", "attention": "auto"}
    location = resolve_model(settings)  # the tests run with the hub offline
    assert (location.kind, location.path, location.revision) == ("hub", "nobody/nothing", "v1")
    assert location.digest == "hub:nobody/nothing"
    assert load_on_meta(location, settings) is None
    for load in (load_tokenizer, load_model):
        with pytest.raises(
            HarnessError, match=r"the hub cannot be reached, and 'nobody/nothing' at revision 'v1' is not"
        ):
            load(location, settings)


def test_model_on_the_meta_device_has_the_weights_without_values(folder, tiny_model):
    from peft import LoraConfig, get_peft_model

    model = load_on_meta(*locate(folder))
    assert model.device.type == "meta"
    assert parameter_count(model) == parameter_count(tiny_model)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    adapter_size = parameter_count(adapted) - parameter_count(tiny_model)
    assert 0 < parameter_count(adapted, trainable=True) < adapter_size + 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_model_is_on_the_gpu_in_the_resolved_dtype(folder):
    model = load_model(*locate(folder))
    assert model.device == device.select_device()
    assert model.dtype == device.resolve_dtype("auto", device.select_device())
    tokens = torch.tensor([[5, 6, 7]], device=model.device)
    assert torch.isfinite(model(tokens).logits).all()


@pytest.mark.parametrize(
    ("error", "what", "hint"),
    [
        (ModuleNotFoundError("No module named 'tiktoken'", name="tiktoken"), "No module named", "pip install tiktoken"),
        (
            ImportError("\nT5Converter requires the SentencePiece library but it was not found."),
            "T5Converter requires",
            "pip install sentencepiece",
        ),
        (
            ValueError("blobfile is not installed. Please install it: pip install blobfile"),
            "blobfile",
            "pip install blobfile",
        ),
        (OSError("no file named model.safetensors"), "no file named", "check that the folder is complete"),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(error, what, hint):
    found = load_error(error, ModelLocation("folder", "./m", None, "0"), "tokenizer")
    assert found.what.startswith(f"the tokenizer of './m' cannot be loaded: {what}")
    assert found.hint == hint
