from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch

from harness.errors import HarnessError
from harness.model import device
from harness.model.load import load_model, load_tokenizer, parameter_count_from_config
from harness.model.locate import resolve_model

torch.set_num_threads(1)


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


def at(folder: Path, **more):
    settings = {"path": str(folder), "revision": None, "trust_remote_code": False, "attention": "auto", **more}
    return resolve_model(settings), settings


def edit(file: Path, **changes) -> None:
    values = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def test_a_bfloat16_model_is_loaded_in_float32_on_the_cpu_ready_to_train(folder, tiny_model):
    model = load_model(*at(folder))
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert {weight.device.type for weight in model.parameters()} == {"cpu"}
    assert not model.training
    for name, weight in tiny_model.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], weight.float(), rtol=0, atol=0)
    assert model.config._attn_implementation == "sdpa"
    assert model.config.pad_token_id == 0


def test_precision_and_attention_are_as_asked_for(folder):
    model = load_model(*at(folder, attention="eager"), precision="bfloat16")
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"


def test_a_forward_pass_keeps_no_keys_and_values_but_generation_does(folder):
    model = load_model(*at(folder))
    tokens = torch.tensor([[5, 6, 7]])
    assert model(tokens).past_key_values is None
    given = []
    model.model.register_forward_pre_hook(lambda _, a, k: given.append(k["input_ids"].shape[1]), with_kwargs=True)
    model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=3, eos_token_id=None)
    assert given == [3, 1, 1]


def test_greedy_generation_warns_of_nothing_whatever_was_published_with_the_model(folder, capfd):
    (folder / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "max_length": 4096})
    )
    model = load_model(*at(folder))
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
    location, settings = at(folder)
    capfd.readouterr()
    load_model(location, settings)
    assert capfd.readouterr() == ("", "")


def test_the_tokenizer_has_its_own_pad_token_or_the_end_of_sequence(folder):
    assert load_tokenizer(*at(folder)).pad_token == "<pad>"
    edit(folder / "tokenizer_config.json", pad_token=None)
    words = load_tokenizer(*at(folder))
    assert words.is_fast
    assert words.pad_token == words.eos_token == "</s>"
    assert load_model(*at(folder)).generation_config.pad_token_id == words.eos_token_id
    edit(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(HarnessError, match=r"neither a pad nor an end-of-sequence token"):
        load_tokenizer(*at(folder))


def test_a_slow_tokenizer_is_refused(folder, monkeypatch):
    from transformers import PreTrainedTokenizerBase

    words = load_tokenizer(*at(folder))
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *a, **k: words)
    monkeypatch.setattr(type(words), "is_fast", False)
    assert isinstance(words, PreTrainedTokenizerBase)
    with pytest.raises(HarnessError, match=r"is a slow tokenizer.*tokenizer.json"):
        load_tokenizer(*at(folder))


def test_a_folder_without_a_tokenizer_is_an_error_in_one_line(folder):
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink()
    with pytest.raises(HarnessError, match=r"the tokenizer of .* cannot be loaded") as caught:
        load_tokenizer(*at(folder))
    assert len(str(caught.value).splitlines()) == 1


def test_weights_that_do_not_fill_the_model_are_refused(folder):
    edit(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(HarnessError, match=r"do not fill LlamaForCausalLM: model\.layers\.2.*\(\d+ in all\)"):
        load_model(*at(folder))


def test_cut_off_weights_are_an_error_in_one_line(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(HarnessError, match=r"the model of .* cannot be loaded") as caught:
        load_model(*at(folder))
    assert len(str(caught.value).splitlines()) == 1


def test_code_that_comes_with_a_model_runs_only_when_the_spec_says_so(folder):
    edit(
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
    for refused in (load_model, parameter_count_from_config):
        with pytest.raises(HarnessError, match=r"runs code that comes with it.*model.trust_remote_code"):
            refused(*at(folder))
    trusted = at(folder, trust_remote_code=True)
    assert type(load_model(*trusted)).__name__ == "Own"
    assert parameter_count_from_config(*trusted) is not None


def test_flash_attention_without_its_package_is_refused_before_anything_is_loaded(folder, watch):
    with pytest.raises(HarnessError, match=r"model.attention"):
        load_model(*at(folder, attention="flash_attention_2"), progress=watch)
    assert not watch.calls


def test_weights_are_counted_from_the_config_with_tied_ones_once(folder, tiny_model):
    (folder / "model.safetensors").write_bytes(b"never read")
    assert parameter_count_from_config(*at(folder)) == sum(weight.numel() for weight in tiny_model.parameters())
    edit(folder / "config.json", tie_word_embeddings=False)
    more = tiny_model.get_input_embeddings().weight.numel()
    assert parameter_count_from_config(*at(folder)) == sum(weight.numel() for weight in tiny_model.parameters()) + more


def test_a_config_that_transformers_does_not_know_is_an_error(folder):
    edit(folder / "config.json", model_type="nosuchmodel", architectures=None)
    with pytest.raises(HarnessError, match=r"the config of .* cannot be loaded"):
        parameter_count_from_config(*at(folder))


def test_a_converted_model_is_counted_from_its_manifest(gguf_source):
    settings = {"path": str(gguf_source), "attention": "auto"}
    location = resolve_model(settings)
    count = parameter_count_from_config(location, settings)
    assert count == load_model(location, settings).num_parameters()
    assert load_tokenizer(location, settings).pad_token == "<|im_end|>"


def test_a_hub_model_that_was_never_fetched_is_an_error_with_a_remedy_and_has_no_known_size():
    settings = {"path": "nobody/nothing", "revision": "v1", "attention": "auto"}
    location = resolve_model(settings)  # the tests run with the hub offline
    assert (location.kind, location.path, location.revision) == ("hub", "nobody/nothing", "v1")
    assert location.digest == "hub:nobody/nothing"
    assert parameter_count_from_config(location, settings) is None
    for read in (load_tokenizer, load_model):
        with pytest.raises(
            HarnessError, match=r"the hub cannot be reached, and 'nobody/nothing' at revision 'v1' is not"
        ):
            read(location, settings)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_model_is_there_in_the_chosen_dtype(folder):
    model = load_model(*at(folder))
    assert model.device == device.select_device()
    assert model.dtype == device.resolve_dtype("auto", device.select_device())
    tokens = torch.tensor([[5, 6, 7]], device=model.device)
    assert torch.isfinite(model(tokens).logits).all()
