"""Fixtures shared by all tests: a byte-level tokenizer and a tiny random model, both made in code."""

from __future__ import annotations

import os
import random
import sys
import zlib

import numpy as np
import pytest

from harness.testing.tiny_model import build_tiny_config, build_tokenizer

os.environ["OMP_NUM_THREADS"] = "1"  # set before torch is imported; the last digits depend on the number of threads
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("COLUMNS", "140")
os.environ.setdefault("HARNESS_EVALUATION_CACHE", "0")  # a test must not depend on the runs of others
os.environ.setdefault("HARNESS_BFLOAT16_RATIO", "0.0")  # a warning must not depend on the CPU


def pytest_addoption(parser):
    """Add `--part I/N`, which divides the tests: `make slow PART=2/5`."""
    parser.addoption("--part", metavar="I/N", default="1/1", help="run the I-th of N parts; a file is in one part")


def pytest_collection_modifyitems(config, items):
    """Keep the tests of the part. A file is in one part, by a checksum of its path: tests may share a run."""
    try:
        part, parts = (int(number) for number in config.getoption("--part").split("/"))
    except ValueError:
        part = parts = 0
    if not 1 <= part <= parts:
        raise pytest.UsageError(f"--part {config.getoption('--part')}: type the part and their number, e.g. 2/5")
    kept, left_out = [], []
    for item in items:
        path = item.path.relative_to(config.rootpath).as_posix()
        (kept if zlib.crc32(path.encode()) % parts == part - 1 else left_out).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


@pytest.fixture(autouse=True)
def fixed_seeds():
    """Seed every test alike: the last digits of its random weights must not depend on the tests before it."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def tokenizer():
    """The byte-level tokenizer."""
    return build_tokenizer()


@pytest.fixture
def tiny_model(tokenizer):
    """A random two-layer Llama with the tokenizer's vocabulary, float32, about 30,000 weights, seed 0."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(build_tiny_config(tokenizer))
