"""Measures how strong EWC's penalty is against the task's gradient, in models of several sizes.

    python benchmarks/ewc_strength.py

Small Llamas learn 32 rows, their Fisher is measured, and they then learn other rows for two AdamW steps. Before the
second step the gradient of the penalty is compared with that of the task after clipping. Takes half a minute.
"""

from __future__ import annotations

import math
import random
import warnings

import torch
from harness_mitigations.ewc import Ewc
from transformers import LlamaConfig, LlamaForCausalLM

from harness.types import Stage, StageSource, TokenizedExample

LEARNING_RATE, MAX_GRAD_NORM = 1e-3, 1.0
SIZES = ((16, 1), (32, 2), (64, 2), (128, 3), (256, 4))  # hidden size, layers


def build_rows(seed: int) -> list[TokenizedExample]:
    """Return 32 rows of 25 tokens, each an arithmetic progression."""
    draw = random.Random(seed)
    rows = []
    for _ in range(32):
        start = draw.randrange(5, 60)
        ids = (1, *((start * (position + 1) * seed) % 200 + 5 for position in range(24)))
        rows.append(TokenizedExample("", "", ids, (*(-100,) * 4, *ids[4:])))
    return rows


def compute_gradient(model: LlamaForCausalLM, rows: list[TokenizedExample], step: int) -> float:
    """Compute the gradient of a step of eight rows, clip it, and return its norm after clipping."""
    first = 8 * step % len(rows)
    ids = torch.tensor([row.input_ids for row in rows[first : first + 8]])
    model.zero_grad()
    model(ids, labels=ids).loss.backward()
    return min(float(torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)), MAX_GRAD_NORM)


def measure(width: int, layers: int) -> tuple[int, float, float, float]:
    """Return N, r, c and the ratio of the two gradients' norms before the second step."""
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=210, num_attention_heads=4, tie_word_embeddings=True, **sizes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    old, new = build_rows(3), build_rows(7)
    for step in range(60):
        compute_gradient(model, old, step)
        optimizer.step()
    ewc = Ewc("old", 1.0, "gradient", "sampled", 32, 8, True, None, 1.0, "float32", "device", False)
    stage = Stage("new", (StageSource("new", "domain"),), {"max_grad_norm": MAX_GRAD_NORM})
    ewc.on_stage_start(stage, model, {"old": old}, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    compute_gradient(model, new, 0)
    optimizer.step()
    clipped_norm = compute_gradient(model, new, 1)
    model.zero_grad()
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    ewc.add_weight_penalty(model)
    norm = math.sqrt(sum(float(weight.grad.double().square().sum()) for weight in model.parameters()))
    count = sum(weight.numel() for weight in model.parameters())
    return count, ewc.stage_stats()["fisher_rms"], clipped_norm, norm / clipped_norm


def main() -> None:
    """Print one row of a table for each size."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for width, layers in SIZES:
        count, rms, clipped_norm, ratio = measure(width, layers)
        formula = LEARNING_RATE * math.sqrt(count) * rms / clipped_norm
        print(f"| {count:,} | {rms:.1f} | {clipped_norm:.2f} | {formula:.2f} | {ratio:.2f} | {1 / formula:.2f} |")


if __name__ == "__main__":
    main()
