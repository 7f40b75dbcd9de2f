"""Fixtures: stages of random rows over the tiny model's vocabulary."""

from __future__ import annotations

import copy
import gc
import random

import pytest

from harness.interfaces.mitigation import Mitigation
from harness.training.train_stage import train_stage
from harness.types import Stage, StageDataset, StageSource, TokenizedExample


@pytest.fixture(scope="session", autouse=True)
def quick_collection():
    """Exclude imported objects from the garbage collection at the end of every stage."""
    gc.freeze()
    yield
    gc.unfreeze()


SETTINGS = {
    "engine": "transformers",
    "epochs": 1,
    "steps": None,
    "learning_rate": 1e-3,
    "batch_size": 4,
    "accumulation": 1,
    "scheduler": {"constant": {}},
    "optimizer": {"adamw": {"betas": [0.9, 0.999], "eps": 1e-8}},
    "warmup_ratio": 0.0,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "max_length": 64,
    "packing": False,
    "precision": "auto",
    "gradient_checkpointing": False,
    "log_steps": 1,
    "save_steps": None,
}


@pytest.fixture(scope="session")
def make_rows():
    """(count, seed) -> rows of 6 to 20 tokens, the last third to two thirds of them trained."""

    def make(count: int, seed: int = 0) -> tuple[TokenizedExample, ...]:
        generator = random.Random(seed)
        rows = []
        for index in range(count):
            ids = tuple(generator.randrange(5, 200) for _ in range(generator.randint(6, 20)))
            start = generator.randint(len(ids) // 3, 2 * len(ids) // 3)
            rows.append(TokenizedExample(f"{index:016x}", "source", ids, (-100,) * start + ids[start:]))
        return tuple(rows)

    return make


@pytest.fixture(scope="session")
def make_stage(make_rows):
    """(rows, order, changed settings) -> a stage; without an order, each row is a sequence, once."""

    def make(rows=None, order=None, epoch_ends=None, name="stage", **settings) -> StageDataset:
        rows = make_rows(12) if rows is None else rows
        order = tuple((index,) for index in range(len(rows))) if order is None else tuple(order)
        stage = Stage(name, (StageSource("source", "domain"),), {**SETTINGS, **settings})
        return StageDataset(stage, rows, order, epoch_ends or (len(order),), {}, 1.0)

    return make


class Spy(Mitigation):
    """Records the gradients that the optimizer gets, after clipping; changes nothing."""

    def __init__(self) -> None:
        self.gradients = []

    def add_weight_penalty(self, model):
        self.gradients.append({n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None})


@pytest.fixture
def fit(tiny_model, tokenizer, tmp_path):
    """(data, mitigations, seed) -> a trained copy of the tiny model, the result of the stage, the gradients."""

    def run(data, mitigations=None, *, model=None, seed=0, **options):
        trained_model = copy.deepcopy(tiny_model) if model is None else model
        spy = Spy()
        spies = {**(mitigations or {}), "~spy": spy}
        result = train_stage(trained_model, tokenizer, data, spies, seed=seed, folder=tmp_path, **options)
        return trained_model, result, spy.gradients

    return run
