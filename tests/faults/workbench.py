"""The folder that faults are tried on: a tiny random model, data, and specs with different features."""

from __future__ import annotations

import json
import random
from pathlib import Path

from harness.testing.tiny_model import build_tiny_model, build_tokenizer

WORDS = ("amber", "basil", "clay", "dune", "ember", "fern", "grove", "hazel", "iris", "jade", "kelp", "lilac", "moss")

LIKELIHOOD = {"response_perplexity": {}}
EWC = {"source": "general", "samples": 4}
TWO_STAGES = {"continual": {"stages": [{"name": "a", "domain": ["domain"]}, {"name": "b", "domain": ["second"]}]}}
MIXED = {"mixed": {"domain": ["domain"], "general": ["general"]}}

SPECS: dict[str, dict] = {
    "plain": {},
    "two-stages": {"mode": TWO_STAGES},
    "no-checkpoints": {"mode": TWO_STAGES, "train": {"save_steps": None}},
    "packing": {"mode": MIXED, "mitigations": {"mixing": {"share": 0.3}}, "train": {"packing": True}},
    "resampled": {
        "mode": MIXED,
        "mitigations": {"mixing": {"share": 0.3, "resample": True}},
        "train": {"steps": None, "epochs": 1},
    },
    "ewc": {"mode": TWO_STAGES, "mitigations": {"ewc": EWC}},
    "lora": {"mitigations": {"lora": {"rank": 2}, "wise_ft": {"alpha": 0.5}}},
    "adapters": {"mode": TWO_STAGES, "mitigations": {"lora": {"rank": 2}, "replay": {"share": 0.2}}},
    "early": {
        "train": {
            "steps": 8,
            "evaluate_steps": 2,
            "early_stopping": {"scores": {"domain/response_nll": 1.0}, "patience": 2},
        }
    },
    "engine": {"train": {"engine": "trl"}},
    "arms": {
        "mode": TWO_STAGES,
        "arms": {
            "baseline": "naive",
            "gain": "domain/response_nll",
            "forgetting": "general/response_nll",
            "named": {"naive": {}, "ewc": {"mitigations.ewc": EWC}},
        },
    },
}
"""Name -> what differs from the base spec."""


def write_workbench(folder: Path) -> Path:
    """Write the model, the data and the specs, and return the folder."""
    draw = random.Random(1)
    folder.mkdir(parents=True, exist_ok=True)
    for kind, count in (("domain", 30), ("general", 30), ("second", 24)):
        rows = [_row(draw, kind, index) for index in range(count)]
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = build_tokenizer()
    build_tiny_model(tokenizer).save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    for name in SPECS:
        (folder / f"{name}.json").write_text(json.dumps(build_spec(name), indent=1))
    return folder


def build_spec(name: str) -> dict:
    """Return a spec of `SPECS`."""
    changes = SPECS[name]
    suite = {"metrics": LIKELIHOOD, "max_new_tokens": 4}
    return {
        "name": name,
        "model": {"path": "./tiny"},
        "template": "chatml",
        "sources": {
            source: {"jsonl": {"path": f"{source}.jsonl", "held_out": 0.3}}
            for source in ("domain", "general", "second")
        },
        "mode": {"domain": {"sources": ["domain"]}},
        "evaluate": {
            "domain": {"source": "domain", **suite, "metrics": {**LIKELIHOOD, "chrf": {}}},
            "general": {"source": "general", "role": "general", **suite},
        },
        "checks": {"contamination": None, "near_duplicates": None},
        **{key: value for key, value in changes.items() if key != "train"},
        "train": {
            "steps": 5,
            "batch_size": 2,
            "learning_rate": 0.01,
            "max_length": 96,
            "save_steps": 2,
            "engine": "transformers",
            **changes.get("train", {}),
        },
    }


def _row(draw: random.Random, kind: str, index: int) -> dict:
    def words(count: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(count))

    return {
        "id": f"{kind}{index}",
        "messages": [
            {"role": "user", "content": f"{kind} {index} {words(draw.randint(1, 3))}?"},
            {"role": "assistant", "content": f"{words(draw.randint(1, 3))}."},
        ],
    }
