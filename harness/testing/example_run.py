"""A small spec with everything that it needs on disk, and a run of it that takes a few seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.testing.tiny_model import build_tiny_model, build_tokenizer

WORDS = ("amber", "basil", "clay", "dune", "ember", "fern", "grove", "hazel", "iris", "jade", "kelp", "lilac", "moss")


def write_example_spec(folder: Path, **changes: Any) -> Path:
    """Write a tiny model, two sources and a spec that trains for two steps and evaluates two suites.

    The sources are `desk` and `general`, and the suites have the same names. Runs are written to `runs`.

    Args:
        folder: The folder to write to.
        changes: Keys of the spec that replace those of the example.

    Returns:
        The file of the spec.
    """
    tokenizer = build_tokenizer()
    if not (folder / "model").exists():
        build_tiny_model(tokenizer).save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
    for name, question, answer in (("desk", "Where is {}?", "{} is here"), ("general", "Spell {}", "{}")):
        rows = [{"prompt": question.format(word), "completion": answer.format(word)} for word in WORDS]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    spec = {
        "name": "example",
        "output": str(folder / "runs"),
        "model": {"path": "./model"},
        "template": "chatml",
        "sources": {name: {"jsonl": {"path": f"{name}.jsonl", "held_out": 0.3}} for name in ("desk", "general")},
        "mode": {"domain": {"sources": ["desk"]}},
        "train": {"steps": 2, "batch_size": 2, "learning_rate": 0.01, "max_length": 64},
        "evaluate": {
            "desk": {"source": "desk", "metrics": {"response_perplexity": {}, "chrf": {}}, "max_new_tokens": 4},
            "general": {"source": "general", "role": "general", "metrics": {"response_perplexity": {}}},
        },
        "track": {"enabled": False},
        **changes,
    }
    file = folder / "spec.json"
    file.write_text(json.dumps(spec, indent=2), encoding="utf-8")
    return file


def run_spec(file: Path) -> Path:
    """Run a spec with all installed plugins, without printing.

    Returns:
        The folder of the finished run.
    """
    from harness.registry import discover_plugins
    from harness.runner import api
    from harness.spec.schema import compose_schema
    from harness.spec.spec import load_spec

    registry = discover_plugins()
    report = api.run(load_spec(file, compose_schema(registry)), registry)
    return Path(report.run_info["folder"])
