"""Train a stage with some mitigations in the processes of the environment, and resume it; called by a test.

    python stage_of_processes.py FOLDER BATCH_SIZE

Writes to FOLDER/result.pt, for each case (a coupling of EWC, or KL): weights, log, and the weights of the resumed
stage.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import torch
from harness_mitigations.ewc import Ewc
from harness_mitigations.kl import GeneralKl, TaskKl
from harness_mitigations.l2sp import L2Sp
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from harness.interfaces.mitigation import Mitigation
from harness.seeding import seed_mitigations
from harness.training.train_stage import train_stage
from harness.types import Stage, StageDataset, StageSource, TokenizedExample

SETTINGS = {
    "engine": "transformers", "epochs": 1, "steps": None, "learning_rate": 1e-3, "accumulation": 1,
    "scheduler": {"linear": {"final": 0.0}}, "optimizer": {"adamw": {"betas": [0.9, 0.999], "eps": 1e-8}},
    "warmup_ratio": 0.2, "weight_decay": 0.0, "max_grad_norm": 0.5, "max_length": 64,
    "packing": False, "precision": "float32", "gradient_checkpointing": False, "log_steps": 1, "save_steps": 2,
}  # fmt: skip


def create_rows(number: int, seed: int) -> tuple[TokenizedExample, ...]:
    numbers = random.Random(seed)
    rows = []
    for index in range(number):
        ids = tuple(numbers.randrange(1, 50) for _ in range(numbers.randint(4, 12)))
        rows.append(TokenizedExample(f"row-{index}", "source", ids, (-100,) * 2 + ids[2:]))
    return tuple(rows)


ROWS = {"loss": 15, "proximal": 15, "kl": 13}
"""The last step is not full; with `kl` one of two processes has no row in it, and never a general row."""


def create_mitigations(kind: str) -> dict[str, Mitigation]:
    if kind == "kl":
        return {
            "general": GeneralKl("kept", 1, 20.0, "forward", 1.0, None),
            "task": TaskKl(5.0, "forward", 1.0, False),
        }
    return {
        "ewc": Ewc("kept", 20.0, kind, "sampled", 6, 4, True, None, 1.0, "float32", "device", False),  # type: ignore[arg-type]
        "l2sp": L2Sp(2.0, "gradient", "base", "device"),
    }


def start_stage(kind: str) -> tuple[LlamaForCausalLM, dict[str, Mitigation], Stage]:
    torch.manual_seed(0)
    config = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, pad_token_id=0, **config))
    mitigations = create_mitigations(kind)
    stage = Stage("stage", (StageSource("source", "domain"),), SETTINGS | {"batch_size": int(sys.argv[2])})
    seed = seed_mitigations(0)
    for mitigation in mitigations.values():
        mitigation.on_stage_start(stage, model, {"kept": create_rows(8, 5)}, seed=seed)
    return model, mitigations, stage


def main() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0})), pad_token="<pad>")
    result = {}
    for kind, count in ROWS.items():
        rows, folder = create_rows(count, 1), Path(sys.argv[1]) / kind
        results = []
        for resume in (None, folder / "checkpoints" / "checkpoint-2"):
            model, mitigations, stage = start_stage(kind)
            data = StageDataset(stage, rows, tuple((index,) for index in range(count)), (count,), {}, 1.0)
            trained = train_stage(model, tokenizer, data, mitigations, seed=0, folder=folder, resume=resume)
            results.append(({name: weight.detach() for name, weight in model.named_parameters()}, trained.log))
        (weights, log), (resumed, _) = results
        result[kind] = {"weights": weights, "log": list(log), "resumed": resumed}
    if os.environ["RANK"] == "0":
        torch.save(result, Path(sys.argv[1]) / "result.pt")


if __name__ == "__main__":
    main()
