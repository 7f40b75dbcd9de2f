"""Tokens that a spec adds: trained, saved, loaded by the documented lines, resumed; and tokens that lack a row."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from harness import registry
from harness.errors import HarnessError
from harness.evaluation.likelihood import response_nll
from harness.evaluation.row_batch import build_padded_batch
from harness.model import load, locate
from harness.runner import prepare
from harness.spec import schema, spec

TOKENS = ["<sku>", "<price>"]
LORA = {"lora": {"rank": 2, "target": "all-linear"}}


@pytest.fixture(scope="module")
def rows(desk):
    """Add the source `shop`, whose responses hold the added tokens; return its name."""
    names = [f"{first}{second}" for first in "abcdef" for second in "uvwxyz"]
    lines = [{"instruction": f"What is {name}?", "output": f"<sku>{name}<price>{len(name)}"} for name in names]
    (desk.folder / "shop.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return "shop"


@pytest.fixture(scope="module")
def untied(desk, tokenizer):
    """The path of a model with an output head of its own."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(desk.folder / "untied")
    tokenizer.save_pretrained(desk.folder / "untied")
    return "./untied"


def document(desk, rows, path="./tiny", **changes):
    source = {"jsonl": {"path": f"{rows}.jsonl", "held_out": 0.2}}
    return desk.document(
        model={"path": path, "add_tokens": TOKENS},
        sources={rows: source},
        mode={"domain": {"sources": [rows]}},
        evaluate={rows: {"source": rows, "metrics": {"response_perplexity": {}}}},
        **changes,
    )


def measured_nlls(folder, stage=1):
    lines = (folder / "predictions" / f"shop-stage{stage}.jsonl").read_text().splitlines()
    return {item["id"]: item["nll"] for item in map(json.loads, lines)}


def nlls_of(model, spec_file):
    """Compute the likelihoods of the suite's rows with a model that was loaded by the documented lines."""
    plugins = registry.discover_plugins()
    loaded = spec.load_spec(spec_file, schema.compose_schema(plugins))
    data = prepare.prepare_run(loaded, plugins).data.tokenized_suites["shop"].rows
    return {row.id: response_nll(model.eval(), build_padded_batch([(row,)], 0))[0] for row in data}


@pytest.mark.slow
@pytest.mark.parametrize("path", ["./tiny", "./untied"])
def test_a_trained_model_with_added_tokens_is_loaded_by_the_documented_lines(desk, rows, untied, tokenizer, path):
    folder = desk.start(document(desk, rows, path))
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    saved_tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert saved_tokenizer.convert_tokens_to_ids(TOKENS) == [len(tokenizer), len(tokenizer) + 1]
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == len(tokenizer) + 2
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == (path == "./tiny")
    assert nlls_of(model, folder / "spec.json") == pytest.approx(measured_nlls(folder), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["./tiny", "./untied"])
def test_an_adapter_holds_the_new_rows_and_is_loaded_by_the_documented_lines(desk, rows, untied, tokenizer, path):
    folder = desk.start(document(desk, rows, path, mitigations=LORA))
    config = json.loads((folder / "model" / "adapter_config.json").read_text())
    new_ids = [len(tokenizer), len(tokenizer) + 1]
    expected = {"model.embed_tokens": new_ids}
    assert config["trainable_token_indices"] == (expected if path == "./tiny" else {**expected, "lm_head": new_ids})
    assert (folder / "model" / "adapter_model.safetensors").stat().st_size < 60_000
    scope: dict = {}
    exec((folder / "model" / "README.md").read_text().split("```python")[1].split("```")[0], scope)
    model, scores = scope["model"], measured_nlls(folder)
    assert nlls_of(model, folder / "spec.json") == pytest.approx(scores, rel=1e-5)
    assert scores != pytest.approx(measured_nlls(folder, stage=0), rel=1e-3)
    embedding = model.get_base_model().get_input_embeddings()
    trained = embedding.token_adapter.trainable_tokens_delta["default"]
    assert not torch.equal(trained[0], trained[1]), "both rows start as the mean"

    # evaluated again, and trained further
    assert desk.command("evaluate", folder) == 0
    rescored = (folder / "measured" / "predictions" / "shop-stage1.jsonl").read_text().splitlines()
    assert {item["id"]: item["nll"] for item in map(json.loads, rescored)} == scores
    later = document(desk, rows, path, mitigations=LORA)
    later["model"] = {"path": f"run:{folder}"}
    continued = desk.start(later)
    assert measured_nlls(continued, stage=0) == pytest.approx(scores, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["merge", "new", "continue"])
