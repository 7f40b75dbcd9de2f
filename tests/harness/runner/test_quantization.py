"""Runs on a base model that bitsandbytes quantizes: what is measured, trained, saved, merged and refused."""

from __future__ import annotations

import json
import re

import pytest
import torch

from harness import events
from harness.model import load, locate, quantization

pytest.importorskip("bitsandbytes")

NF4 = {"bitsandbytes": {"bits": 4, "type": "nf4", "double": True, "experts": False}}
LORA = {"lora": {"rank": 2}}
TOKENS = torch.tensor([[5, 6, 7, 8, 9]])


def quantized(desk, options=NF4, **changes):
    return desk.document(**{"model": {"path": "./tiny", "quantization": options}, "mitigations": LORA, **changes})


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def load_quantized_base(desk, options=NF4):
    settings = {"path": str(desk.folder / "tiny"), "attention": "auto", "quantization": options}
    return load.load_model(locate.resolve_model(settings), settings)


def readme_namespace(folder):
    """Run the lines of the README of a model's folder, and return its variables."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[1]
    namespace = {}
    exec(code, namespace)
    return namespace


def load_from_readme(folder):
    """Load a model as its README says. The tiny model's layers are too small for bitsandbytes' AVX512-BF16 layout."""
    model = readme_namespace(folder)["model"]
    quantization.prepare_quantized_layers(model)
    return model


@pytest.fixture(scope="module")
def run(desk):
    """A finished run of two stages on an NF4 base."""
    document = desk.continual(mitigations=LORA, model={"path": "./tiny", "quantization": NF4})
    return desk.start(document)


def test_the_base_is_quantized_and_the_saved_adapter_names_the_unquantized_model(desk, run):
    adapter = json.loads((run / "model" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str((desk.folder / "tiny").resolve())
    assert json.loads((run / "model" / "quantization.json").read_text()) == NF4
    tuned = load_from_readme(run / "model").eval()
    base = load_quantized_base(desk)
    assert type(tuned.get_base_model().model.layers[0].mlp.up_proj.base_layer).__name__ == "Linear4bit"
    with tuned.disable_adapter():
        assert torch.equal(logits(tuned), logits(base))
    assert not torch.equal(logits(tuned), logits(base))


@pytest.mark.parametrize(
    "options", [NF4, {"bitsandbytes": {"bits": 4, "type": "fp4", "double": False}}, {"bitsandbytes": {"bits": 8}}]
)
def test_a_dequantized_base_computes_the_same(desk, options):
    options = {"bitsandbytes": {"type": "nf4", "double": True, "experts": False, **options["bitsandbytes"]}}
    base = load_quantized_base(desk, options)
    expected = logits(base)
    original = load_quantized_base(desk, None)
    rounding = (expected - logits(original)).abs().max()
    layers = list(quantization.quantized_layers(base))
    assert "model.layers.0.mlp.up_proj" in layers
    assert "lm_head" not in layers
    quantization.dequantize(base)
    tolerance = 2 * rounding if options["bitsandbytes"]["bits"] == 8 else 1e-5  # 8 bits: activations are rounded too
    assert rounding > 0
    assert (logits(base) - expected).abs().max() <= tolerance
    assert quantization.quantization_method(base) is None
    assert not hasattr(base.config, "quantization_config")


def test_a_resumed_run_equals_an_uninterrupted_one(desk, run, same, listener):
    def at(event, recorder):
        return isinstance(event, events.StepLogged) and event.stage_index == 2 and event.step == 3

    document = desk.continual(mitigations=LORA, model={"path": "./tiny", "quantization": NF4})
    with pytest.raises(KeyboardInterrupt):
        desk.start(document, listener(at))
    interrupted = desk.newest()
    desk.resume(interrupted)
    same(run, interrupted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mitigations", "options"),
    [
        ({**LORA, "ewc": {"source": "general", "samples": 4}, "l2sp": {}}, NF4),
        (
            {**LORA, "kl": {"source": "general", "rows": 2}, "wise_ft": {"alphas": [0.0, 0.5]}, "ema": {"decay": 0.5}},
            NF4,
        ),
        ({"lora": {"rank": 2, "start": "pissa"}}, NF4),
        ({"lora": {"rank": 2, "dora": True}}, NF4),
        ({"orthogonal_lora": {"rank": 2}}, NF4),
        ({"merged_lora": {"rank": 2}}, NF4),
        ({"oft": {"block": 8}}, NF4),
        (LORA, {"bitsandbytes": {"bits": 8}}),
    ],
    ids=lambda value: ",".join(value),
)
def test_mitigations_leave_the_quantized_base_as_it_is(desk, mitigations, options):
    folder = desk.start(quantized(desk, options, mitigations=mitigations))
    filled = json.loads((folder / "spec.json").read_text())["model"]["quantization"]
    tuned, base = load_from_readme(folder / "model").eval(), load_quantized_base(desk, filled)
    assert not torch.equal(logits(tuned), logits(base))
    with tuned.disable_adapter():
        assert torch.equal(logits(tuned), logits(base))
    if "wise_ft" in mitigations:
        report = json.loads((folder / "variants.json").read_text())
        scores = json.loads((folder / "scores.json").read_text())
        assert report
        assert scores


def test_a_run_that_continues_without_quantization_merges_into_the_dequantized_base(desk, run):
    whole = desk.start(desk.document(model={"path": f"run:{run}"}))
    before, after = (json.loads((folder / "scores.json").read_text()) for folder in (run, whole))
    assert (whole / "model" / "model.safetensors").is_file()
    assert before
    assert after
    names = readme_namespace(whole / "model")
    assert "hf_quantizer" not in vars(names["model"])


def test_a_run_that_continues_the_adapter_keeps_the_quantized_base(desk, run):
    stages = [{"name": "more", "domain": ["second"], "adapter": "continue"}]
    document = desk.document(model={"path": f"run:{run}"}, mode={"continual": {"stages": stages}}, mitigations=LORA)
    folder = desk.start(document)
    assert json.loads((folder / "model" / "quantization.json").read_text()) == NF4
    assert torch.isfinite(logits(load_from_readme(folder / "model"))).all()


def test_the_exported_model_is_merged_into_the_dequantized_base(desk, run, capsys, tmp_path):
    from transformers import AutoModelForCausalLM

    assert desk.command("export", run, "--to", "merged", tmp_path / "merged", "--set", "dtype=float32") == 0
    assert "merged model in float32" in capsys.readouterr().out
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    tuned = load_from_readme(run / "model").eval()
    torch.testing.assert_close(logits(merged), logits(tuned), rtol=1e-4, atol=1e-5)


def test_tokens_are_added_to_a_quantized_model(desk):
    model = {"path": "./tiny", "quantization": NF4, "add_tokens": ["<new>"]}
    folder = desk.start(desk.document(model=model, mitigations=LORA))
    assert len(readme_namespace(folder / "model")["tokenizer"].encode("<new>", add_special_tokens=False)) == 1


@pytest.mark.parametrize(
    ("mitigations", "message"),
    [
        ({}, 'the stage .* would train quantized weights themselves; add "lora" to the mitigations'),
        ({"osf": {}}, "'osf' decomposes the weights.*; replace 'osf' by 'lora'"),
    ],
)
def test_training_of_quantized_weights_is_refused_by_validate(desk, capsys, mitigations, message):
    file = desk.write(quantized(desk, mitigations=mitigations))
    assert desk.command("validate", file) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(rf"spec\d+.json:1:\d+ model.quantization: {message}", line)


def test_a_merge_between_stages_is_refused_by_validate(desk, capsys):
    document = desk.continual({"adapter": "merge"}, mitigations=LORA, model={"path": "./tiny", "quantization": NF4})
    assert desk.command("validate", desk.write(document)) == 2
    assert (
        """the stage 'b' would merge an adapter into quantized weights; set its 'adapter'""" in capsys.readouterr().err
    )


EXPERTS = {"bitsandbytes": {**NF4["bitsandbytes"], "experts": True}}


@pytest.fixture(scope="module")
def experts(desk, tokenizer):
    """The folder of a mixture of experts."""
    from support.architectures import build_architecture

    build_architecture("qwen3_moe", tokenizer).save_pretrained(desk.folder / "moe")
    tokenizer.save_pretrained(desk.folder / "moe")
    return "./moe"


@pytest.mark.slow
@pytest.mark.parametrize("target", ["all-linear", ["q_proj", "v_proj"]], ids=str)
def test_a_run_on_quantized_experts_is_resumed_saved_and_merged_as_it_was_measured(
    desk, experts, same, listener, tmp_path, target
):
    from transformers import AutoModelForCausalLM

    def at(event, recorder):
        return isinstance(event, events.StepLogged) and event.stage_index == 2 and event.step == 3

    lora = {"lora": {"rank": 2, "target": target}}
    document = desk.continual(mitigations=lora, model={"path": experts, "quantization": EXPERTS})
    run = desk.start(document)
    assert json.loads((run / "model" / "quantization.json").read_text()) == EXPERTS
    with pytest.raises(KeyboardInterrupt):
        desk.start(document, listener(at))
    interrupted = desk.newest()
    desk.resume(interrupted)
    same(run, interrupted)

    tuned = load_from_readme(run / "model").eval()
    settings = {"path": str(desk.folder / "moe"), "attention": "auto", "quantization": EXPERTS}
    base = load.load_model(locate.resolve_model(settings), settings)
    with tuned.disable_adapter():
        assert torch.equal(logits(tuned), logits(base))
    assert not torch.equal(logits(tuned), logits(base))
    assert desk.command("export", run, "--to", "merged", tmp_path / "merged", "--set", "dtype=float32") == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(merged), logits(tuned), rtol=1e-4, atol=1e-4)
    continued = desk.start(desk.document(model={"path": f"run:{run}"}))
    assert (continued / "model" / "model.safetensors").is_file()


def test_quantized_experts_are_in_the_plan(desk, experts, capsys):
    def size(options):
        model = {"path": experts, "quantization": options}
        lora = {"lora": {"rank": 2, "target": ["q_proj", "v_proj"]}}
        assert desk.command("plan", desk.write(desk.document(model=model, mitigations=lora)), "--json") == 0
        return json.loads(capsys.readouterr().out)["memory"]["bytes"]

    layer = 4 * (2 * 24 * 32 + 32 * 24)
    assert size(NF4) - size(EXPERTS) == pytest.approx(2 * layer * (4 - 0.516), abs=2)


def test_compiled_layers_with_quantized_experts_are_refused(desk, capsys):
    document = quantized(desk, EXPERTS)
    document["train"] |= {"compile": True}
    assert desk.command("validate", desk.write(document)) == 2
    assert "layers with quantized experts are not compiled; set train.compile to false" in capsys.readouterr().err
