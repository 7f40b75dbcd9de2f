"""Equal weights have equal scores: before and after a stage that changes nothing, in every precision."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

LORA = {"lora": {"rank": 2, "target": ["q_proj", "up_proj"]}}
RATE = 1e-30
"""A learning rate that changes no weight: a step is less than half a unit in the last place."""
GENERATED = ("bleu", "chrf", "distinct", "exact_match", "length_ratio", "rouge", "ter", "token_f1", "json_valid")


@pytest.fixture(scope="module")
def workshop(desk, tokenizer):
    """The desk with a model of sharp predictions, and rows for every kind of suite."""
    shutil.copytree((desk.folder / "tiny").resolve(), desk.folder / "sharp")
    file = desk.folder / "sharp" / "model.safetensors"
    generator = torch.Generator().manual_seed(0)
    weights = {name: weight * 8 if weight.dim() > 1 else weight for name, weight in load_file(file).items()}
    weights |= {
        name: weight + torch.randn(weight.shape, generator=generator) / 3
        for name, weight in weights.items()
        if weight.dim() == 1
    }
    save_file({name: weight.bfloat16().float() for name, weight in weights.items()}, file, {"format": "pt"})
    choices = [{"question": f"Is it {n}?", "choices": [f"yes {n}", "no"], "answer": n % 2} for n in range(12)]
    write_rows(desk.folder / "choices.jsonl", choices)
    write_rows(desk.folder / "texts.jsonl", [{"text": "the amber dune " * (n + 1)} for n in range(12)])
    save_encoder(desk.folder / "encoder", tokenizer)
    return desk


def write_rows(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def save_encoder(folder, tokenizer):
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def build_spec(desk, precision, mitigations, adapter=None):
    """Return a spec with every built-in metric, whose stages change no weight."""
    second = {} if adapter is None else {"adapter": adapter}
    document = desk.continual(second, mitigations=mitigations, model={"path": "./sharp"})
    document["train"] |= {"precision": precision, "learning_rate": RATE, "steps": 1, "save_steps": None}
    document["sources"] |= {name: {"jsonl": {"path": f"{name}.jsonl"}} for name in ("choices", "texts")}
    answers = {"metrics": {name: {} for name in GENERATED}, "max_new_tokens": 6}
    answers["metrics"] |= {"bertscore": {"model": "./encoder"}, "regex": {"pattern": "a"}}
    reference = {"response_perplexity": {}, "kl_to_base": {}, "agreement_with_base": {}}
    document["evaluate"] = {
        "domain": {"source": "domain", **answers},
        "sampled": {"source": "second", **answers, "temperature": 1.0},
        "general": {"source": "general", "role": "general", "metrics": reference},
        "choices": {"source": "choices", "role": "general", "metrics": {"multiple_choice": {}}},
        "texts": {"source": "texts", "role": "general", "metrics": {"bits_per_byte": {}}},
    }
    return document


def scores_of_stages(place):
    return [
        {(suite, one["name"]): one["value"] for suite, found in stage["suites"].items() for one in found["scores"]}
        for stage in json.loads((place / "scores.json").read_text())["stages"]
    ]


PRECISIONS = ["float32", "bfloat16", pytest.param("float16", marks=pytest.mark.gpu)]
CASES = {
    "full": ({}, None),
    "lora": (LORA, None),
    "merged": (LORA, "merge"),
    "frozen": ({"freeze": {"layers": 1}}, None),
}


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES)
def test_every_score_of_unchanged_weights_is_unchanged(workshop, precision, case):
    mitigations, adapter = CASES[case]
    place = workshop.start(build_spec(workshop, precision, mitigations, adapter))
    before, *after = scores_of_stages(place)
    assert len(before) > 20
    for scores in after:
        assert scores == before
        assert scores["general", "kl_to_base"] == 0.0
        assert scores["general", "agreement_with_base"] == 1.0