def test_two_stages_with_an_adapter_keep_the_scores_of_the_first(desk, rows, adapter):
    stages = [
        {"name": "a", "domain": [rows]},
        {"name": "b", "domain": [rows], "adapter": adapter, "train": {"learning_rate": 1e-12}},
    ]
    folder = desk.start({**document(desk, rows, mitigations=LORA), "mode": {"continual": {"stages": stages}}})
    first = measured_nlls(folder, stage=0 if adapter == "new" else 1)
    assert measured_nlls(folder, stage=2) == pytest.approx(first, rel=1e-5)
    auto_class = AutoModelForCausalLM if adapter == "merge" else AutoPeftModelForCausalLM
    model = auto_class.from_pretrained(folder / "model", dtype=torch.float32)
    assert nlls_of(model, folder / "spec.json") == pytest.approx(measured_nlls(folder, stage=2), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mitigations", [{}, LORA], ids=["all weights", "lora"])
def test_a_resumed_stage_with_added_tokens_equals_the_uninterrupted_one(desk, rows, mitigations, same, monkeypatch):
    from harness.training.step_log import StepLog

    settings = document(desk, rows, mitigations=mitigations)
    settings["train"] = {**settings["train"], "steps": 4, "save_steps": 2}
    whole = desk.start(settings)
    interrupted_spec = desk.write(settings)
    finish = StepLog.finish
    monkeypatch.setattr(StepLog, "finish", _interrupt)
    assert desk.command("run", interrupted_spec) == 130
    monkeypatch.setattr(StepLog, "finish", finish)
    folder = desk.newest()
    shutil.rmtree(folder / "stages" / "domain" / "checkpoints" / "checkpoint-4")
    assert (folder / "stages" / "domain" / "checkpoints" / "checkpoint-2").is_dir()
    desk.resume(folder)
    same(whole, folder)


def _interrupt(self):
    raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mitigations", "key"),
    [
        ({"lora": {"start": "pissa", "rank": 2}}, r"mitigations\.lora\.start"),
        ({"lora": {"rank": 2}, "wise_ft": {}}, r"mitigations\.wise_ft"),
        ({"lora": {"rank": 2, "target": ["embed_tokens"]}}, r"mitigations\.lora"),
        ({"orthogonal_lora": {"rank": 2}}, r"mitigations\.orthogonal_lora"),
    ],
)
def test_an_adapter_that_cannot_hold_the_new_rows_is_refused_before_training(desk, rows, mitigations, key):
    with pytest.raises(HarnessError, match=rf"{key}: .* added tokens"):
        desk.start(document(desk, rows, mitigations=mitigations))


@pytest.mark.slow
def test_a_later_run_adds_tokens_and_is_compared_with_the_first_base_model(desk, rows):
    first = desk.start(desk.document())
    settings = document(desk, rows)
    settings["model"]["path"] = f"run:{first}"
    settings["evaluate"][rows]["metrics"]["kl_to_base"] = {}
    folder = desk.start(settings)
    lines = (folder / "predictions" / "shop-stage1.jsonl").read_text().splitlines()
    assert all(item["kl"] > 0 for item in map(json.loads, lines))


def test_check_verifies_the_masks_of_added_tokens(desk, rows, capsys):
    assert desk.command("check", desk.write(document(desk, rows)), "--json") == 0
    report = json.loads(capsys.readouterr().out)
    counts = report["sources"]["shop"]
    assert report["masks"] == {"shop": counts["read"] - counts["held_out"]}


@pytest.fixture(scope="module")
def larger(desk, tokenizer):
    """The path of a model whose tokenizer has a padding token and a token more than its embeddings."""
    from copy import deepcopy

    folder = desk.folder / "larger"
    AutoModelForCausalLM.from_pretrained(desk.folder / "tiny").save_pretrained(folder)
    own = deepcopy(tokenizer)
    own.add_special_tokens({"pad_token": "[PAD]"})
    own.add_tokens(["<sku>"])
    own.save_pretrained(folder)
    return "./larger"


@pytest.mark.slow
def test_a_token_of_a_row_without_an_embedding_is_one_line_from_check_on(desk, rows, larger, tokenizer, capsys):
    settings = document(desk, rows, larger)
    del settings["model"]["add_tokens"]
    for command in ("check", "plan", "run"):
        assert desk.command(command, desk.write(settings)) == 2
        captured = capsys.readouterr()
        text = captured.out + captured.err
        assert (
            f"have the token '<sku>' (id {len(tokenizer) + 1}), but the model has {len(tokenizer)} embedding rows"
            in text
        )
        assert '"add_tokens": ["<sku>"]' in text
        assert "shop.jsonl:" in text
        assert "Traceback" not in text
    settings["model"]["add_tokens"] = ["<sku>"]
    folder = desk.start(settings)
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert model.config.vocab_size == len(tokenizer) + 2
    assert AutoTokenizer.from_pretrained(folder / "model").pad_token == "[PAD]"


