"""Fixtures for the tests of plugins. A `conftest.py` enables them: `pytest_plugins = ["harness.testing.plugin"]`.

`pytest --fixtures -p harness.testing.plugin` lists them. Heavy packages are imported by the fixtures that need them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.testing import example_run, tiny_model

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase


@pytest.fixture(scope="session", autouse=True)
def isolated_harness_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither read nor fill the user's cache of tokens, models and evaluations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_CACHE", str(tmp_path_factory.mktemp("harness-cache")))
        yield


@pytest.fixture(scope="session")
def harness_tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level tokenizer with the special tokens of ChatML."""
    return tiny_model.build_tokenizer()


@pytest.fixture
def harness_model(harness_tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """A random two-layer Llama with the vocabulary of `harness_tokenizer`, in float32; the same for every test."""
    return tiny_model.build_tiny_model(harness_tokenizer)


@pytest.fixture
def write_harness_spec(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a spec with its model and rows, and returns the file; it takes keys of the spec."""

    def write(**changes: Any) -> Path:
        return example_run.write_example_spec(tmp_path, **changes)

    return write


@pytest.fixture
def run_harness_spec(write_harness_spec: Callable[..., Path]) -> Callable[..., Path]:
    """A function that runs such a spec and returns the run's folder; it takes keys of the spec."""

    def run(**changes: Any) -> Path:
        return example_run.run_spec(write_harness_spec(**changes))

    return run


@pytest.fixture(scope="session")
def finished_harness_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run with two suites. It is shared: read it only."""
    return example_run.run_spec(example_run.write_example_spec(tmp_path_factory.mktemp("harness-run")))
