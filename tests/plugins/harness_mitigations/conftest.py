"""Random rows over the tiny model's vocabulary, and stages that train on them like a run."""

from __future__ import annotations

import gc
import random

import pytest

from harness.seeding import seed_mitigations
from harness.training.train_stage import train_stage
from harness.types import Stage, StageDataset, StageSource, TokenizedExample


@pytest.fixture(scope="module", autouse=True)
def quick_collection():
    """Exclude imported objects from the garbage collection at the end of every stage."""
    gc.freeze()
    yield
    gc.unfreeze()


SETTINGS = {
    "engine": "transformers",
    "epochs": 1,
    "steps": None,
    "learning_rate": 1e-2,
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


def some_rows(number: int, seed: int = 0, source: str = "source") -> tuple[TokenizedExample, ...]:
    """Return rows of 6 to 20 tokens; the last third to two thirds of each is trained."""
    numbers = random.Random(seed)
    rows = []
    for index in range(number):
        ids = tuple(numbers.randrange(5, 200) for _ in range(numbers.randint(6, 20)))
        start = numbers.randint(len(ids) // 3, 2 * len(ids) // 3)
        rows.append(TokenizedExample(f"{source}-{index}", source, ids, (-100,) * start + ids[start:]))
    return tuple(rows)


@pytest.fixture(scope="session")
def make_rows():
    """Return the function (number, seed, source) -> rows."""
    return some_rows


@pytest.fixture
def run_stages(tokenizer, tmp_path):
    """Return a function that trains stages like a run: it returns the model and the log of each stage.

    Its `watch` is called with the number of the stage and the model after each `on_stage_start`, and with the negative
    number at each end.
    """

    def run(model, mitigations, stages, sources=None, *, watch=None, seed=0, order=None, **settings):
        mitigation_seed = seed_mitigations(seed)
        mitigations = dict(sorted(mitigations.items(), key=lambda item: (item[1].priority, item[0])))
        for mitigation in mitigations.values():
            model = mitigation.prepare_model(model, seed=mitigation_seed)
        logs = []
        for number, rows in enumerate(stages, start=1):
            stage = Stage(f"stage-{number}", (StageSource("source", "domain"),), {**SETTINGS, **settings})
            slots = tuple((index,) for index in range(len(rows))) if order is None else order
            data = StageDataset(stage, rows, slots, (len(slots),), {}, 1.0)
            for mitigation in mitigations.values():
                mitigation.on_stage_start(stage, model, sources or {}, seed=mitigation_seed)
            if watch:
                watch(number, model)
            logs.append(train_stage(model, tokenizer, data, mitigations, seed=seed, folder=tmp_path / str(number)).log)
            for mitigation in mitigations.values():
                mitigation.on_stage_end(stage, model, rows)
            if watch:
                watch(-number, model)
        return model, logs

    return run


@pytest.fixture
def reloaded(tiny_model, tokenizer, tmp_path):
    """Return a function that saves a model and loads it with plain transformers or peft."""
    import copy

    from harness.model import save

    base = copy.deepcopy(tiny_model)

    def reload(model):
        folder = tmp_path / "saved"
        save.save_model(model, tokenizer, folder)
        if (folder / "adapter_config.json").is_file():
            from peft import PeftModel

            return PeftModel.from_pretrained(copy.deepcopy(base), folder).eval()
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(folder).eval()

    return reload
