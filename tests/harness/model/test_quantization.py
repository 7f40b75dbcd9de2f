"""A checkpoint with quantized weights is dequantized and saved as an ordinary model, or needs an adapter."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.architectures import build_architecture

from harness.errors import HarnessError
from harness.model import quantization
from harness.model.load import load_model
from harness.model.locate import resolve_model
from harness.model.quantization_settings import DEQUANTIZED, load_quantization
from harness.model.save import save_model

TOKENS = torch.tensor([[5, 6, 7, 8]])
BLOCK = 16


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def write_fp8(folder):
    """Quantize the linear layers of a saved model in blocks of 16 x 16, as DeepSeek-V3 and Qwen3-FP8 are published.

    Return the quantized weights multiplied with their scales.
    """
    file, config_file = folder / "model.safetensors", folder / "config.json"
    quantized, dequantized = {}, {}
    for name, weight in load_file(file).items():
        if not name.endswith(("_proj.weight", "w1.weight", "w2.weight", "w3.weight")):
            quantized[name] = weight.to(torch.bfloat16)
            continue
        rows, columns = weight.shape
        blocks = weight.reshape(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
        scales = blocks.abs().amax(dim=(1, 3)) / 448  # the largest number of float8_e4m3fn
        rounded = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
        quantized[name] = rounded.reshape(rows, columns)
        quantized[name.replace(".weight", ".weight_scale_inv")] = scales
        dequantized[name] = (rounded.float() * scales[:, None, :, None]).reshape(rows, columns)
    save_file(quantized, file, metadata={"format": "pt"})
    method = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK], "activation_scheme": "dynamic"}
    config = {**json.loads(config_file.read_text()), "dtype": "bfloat16", "quantization_config": method}
    config_file.write_text(json.dumps(config))
    return dequantized


FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
"""The numbers of 4 bits with two bits of exponent and one of mantissa."""


def write_mxfp4(folder):
    """Replace the experts of a saved model by random numbers of 4 bits with a scale for 32 of them, as gpt-oss is.

    Return the numbers multiplied with their scales.
    """
    file, config_file = folder / "model.safetensors", folder / "config.json"
    generator = torch.Generator().manual_seed(0)
    written, dequantized = {}, {}
    for name, weight in load_file(file).items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            written[name] = weight
            continue
        experts, inputs, outputs = weight.shape
        codes = torch.randint(16, (experts, outputs, inputs // 32, 32), generator=generator)
        scales = torch.randint(118, 124, (experts, outputs, inputs // 32), generator=generator)
        written[f"{name}_blocks"] = (codes[..., 0::2] + 16 * codes[..., 1::2]).to(torch.uint8)
        written[f"{name}_scales"] = scales.to(torch.uint8)
        numbers = FP4[codes] * torch.exp2(scales[..., None].float() - 127)
        dequantized[name] = numbers.reshape(experts, outputs, inputs).transpose(1, 2)
    save_file(written, file, metadata={"format": "pt"})
    config = {**json.loads(config_file.read_text()), "quantization_config": {"quant_method": "mxfp4"}}
    config_file.write_text(json.dumps(config))
    return dequantized


@pytest.mark.parametrize("name", ["llama", "mixtral"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_fp8_checkpoint_is_saved_as_an_ordinary_model(name, precision, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "fp8"
    build_architecture(name, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    expected = write_fp8(folder)
    settings = {"path": str(folder), "attention": "auto"}
    model = load_model(resolve_model(settings), settings, precision=precision)
    assert {weight.dtype for name, weight in model.named_parameters() if "_proj" in name} == {getattr(torch, precision)}
    save_model(model, tokenizer, tmp_path / "saved")

    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {getattr(torch, precision)}
    assert not any("scale" in weight for weight in saved)
    for weight, value in expected.items():
        torch.testing.assert_close(saved[weight].float(), value, rtol=1e-2, atol=1e-3)  # rounded to bfloat16
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    assert loaded.dtype == getattr(torch, precision)
    if precision == "float32":
        assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)


@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_a_checkpoint_is_dequantized_where_its_weights_would_stay_quantized(name, tokenizer, tmp_path, monkeypatch):
    from transformers.quantizers import quantizer_finegrained_fp8, quantizer_mxfp4

    kinds = {"llama": quantizer_finegrained_fp8.FineGrainedFP8HfQuantizer, "gpt_oss": quantizer_mxfp4.Mxfp4HfQuantizer}
    requested = []
    build_architecture(name, tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    expected = write_fp8(tmp_path) if name == "llama" else write_mxfp4(tmp_path)

    def validate_environment(self, *args, **kwargs):
        """Dequantize nothing unasked, as on a device with the kernels of the method."""
        requested.append(self.quantization_config.dequantize)

    monkeypatch.setattr(kinds[name], "validate_environment", validate_environment)
    model = load_model(resolve_model({"path": str(tmp_path), "dequantize": True}), {}, precision="float32")
    quantization.reject_trained_weights(model, is_adapter=False)
    weights = dict(model.named_parameters())
    assert requested == [True, True], "when the checkpoint is checked, and when it is loaded"
    assert expected.items()
    assert {weights[weight].dtype for weight in expected} == {torch.float32}
    for weight, value in expected.items():
        torch.testing.assert_close(weights[weight], value, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_bitsandbytes_checkpoint_is_dequantized(precision, tokenizer, tmp_path):
    pytest.importorskip("bitsandbytes")
    model = build_architecture("llama", tokenizer)
    model.save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    settings = {"quantization": {"bitsandbytes": {"bits": 8, "experts": False}}}
    quantized = load_model(resolve_model({"path": str(tmp_path / "plain"), **settings}), {}, precision="float32")
    quantized.save_pretrained(tmp_path / "quantized")
    tokenizer.save_pretrained(tmp_path / "quantized")
    path = str(tmp_path / "quantized")
    kept = load_model(resolve_model({"path": path}), {}, precision="float32")
    with pytest.raises(HarnessError, match=r"quantized \(bitsandbytes\) and cannot be trained"):
        quantization.reject_trained_weights(kept, is_adapter=False)
    loaded = load_model(resolve_model({"path": path, "dequantize": True}), {}, precision=precision)
    quantization.reject_trained_weights(loaded, is_adapter=False)
    assert loaded.model.layers[0].mlp.up_proj.weight.dtype == getattr(torch, precision)
    for (weight, value), original in zip(loaded.float().named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(value, original, rtol=0, atol=float(original.detach().abs().max()) / 100, msg=weight)


def test_an_adapter_on_a_dequantized_base_says_how_its_base_is_loaded(tokenizer, tmp_path):
    from peft import LoraConfig, get_peft_model

    build_architecture("llama", tokenizer).save_pretrained(tmp_path / "fp8")
    tokenizer.save_pretrained(tmp_path / "fp8")
    write_fp8(tmp_path / "fp8")
    location = resolve_model({"path": str(tmp_path / "fp8"), "dequantize": True})
    model = get_peft_model(load_model(location, {}, precision="float32"), LoraConfig(target_modules=["q_proj"]))
    save_model(model, tokenizer, tmp_path / "adapter")
    assert load_quantization(tmp_path / "adapter") == DEQUANTIZED
    readme = (tmp_path / "adapter" / "README.md").read_text()
    assert "quantization_config=FineGrainedFP8Config(dequantize=True)" in readme
    names = {}
    exec(readme.partition("```python\n")[2].partition("```")[0], names)
    assert torch.equal(names["model"].eval()(TOKENS).logits, model.eval()(TOKENS).logits)


def test_what_cannot_be_dequantized_is_refused_before_a_download():
    quantization.check_checkpoint({"vocab_size": 3}, None, dequantize=True)  # ordinary weights already
    gptq = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    with pytest.raises(HarnessError, match=r"^model.dequantize: transformers cannot dequantize weights of .* gptq"):
        quantization.check_checkpoint(gptq, None, dequantize=True)
    # Without it the kernels of the method are needed, or a GPU.
    quantization.check_checkpoint({"quantization_config": {"quant_method": "mxfp4"}}, None, dequantize=True)
    unknown = {"quantization_config": {"quant_method": "unknown"}}
    with pytest.raises(HarnessError, match=r"^model.path: its weights are quantized \(unknown\)"):
        quantization.check_checkpoint(unknown, None, dequantize=True)
    both = {"path": "x/y", "quantization": {"bitsandbytes": {"bits": 4}}, "dequantize": True}
    with pytest.raises(HarnessError, match=r"^model.dequantize: model.quantization quantizes .*; remove one of them"):
        resolve_model(both)


def test_the_digest_says_whether_the_weights_are_dequantized(tokenizer, tmp_path):
    build_architecture("llama", tokenizer).save_pretrained(tmp_path)
    plain = resolve_model({"path": str(tmp_path)})
    dequantized = resolve_model({"path": str(tmp_path), "dequantize": True})
    assert dequantized.dequantize
    assert not plain.dequantize
    assert dequantized.digest != plain.digest


def test_ordinary_model_has_no_quantization_method(tiny_model):
    assert quantization.quantization_method(tiny_model) is None
    quantization.reject_trained_weights(tiny_model, is_adapter=False)
    quantization.reject_merge(tiny_model, ["continue", "merge"])


def test_quantized_weights_are_neither_trained_nor_merged_into(tiny_model):
    tiny_model.hf_quantizer = SimpleNamespace(quantization_config=SimpleNamespace(quant_method="bitsandbytes"))
    with pytest.raises(HarnessError, match=r'^model.path: its weights are quantized \(bitsandbytes\).*add "lora"'):
        quantization.reject_trained_weights(tiny_model, is_adapter=False)
    with pytest.raises(HarnessError, match=r"^mode.continual: an adapter cannot be merged.*'adapter' to \"continue\""):
        quantization.reject_merge(tiny_model, [None, "merge"])
    quantization.reject_trained_weights(tiny_model, is_adapter=True)
    quantization.reject_merge(tiny_model, [None, "continue", "new"])


@pytest.mark.parametrize(
    "config",
    [{"quant_method": "gptq", "bits": 4}, {"quant_method": "aqlm"}, {"quant_method": "unknown"}],
    ids=lambda config: config["quant_method"],
)
def test_a_checkpoint_whose_method_is_not_available_is_refused_before_a_download(config):
    with pytest.raises(HarnessError, match=rf"model.path: its weights are quantized \({config['quant_method']}\): "):
        quantization.check_checkpoint({"quantization_config": config}, None)


def test_a_quantized_checkpoint_is_not_quantized_again():
    checkpoint = {"quantization_config": {"quant_method": "fp8"}}
    with pytest.raises(HarnessError, match=r"model.quantization: the weights of the model are quantized already \(fp8"):
        quantization.check_checkpoint(checkpoint, {"bitsandbytes": {"bits": 4}})
    quantization.check_checkpoint({"vocab_size": 3}, {"bitsandbytes": {"bits": 4}})


def test_without_bitsandbytes_the_remedy_is_its_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(HarnessError, match=r'the package bitsandbytes is not installed; pip install "harness-sft\['):
        quantization.require_bitsandbytes()


def test_ordinary_weights_are_loaded_as_they_are_if_they_were_to_be_dequantized(tokenizer, tmp_path):
    build_architecture("mixtral", tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    plain, same = (
        load_model(resolve_model({"path": str(tmp_path), "dequantize": dequantize}), {}, precision="float32")
        for dequantize in (False, True)
    )
    assert torch.equal(plain(TOKENS).logits, same(TOKENS).logits)
    for model, name in ((plain, "plain"), (same, "same")):
        save_model(model, tokenizer, tmp_path / name)
    files = [load_file(tmp_path / name / "model.safetensors").keys() for name in ("plain", "same")]
    assert files[0] == files[1], "under the published names"
