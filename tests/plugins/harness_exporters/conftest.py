"""What an exporter gets, with a tiny model."""

from __future__ import annotations

import copy

import pytest

from harness import ExportSource
from harness.data.tokenization.turn_separators import build_chat_template, find_turn_separators
from harness.registry import discover_plugins
from harness.spec.component_options import fill_component_options


@pytest.fixture(scope="session")
def registry():
    return discover_plugins()


@pytest.fixture
def create(registry):
    """A function that creates an exporter with its defaults."""

    def create(name, **options):
        return registry.create("exporters", name, fill_component_options(registry, "exporters", name, options))

    return create


@pytest.fixture
def source(registry, tmp_path, tiny_model, tokenizer):
    """A tiny model in ChatML."""
    template = registry.create("templates", "chatml", {"system": None})
    tokenizer = copy.deepcopy(tokenizer)  # the fixture is shared by all tests
    separators = find_turn_separators(template, tokenizer)
    tokenizer.chat_template = build_chat_template(separators)
    tiny_model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(["<|im_end|>"])
    (tmp_path / "run" / "model").mkdir(parents=True)
    return ExportSource(
        name="Tiny_run",
        model=tmp_path / "run" / "model",
        card="# tiny\n\n## Load the model\n\nold lines\n\n## Scores\n\nnone\n",
        chat_template=tokenizer.chat_template,
        separators=separators,
        stops=("<|im_end|>",),
        begin_token="",
        tokenizer=tokenizer,
        merge=lambda dtype: tiny_model,
    )
