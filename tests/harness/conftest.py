"""A small spec, a registry of a few components, most of them made up, and a store: for rooms that need no model."""

from __future__ import annotations

import json

import harness_mitigations
import harness_modes
import harness_trackers
import pytest

from harness.interfaces.component import Component
from harness.registry import Registry
from harness.tracking import mlflow_store

MADE_UP = {
    "templates": {
        "plain": Component("Plain text.", "small_parts:Plain"),
        "tokenizer": Component("The template of the model's own tokenizer.", "small_parts:Tokenizer"),
    },
    "sources": {
        "lines": Component(
            "One row a line.",
            "small_parts:Lines",
            {"path": {"type": "string", "format": "path", "description": "The file."}},
            ("path",),
        ),
    },
    "mitigations": {
        "keep": Component(
            "Keeps rows of a source.",
            "small_parts:Keep",
            {"source": {"type": "string", "format": "source", "description": "Whose rows are kept."}},
            ("source",),
        ),
    },
    "optimizers": {"adamw": Component("AdamW.", "small_parts:AdamW")},
    "schedulers": {
        "cosine": Component("Half a cosine wave.", "small_parts:Cosine"),
        "linear": Component("A straight line.", "small_parts:Linear"),
    },
    "metrics": {
        "length": Component("Length of the answer.", "small_parts:Length"),
        "overlap": Component(
            "Words in common.",
            "small_parts:Overlap",
            {"size": {"type": "integer", "minimum": 1, "default": 4, "description": "Words in a row."}},
        ),
    },
}


@pytest.fixture
def small_registry():
    """The built-in modes, trackers and `mixing`, and made-up components of every other kind that nothing can load."""
    registry = Registry()
    for name, component in harness_modes.harness_modes().items():
        registry.add("modes", name, component, "harness-sft")
    registry.add("mitigations", "mixing", harness_mitigations.harness_mitigations()["mixing"], "harness-sft")
    for name, component in harness_trackers.harness_trackers().items():
        registry.add("trackers", name, component, "harness-sft")
    for kind, components in MADE_UP.items():
        for name, component in components.items():
            registry.add(kind, name, component, "small")
    return registry


@pytest.fixture
def small_spec():
    """A valid document for the small registry, free to be changed."""
    return {
        "name": "small",
        "model": {"path": "org/model"},
        "template": "plain",
        "sources": {
            name: {"lines": {"path": f"{name}.txt"}} for name in ("desk", "desk_heldout", "chat", "chat_heldout")
        },
        "mode": {"mixed": {"domain": ["desk"], "general": ["chat"]}},
        "mitigations": {"mixing": {}},
        "train": {"max_length": 2048},
        "evaluate": {
            "desk": {"source": "desk_heldout", "metrics": "overlap"},
            "chat": {"source": "chat_heldout", "role": "general", "metrics": "overlap"},
        },
    }


@pytest.fixture
def write(tmp_path):
    """Writes a document, or the text given, to a file of the test's folder and gives its path."""

    def write(document, name="spec.json"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        text = document if isinstance(document, str) else json.dumps(document, indent=2, ensure_ascii=False)
        file.write_text(text, encoding="utf-8")
        return file

    return write


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    """A tracking store that all tests of a module share, so that its tables are made once."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture(scope="module")
def client(uri):
    """Reads the store at `uri`."""
    return mlflow_store.open_store(uri, create=True)
