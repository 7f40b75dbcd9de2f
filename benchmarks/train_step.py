"""Tokens a second of a LoRA step: both engines, stock TRL and a plain loop, side by side in one process.

    python benchmarks/train_step.py MODEL_FOLDER [--rounds 3]

Every contender trains the same rows in the same order: batch 8, about 40 tokens a row, half of them trained, rank 16 on
all linear layers. Rounds are interleaved and medians taken, so that a noisy machine hits all of them alike; read the
ratios to the plain loop, not the figures.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from harness.training.train_stage import train_stage
from harness.types import Stage, StageDataset, TokenizedExample

BATCH, STEPS, LENGTH = 8, 6, 40
SETTINGS = {
    "epochs": 1, "steps": None, "learning_rate": 1e-4, "batch_size": BATCH, "accumulation": 1, "scheduler": "constant",
    "warmup_ratio": 0.0, "weight_decay": 0.0, "max_grad_norm": 1.0, "max_length": 512, "packing": False,
    "precision": "float32", "gradient_checkpointing": False, "log_steps": 1, "save_steps": None,
}  # fmt: skip


def rows(vocabulary: int) -> tuple[TokenizedExample, ...]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(BATCH * STEPS):
        ids = torch.randint(10, vocabulary, (LENGTH,), generator=generator).tolist()
        made.append(
            TokenizedExample(str(number), "made", tuple(ids), tuple([-100] * (LENGTH // 2) + ids[LENGTH // 2 :]))
        )
    return tuple(made)


def adapted(folder: str) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config).train()


def plain(model: torch.nn.Module, data: tuple[TokenizedExample, ...]) -> None:
    optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=1e-4, fused=True)
    core = model.get_base_model()
    for begin in range(0, len(data), BATCH):
        ids = torch.tensor([row.input_ids for row in data[begin : begin + BATCH]])
        labels = torch.tensor([row.labels for row in data[begin : begin + BATCH]])[:, 1:]
        hidden = core.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        kept = labels != -100
        torch.nn.functional.cross_entropy(core.lm_head(hidden[kept]), labels[kept]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def ours(engine: str) -> Callable[..., None]:
    def run(model: torch.nn.Module, data: tuple[TokenizedExample, ...], tokenizer: object) -> None:
        stage = Stage("made", (), {**SETTINGS, "engine": engine})
        order = tuple((index,) for index in range(len(data)))
        with tempfile.TemporaryDirectory() as folder:
            train_stage(
                model,
                tokenizer,
                StageDataset(stage, data, order, (len(order),), {}, 1.0),
                {},
                seed=0,
                folder=Path(folder),
            )

    return run


def stock(model: torch.nn.Module, data: tuple[TokenizedExample, ...], tokenizer: object) -> None:
    table = Dataset.from_list([{"input_ids": list(row.input_ids), "labels": list(row.labels)} for row in data])
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            folder, per_device_train_batch_size=BATCH, num_train_epochs=1, learning_rate=1e-4, report_to=[], bf16=False,
            disable_tqdm=True, save_strategy="no", logging_strategy="no", gradient_checkpointing=False,
            use_cpu=not torch.cuda.is_available(),
        )  # fmt: skip
        SFTTrainer(model, config, train_dataset=table, processing_class=tokenizer).train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a causal language model")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    data = rows(len(tokenizer) - 10)
    contenders: dict[str, Callable[..., None]] = {
        "plain loop": lambda model, data, tokenizer: plain(model, data),
        "harness, transformers": ours("transformers"),
        "harness, trl": ours("trl"),
        "stock TRL": stock,
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(arguments.rounds + 1):
        for name, run in contenders.items():
            model = adapted(arguments.model)
            started = time.perf_counter()
            run(model, data, tokenizer)
            if number:  # the first round pages everything in
                seconds[name].append(time.perf_counter() - started)
    tokens = sum(len(row.input_ids) for row in data)
    base = statistics.median(seconds["plain loop"])
    for name, taken in seconds.items():
        median = statistics.median(taken)
        print(f"{name:24} {tokens / median:6.0f} tokens/s  {base / median:.2f} of the plain loop")


if __name__ == "__main__":
    main()
