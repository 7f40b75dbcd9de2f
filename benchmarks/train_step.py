"""Measure tokens per second of a LoRA step: both engines, stock TRL and a plain loop, in one process.

    python benchmarks/train_step.py MODEL_FOLDER [--rounds 3]

Every contender trains the same rows in the same order: batch size 8, 40 tokens per row, half of them trained, rank 16
on all linear layers. Rounds are interleaved and medians are reported, so noise affects all contenders alike. Read the
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


def build_rows(vocabulary: int) -> tuple[TokenizedExample, ...]:
    """Return random rows."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for index in range(BATCH * STEPS):
        ids = torch.randint(10, vocabulary, (LENGTH,), generator=generator).tolist()
        rows.append(
            TokenizedExample(str(index), "made", tuple(ids), tuple([-100] * (LENGTH // 2) + ids[LENGTH // 2 :]))
        )
    return tuple(rows)


def load_with_adapter(folder: str) -> torch.nn.Module:
    """Load a model with a LoRA adapter of rank 16."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config).train()


def run_plain_loop(model: torch.nn.Module, data: tuple[TokenizedExample, ...]) -> None:
    """Train with a plain PyTorch loop."""
    optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=1e-4, fused=True)
    core = model.get_base_model()
    for begin in range(0, len(data), BATCH):
        ids = torch.tensor([row.input_ids for row in data[begin : begin + BATCH]])
        labels = torch.tensor([row.labels for row in data[begin : begin + BATCH]])[:, 1:]
        hidden = core.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        is_trained = labels != -100
        torch.nn.functional.cross_entropy(core.lm_head(hidden[is_trained]), labels[is_trained]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def harness_trainer(engine: str) -> Callable[..., None]:
    """Return a function that trains with an engine of harness."""

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


def run_stock_trl(model: torch.nn.Module, data: tuple[TokenizedExample, ...], tokenizer: object) -> None:
    """Train with TRL's `SFTTrainer`."""
    table = Dataset.from_list([{"input_ids": list(row.input_ids), "labels": list(row.labels)} for row in data])
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            folder, per_device_train_batch_size=BATCH, num_train_epochs=1, learning_rate=1e-4, report_to=[], bf16=False,
            disable_tqdm=True, save_strategy="no", logging_strategy="no", gradient_checkpointing=False,
            use_cpu=not torch.cuda.is_available(),
        )  # fmt: skip
        SFTTrainer(model, config, train_dataset=table, processing_class=tokenizer).train()


def main() -> None:
    """Time all contenders and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a causal language model")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    data = build_rows(len(tokenizer) - 10)
    contenders: dict[str, Callable[..., None]] = {
        "plain loop": lambda model, data, tokenizer: run_plain_loop(model, data),
        "harness, transformers": harness_trainer("transformers"),
        "harness, trl": harness_trainer("trl"),
        "stock TRL": run_stock_trl,
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for index in range(arguments.rounds + 1):
        for name, run in contenders.items():
            model = load_with_adapter(arguments.model)
            started = time.perf_counter()
            run(model, data, tokenizer)
            if index:  # the first round is a warm-up
                seconds[name].append(time.perf_counter() - started)
    tokens = sum(len(row.input_ids) for row in data)
    base = statistics.median(seconds["plain loop"])
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"{name:24} {tokens / median:6.0f} tokens/s  {base / median:.2f} of the plain loop")


if __name__ == "__main__":
    main()
