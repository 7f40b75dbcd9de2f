"""A spec of a tiny model, for runs that are started from Python."""

from __future__ import annotations

import json

import pytest

WORDS = ("amber", "basil", "clay", "dune", "ember", "fern", "grove", "hazel", "iris", "jade", "kelp", "lilac")


@pytest.fixture
def tiny_spec(tmp_path, tiny_model, tokenizer):
    """The JSON object of a spec with the suites `helpdesk` and `general`; all its files are in `tmp_path`."""
    tiny_model.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    for name, prompt in (("helpdesk", "Where is {}?"), ("general", "Spell {}")):
        rows = [{"instruction": prompt.format(word), "output": f"{word} is here"} for word in WORDS]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    likelihood = {"response_perplexity": {}}
    return {
        "name": "tiny",
        "model": {"path": str(tmp_path / "tiny")},
        "template": "chatml",
        "output": str(tmp_path / "runs"),
        "sources": {
            name: {"jsonl": {"path": str(tmp_path / f"{name}.jsonl"), "held_out": 0.3}}
            for name in ("helpdesk", "general")
        },
        "mode": {"domain": {"sources": ["helpdesk"]}},
        "train": {"steps": 2, "batch_size": 2, "learning_rate": 0.01, "max_length": 64},
        "evaluate": {
            "helpdesk": {"source": "helpdesk", "metrics": {"rouge": {}, **likelihood}, "max_new_tokens": 3},
            "general": {"source": "general", "role": "general", "metrics": likelihood},
        },
        "track": {"enabled": False},
    }
