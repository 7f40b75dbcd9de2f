"""A workspace for complete runs: a tiny model and rows on disk; specs are run, interrupted and resumed."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
from support.event_recorder import EventRecorder

from harness import registry
from harness.cli.main import main
from harness.runner import api
from harness.spec import schema, spec
from harness.testing.tiny_model import build_tiny_model

WORDS = ("amber", "basil", "clay", "dune", "ember", "fern", "grove", "hazel", "iris", "jade", "kelp", "lilac", "moss")


@pytest.fixture(scope="module", autouse=True)
def quick_collection():
    """Exclude what is imported already from the garbage collection at the end of every stage."""
    gc.freeze()
    yield
    gc.unfreeze()


class Desk:
    """A folder with a model, rows and runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0

    def document(self, **changes: Any) -> dict[str, Any]:
        """Return a spec of one stage, two suites and two steps, with some keys replaced."""
        return {
            "name": "tiny",
            "model": {"path": "./tiny"},
            "template": "chatml",
            "sources": {
                name: {"jsonl": {"path": f"{name}.jsonl", "held_out": 0.3}} for name in ("domain", "general", "second")
            },
            "mode": {"domain": {"sources": ["domain"]}},
            "train": {"steps": 2, "batch_size": 2, "learning_rate": 0.01, "max_length": 64},
            "evaluate": {
                "domain": {
                    "source": "domain",
                    "metrics": {"response_perplexity": {}, "chrf": {}},
                    "max_new_tokens": 3,
                },
                "general": {"source": "general", "role": "general", "metrics": {"response_perplexity": {}}},
            },
            "track": {"enabled": False},
            **changes,
        }

    def continual(self, second: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
        """Return a spec of two stages, `a` and `b`, of four steps each, with a checkpoint at every second step."""
        stages = [{"name": "a", "domain": ["domain"]}, {"name": "b", "domain": ["second"], **(second or {})}]
        document = self.document(mode={"continual": {"stages": stages}}, **changes)
        document["train"] = {**document["train"], "steps": 4, "save_steps": 2}
        return document

    def write(self, document: dict[str, Any]) -> Path:
        self.count += 1
        file = self.folder / f"spec{self.count}.json"
        file.write_text(json.dumps({**document, "output": str(self.folder / f"out{self.count}")}))
        return file

    def start(self, document: dict[str, Any], *listeners: EventRecorder) -> Path:
        """Run a spec and return the run's folder."""
        file = self.write(document)
        found = self._registry(listeners)
        api.run(spec.load_spec(file, schema.compose_schema(found)), found)
        return self.newest()

    def resume(self, place: Path, *listeners: EventRecorder) -> Any:
        found = self._registry(listeners)
        return api.resume_run(spec.load_spec(place / "spec.json", schema.compose_schema(found)), found, place)

    def newest(self) -> Path:
        """Return the only run folder of the last spec."""
        (place,) = (one for one in (self.folder / f"out{self.count}").iterdir() if (one / "spec.json").exists())
        return place

    def command(self, *words: Any) -> int:
        return main([str(word) for word in words])

    @staticmethod
    def _registry(listeners: tuple[EventRecorder, ...]) -> registry.Registry:
        found = registry.discover_plugins()
        for listener in listeners:
            found.manager.register(listener)
        return found


@pytest.fixture(scope="session")
def untrained(tmp_path_factory, tokenizer):
    """The folder of the tiny model."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    build_tiny_model(tokenizer, **sizes, max_position_embeddings=128).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def desk(tmp_path_factory, untrained):
    folder = tmp_path_factory.mktemp("desk")
    (folder / "tiny").symlink_to(untrained, target_is_directory=True)
    for name, ask, answer in (
        ("domain", "Where is {}?", "{} is here"),
        ("general", "Spell {}", "{}"),
        ("second", "What is {}?", "a {}"),
    ):
        rows = [{"instruction": ask.format(word), "output": answer.format(word)} for word in WORDS]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Desk(folder)


def kept(place: Path) -> dict[str, Any]:
    """Return everything in a finished run's folder that does not depend on the clock."""
    report = json.loads((place / "report.json").read_text())
    found: dict[str, Any] = {key: report[key] for key in report if key not in ("run",)}
    found["scores"] = json.loads((place / "scores.json").read_text())
    found["variants"] = (
        json.loads((place / "variants.json").read_text()) if (place / "variants.json").exists() else None
    )
    for file in sorted(place.glob("model/*.safetensors")) + sorted(place.glob("stages/*/model/*.safetensors")):
        found[str(file.relative_to(place))] = file.read_bytes()
    for file in sorted(place.glob("stages/*/steps.jsonl")):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        found[str(file.relative_to(place))] = [
            {key: value for key, value in line.items() if "second" not in key} for line in lines
        ]
    for file in sorted(place.glob("predictions/**/*.jsonl")):
        items = [json.loads(line) for line in file.read_text().splitlines()]
        found[str(file.relative_to(place))] = sorted(items, key=lambda one: (one["id"], str(one)))
    for file in sorted(place.glob("predictions/**/*.header.json")):
        found[str(file.relative_to(place))] = json.loads(file.read_text())
    return found


@pytest.fixture(scope="session")
def listener():
    """The class of event recorders."""
    return EventRecorder


@pytest.fixture
def same():
    """A function of two folders of finished runs that fails at their first difference."""

    def compare(one: Path, other: Path) -> None:
        first, second = kept(one), kept(other)
        assert first.keys() == second.keys()
        for name in first:
            assert first[name] == second[name], name

    return compare


@pytest.fixture
def generated(monkeypatch):
    """A list that receives the number of prompts of each generated batch."""
    from harness.evaluation import answers

    seen: list[int] = []
    real = answers.generate_answers

    def counted(model, tokenizer, prompts, **more):
        seen.append(len(prompts))
        return real(model, tokenizer, prompts, **more)

    monkeypatch.setattr(answers, "generate_answers", counted)
    return seen