@pytest.mark.slow
def test_padding_uses_another_token_if_the_padding_token_has_no_embedding(desk, larger, capsys):
    folder = desk.start(desk.document(model={"path": larger}))
    warnings = json.loads((folder / "data.json").read_text())["warnings"]
    assert sum("no embedding row for the padding token '[PAD]'" in warning for warning in warnings) == 1
    assert AutoTokenizer.from_pretrained(folder / "model").pad_token == "</s>"


@pytest.mark.slow
def test_a_named_padding_token_is_added_and_saved(desk, tokenizer):
    settings = desk.document(model={"path": "./tiny", "pad_token": "<fill>"})
    folder = desk.start(settings)
    saved = AutoTokenizer.from_pretrained(folder / "model")
    assert (saved.pad_token, saved.pad_token_id) == ("<fill>", len(tokenizer))
    assert AutoModelForCausalLM.from_pretrained(folder / "model").config.vocab_size == len(tokenizer) + 1


def test_new_rows_start_as_the_mean_and_draw_no_random_number(desk, untied, tokenizer):
    settings = {"path": str(desk.folder / "untied"), "add_tokens": ["<new>"]}
    published = AutoModelForCausalLM.from_pretrained(settings["path"])
    state = torch.get_rng_state()
    model = load.load_model(locate.resolve_model(settings), settings)
    assert torch.equal(torch.get_rng_state(), state)
    for new, old in (
        (model.get_input_embeddings(), published.get_input_embeddings()),
        (model.get_output_embeddings(), published.get_output_embeddings()),
    ):
        torch.testing.assert_close(new.weight[-1], old.weight.mean(0))
        assert torch.equal(new.weight[:-1], old.weight)
    plain = locate.resolve_model({"path": settings["path"]})
    assert plain.digest != locate.resolve_model(settings).digest


@pytest.mark.parametrize("path", ["tiny", "untied"])
def test_the_base_of_an_adapter_with_new_rows_has_the_digest_of_the_grown_model(desk, untied, path):
    from harness_mitigations.lora import Lora

    from harness.evaluation.fingerprint import weight_digests
    from harness.model.save import adapter_disabled

    settings = {"path": str(desk.folder / path), "add_tokens": ["<new>"]}
    model = load.load_model(locate.resolve_model(settings), settings)
    expected = weight_digests(model)
    lora = Lora(
        2,
        None,
        0.0,
        "all-linear",
        rslora=False,
        dora=False,
        start="zero",
        source=None,
        samples=1,
        loraplus_ratio=1,
        parameters=(),
    )
    adapted = lora.prepare_model(model, seed=0)
    base, adapter = weight_digests(adapted)
    assert (base, "none") == expected
    assert adapter != "none"
    with adapter_disabled(adapted) as disabled:
        assert weight_digests(disabled) == expected
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "trainable_tokens_delta" in name:
                weight.add_(1)
    assert weight_digests(adapted)[0] == base
    assert weight_digests(adapted)[1] != adapter


def test_a_token_in_an_unused_row_starts_as_the_mean_too(desk, tokenizer):
    settings = {"path": str(desk.folder / "spare"), "add_tokens": ["<new>"]}
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 3, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    published = LlamaForCausalLM(config)
    published.save_pretrained(settings["path"])
    tokenizer.save_pretrained(settings["path"])
    model = load.load_model(locate.resolve_model(settings), settings)
    weight, old = model.get_input_embeddings().weight, published.get_input_embeddings().weight
    others = [index for index in range(len(old)) if index != len(tokenizer)]
    assert len(weight) == len(old)
    torch.testing.assert_close(weight[len(tokenizer)], old[others].mean(0))
    assert torch.equal(weight[others], old[others])


def test_a_quantized_model_is_refused(desk, monkeypatch):
    settings = {"path": str(desk.folder / "tiny"), "add_tokens": ["<new>"]}
    real = AutoModelForCausalLM.from_pretrained

    def quantized(*arguments, **options):
        model, info = real(*arguments, **options)
        embedding = model.get_input_embeddings()
        embedding.weight = torch.nn.Parameter(embedding.weight.detach().to(torch.int8), requires_grad=False)
        return model, info

    monkeypatch.setattr(load.AutoModelForCausalLM, "from_pretrained", quantized)
    with pytest.raises(HarnessError, match=r"model\.add_tokens: .*quantized.*'<new>'"):
        load.load_model(locate.resolve_model(settings), settings)
