"""`max_length` and `max_new_tokens` are bounded by the positions of the model before its weights are loaded."""

from __future__ import annotations

import json

import pytest
import torch

from harness.cli.main import main
from harness.model import model_config

SIZES = {"n_embd": 16, "n_layer": 1, "n_head": 2}
LONG = " ".join(["amber basil clay dune ember fern"] * 4)


@pytest.fixture
def write_spec(tmp_path, monkeypatch, tokenizer):
    """Write a model of the given class, rows and a spec with the default `max_length`; return the spec's file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HARNESS_NO_THIRD_PARTY", "1")

    def write(config, **suite):
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "tiny")
        tokenizer.save_pretrained(tmp_path / "tiny")
        rows = [{"instruction": f"{number}?", "output": f"{LONG} {LONG}"} for number in range(12)]
        rows += [{"instruction": f"{LONG} {number}?", "output": "yes"} for number in range(12)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        document = {
            "name": "bounded",
            "model": {"path": "./tiny"},
            "template": "chatml",
            "sources": {"rows": {"jsonl": {"path": "rows.jsonl", "held_out": 0.5}}},
            "mode": {"domain": {"sources": ["rows"]}},
            "train": {"steps": 2, "batch_size": 2},
            "evaluate": {"rows": {"source": "rows", "metrics": ["chrf", "response_perplexity"], **suite}},
            "track": {"enabled": False},
        }
        document["evaluate"]["rows"]["metrics"] = {"chrf": {}, "response_perplexity": {}}
        (tmp_path / "spec.json").write_text(json.dumps(document))
        return str(tmp_path / "spec.json")

    return write


def gpt2(tokenizer, positions=192):
    from transformers import GPT2Config

    return GPT2Config(vocab_size=len(tokenizer), n_positions=positions, **SIZES)


def llama(tokenizer):
    from transformers import LlamaConfig

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=192, **sizes)


TRUNCATED = "train.max_length 2,048 is more than the 192 positions of the model: rows are truncated to 192 tokens"
NO_PROMPT = (
    "evaluate.rows.max_new_tokens 512 leaves no position for a prompt: the model has 192, so answers have at most 96"
)
CUT = "the suite 'rows' has {} prompt(s) of more than 96 tokens, whose beginning is cut"


@pytest.mark.parametrize("command", ["validate", "plan", "check"])
def test_lengths_beyond_the_table_of_positions_are_reported_before_a_model_is_loaded(
    command, write_spec, tokenizer, capsys, monkeypatch
):
    from harness.model import load

    monkeypatch.setattr(load, "load_model", None)
    assert main([command, write_spec(gpt2(tokenizer))]) == 0
    captured = capsys.readouterr()
    messages = " ".join((captured.out + captured.err).split())
    assert messages.count(TRUNCATED) == 1
    assert messages.count(NO_PROMPT) == 1
    assert ("whose beginning is cut" in messages) == (command != "validate")


def test_check_reports_bounded_lengths_as_data(write_spec, tokenizer, capsys):
    assert main(["check", write_spec(gpt2(tokenizer)), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [summary["max_length"] for summary in report["lengths"]["rows"]] == [192]
    assert any("whose beginning is cut" in warning for warning in report["warnings"])


def test_a_run_trains_and_answers_within_the_positions(write_spec, tokenizer, tmp_path):
    assert main(["run", write_spec(gpt2(tokenizer))]) == 0
    (folder,) = (tmp_path / "runs").glob("bounded-*")
    warnings = json.loads((folder / "data.json").read_text())["warnings"]
    assert TRUNCATED in warnings
    lines = (folder / "predictions" / "rows-stage1.jsonl").read_text().splitlines()
    items = [json.loads(line) for line in lines]
    assert max(item["prompt_tokens"] + item["answer_tokens"] for item in items) <= 192
    cut_prompts = sum(item["prompt_cut"] for item in items)
    assert 0 < cut_prompts < len(items)
    assert any(CUT.format(cut_prompts) in warning for warning in warnings)


def test_a_rotary_model_gets_a_warning_and_keeps_the_length(write_spec, tokenizer, capsys):
    assert main(["plan", write_spec(llama(tokenizer)), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["stages"][0]["train"]["max_length"] == 2048
    assert "2,048 is more than the 192 positions that the model was trained with" in captured.err


def test_lengths_within_the_positions_are_not_mentioned(write_spec, tokenizer, capsys):
    file = write_spec(gpt2(tokenizer, 256), max_new_tokens=64)
    assert main(["check", file, "--set", "train.max_length=256"]) == 0
    captured = capsys.readouterr()
    assert "positions" not in captured.out + captured.err


def test_a_config_is_found_in_the_hub_cache_without_the_network(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--org--name"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "config.json").write_text('{"model_type": "gpt2", "n_positions": 8}')
    assert model_config.find_model_config({"path": "org/name"}) == {"model_type": "gpt2", "n_positions": 8}
    assert model_config.find_model_config({"path": "org/other"}) is None
