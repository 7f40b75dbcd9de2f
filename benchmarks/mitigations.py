"""Measure the cost of EWC, L2-SP and KL: their fraction of a step, the Fisher information, and memory.

    python benchmarks/mitigations.py [MODEL_FOLDER] [--only fisher|penalties|kl] [--rows 8] [--tokens 128]
                                     [--samples 64] [--updates 4] [--rounds 3] [--lora RANK]

Without a folder, a tiny model is built. The time of a penalty is measured within its step and divided by the rest of
that step. The Fisher information, steps with KL, and their baselines are interleaved, round by round, and medians are
reported, so noise affects all alike. Read the ratios, not the seconds. Targets: 3 % of a step for the default coupling;
1.15 times a forward and backward pass over the same tokens for the batched Fisher, and a third of the time of single
rows; 1.6 times a step with an adapter for KL on the task's tokens (measured with --lora).
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from harness_mitigations.adapted_weights import find_trainable_weights
from harness_mitigations.ewc import Ewc
from harness_mitigations.fisher import compute_diagonal_fisher
from harness_mitigations.kl import build_kl_mitigation
from harness_mitigations.l2sp import L2Sp
from harness_mitigations.lora import Lora
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from harness.interfaces.mitigation import Mitigation
from harness.seeding import seed_mitigations
from harness.training.collator import Collator
from harness.training.loss import summed_nll
from harness.training.train_stage import train_stage
from harness.types import Stage, StageDataset, TokenizedExample

SETTINGS = {
    "engine": "transformers", "epochs": 1, "steps": None, "learning_rate": 1e-5, "accumulation": 1,
    "scheduler": {"constant": {}}, "optimizer": {"adamw": {"betas": [0.9, 0.999], "eps": 1e-8}},
    "warmup_ratio": 0.0, "weight_decay": 0.0, "max_grad_norm": 1.0, "max_length": 4096,
    "packing": False, "precision": "float32", "gradient_checkpointing": False, "log_steps": 1, "save_steps": None,
}  # fmt: skip


def made_rows(number: int, tokens: int, vocabulary: int, seed: int = 0) -> tuple[TokenizedExample, ...]:
    """Return rows of `tokens` tokens on average, from half to one and a half times as many, half of each trained."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(number):
        length = tokens // 2 + tokens * index // max(1, number - 1)
        ids = torch.randint(10, vocabulary, (length,), generator=generator).tolist()
        rows.append(
            TokenizedExample(str(index), "made", tuple(ids), (-100,) * (length // 2) + tuple(ids[length // 2 :]))
        )
    return tuple(rows[i] for i in torch.randperm(number, generator=generator))


def build_tiny_model() -> torch.nn.Module:
    """Build a tiny Llama model."""
    torch.manual_seed(0)
    shape = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=4096, tie_word_embeddings=True, **shape))


def build_ewc(coupling: str, **storage: str) -> Ewc:
    """Build EWC with a coupling."""
    options: dict[str, Any] = {"dtype": "float32", "place": "device", **storage}
    return Ewc("kept", 1.0, coupling, "sampled", 16, 8, True, None, 1.0, cache=False, **options)  # type: ignore[arg-type]


class Timed(Mitigation):
    """Wraps a mitigation and measures the seconds that each step spends in it."""

    def __init__(self, inner: Mitigation) -> None:
        self.inner, self.penalty_timing = inner, inner.penalty_timing
        self.seconds: list[float] = []

    def on_stage_start(
        self, stage: Stage, model: Any, rows: Mapping[str, Sequence[TokenizedExample]], *, seed: int
    ) -> None:
        self.inner.on_stage_start(stage, model, rows, seed=seed)

    def add_weight_penalty(self, model: Any) -> torch.Tensor | None:
        """Time the penalty."""
        started = time.perf_counter()
        value = self.inner.add_weight_penalty(model)
        self.seconds.append(time.perf_counter() - started)
        return value

    def on_step_end(self, model: Any, learning_rate: float) -> None:
        """Time the hook."""
        started = time.perf_counter()
        self.inner.on_step_end(model, learning_rate)
        self.seconds[-1] += time.perf_counter() - started


def step_cost(model: torch.nn.Module, inner: Mitigation, tokenizer: Any, given: argparse.Namespace) -> float:
    """Return the median over steps of the time in the mitigation divided by the time of the rest of the step."""
    timed = Timed(inner)
    step_seconds = time_steps(model, {"timed": timed}, tokenizer, given)
    return statistics.median(
        inside / (total - inside) for inside, total in zip(timed.seconds[1:], step_seconds, strict=True)
    )


def time_steps(
    model: torch.nn.Module, mitigations: dict[str, Mitigation], tokenizer: Any, given: argparse.Namespace
) -> list[float]:
    """Return the seconds of each step of a short training, except the first, which creates the optimizer's state."""
    vocabulary = model.config.vocab_size - 10
    rows = made_rows(given.rows * (given.updates + 1), given.tokens, vocabulary)
    stage = Stage("made", (), {**SETTINGS, "batch_size": given.rows})
    seed = seed_mitigations(0)
    for mitigation in mitigations.values():
        mitigation.on_stage_start(stage, model, {"kept": made_rows(16, given.tokens, vocabulary, seed=1)}, seed=seed)
    marks: list[float] = []
    order = tuple((index,) for index in range(len(rows)))

    def on_step(step: int, metrics: Any) -> None:
        marks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        data = StageDataset(stage, rows, order, (len(order),), {}, 1.0)
        train_stage(model, tokenizer, data, mitigations, seed=0, folder=Path(folder), on_step=on_step)
    return [after - before for before, after in pairwise(marks)]


def stored_bytes(mitigation: Mitigation) -> int:
    """Return the bytes of the tensors that a mitigation stores."""

    def size(value: Any) -> int:
        if isinstance(value, torch.Tensor):
            return value.numel() * value.element_size()
        return sum(map(size, value.values())) if isinstance(value, dict) else 0

    return size(mitigation.state_dict())


def forward_backward(model: torch.nn.Module, rows: Sequence[TokenizedExample], batch_size: int) -> None:
    """Compute the loss of the rows in batches and its gradient, the baseline of the Fisher information."""
    ordered = sorted(rows, key=lambda row: len(row.input_ids), reverse=True)
    for start in range(0, len(ordered), batch_size):
        batch = ordered[start : start + batch_size]
        summed_nll(model, model, Collator(batch, [(i,) for i in range(len(batch))], 0)(range(len(batch)))).backward()
        model.zero_grad(set_to_none=True)


def square_single_gradients(model: torch.nn.Module, rows: Sequence[TokenizedExample]) -> None:
    """Loop over single rows as most implementations do: full logits, and the square of every gradient for each row."""
    total = {name: torch.zeros_like(w) for name, w in model.named_parameters() if w.requires_grad}
    for row in rows:
        model.zero_grad()
        logits = model(torch.tensor([row.input_ids]), use_cache=False).logits[0, :-1]
        torch.nn.functional.cross_entropy(logits, torch.tensor(row.labels[1:]), reduction="sum").backward()
        for name, weight in model.named_parameters():
            if weight.grad is not None:
                total[name] += weight.grad**2
    model.zero_grad()


def fisher_cost(model: torch.nn.Module, given: argparse.Namespace) -> dict[str, float]:
    """Return the median seconds of each way to compute a pass over the rows."""
    model.eval()
    weights_by_name = find_trainable_weights(model, "benchmark")
    rows = made_rows(given.samples, given.tokens, model.config.vocab_size - 10, seed=2)

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    contenders: dict[str, Callable[[], object]] = {
        "forward and backward": lambda: forward_backward(model, rows, given.rows),
        "fisher, sampled, batched": lambda: compute_diagonal_fisher(
            model, weights_by_name, rows, labels="sampled", batch_size=given.rows, generator=generator()
        ),
        "fisher, sampled, row by row": lambda: compute_diagonal_fisher(
            model, weights_by_name, rows, labels="sampled", batch_size=1, generator=generator()
        ),
        "fisher, empirical": lambda: compute_diagonal_fisher(model, weights_by_name, rows, labels="empirical"),
        "single rows, naive loop": lambda: square_single_gradients(model, rows),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(given.rounds + 1):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            if number:  # the first round is a warm-up
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}


def kl_cost(fresh: Callable[[], torch.nn.Module], tokenizer: Any, given: argparse.Namespace) -> dict[str, float]:
    """Return the median seconds of a step: plain, with KL on the task's tokens, and on rows of general data."""
    contenders: dict[str, Callable[[], dict[str, Mitigation]]] = {
        "plain step": dict,
        "kl, task": lambda: {
            "kl": build_kl_mitigation("task", None, 4, 1.0, "forward", 1.0, False, "data", "data", {})
        },
        f"kl, general, {max(1, given.rows // 2)} rows": lambda: {
            "kl": build_kl_mitigation(
                "general", "kept", max(1, given.rows // 2), 1.0, "forward", 1.0, False, "data", "data", {}
            )
        },
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(given.rounds):
        for name, make in contenders.items():
            seconds[name] += time_steps(fresh(), make(), tokenizer, given)
    return {name: statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    """Measure what the command line selects."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="folder of a causal language model; default: a tiny model")
    parser.add_argument("--only", choices=("fisher", "penalties", "kl"), help="measure only this")
    parser.add_argument("--samples", type=int, default=64, help="rows for the Fisher information")
    parser.add_argument("--rows", type=int, default=8, help="rows per batch")
    parser.add_argument("--tokens", type=int, default=128, help="tokens per row, on average")
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lora", type=int, help="rank of an adapter on all linear layers")
    given = parser.parse_args()
    if given.only == "kl" and not given.lora:
        parser.error("--only kl needs --lora RANK")
    loaded = (
        AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32) if given.model else build_tiny_model()
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0})), pad_token="<pad>")

    def fresh() -> Any:
        model = copy.deepcopy(loaded)
        torch.manual_seed(0)
        return (
            Lora(given.lora, None, 0.0, "all-linear", False, False, "zero", None, 1, 1, ()).prepare_model(model, seed=0)
            if given.lora
            else model
        )

    model = fresh()
    weights = sum(w.numel() for w in model.parameters() if w.requires_grad)
    print(f"{weights / 1e6:.1f} million trained weights, batches of {given.rows} rows of about {given.tokens} tokens")
    if given.only in (None, "fisher"):
        print_table(fisher_cost(model, given), "forward and backward")
    del model
    if given.lora and given.only in (None, "kl"):
        print_table(kl_cost(fresh, tokenizer, given), "plain step")
    for name, make in penalty_contenders(given).items() if given.only in (None, "penalties") else ():
        mitigation = make()
        share = step_cost(fresh(), mitigation, tokenizer, given)
        print(f"{name:30} {share:8.1%} of a step  {stored_bytes(mitigation) / weights:5.1f} bytes per trained weight")


def print_table(seconds: dict[str, float], unit: str) -> None:
    """Print seconds and their ratio to those of `unit`."""
    for name, median in seconds.items():
        print(f"{name:30} {median:8.3f} s  {median / seconds[unit]:6.2f} of {unit}")


def penalty_contenders(given: argparse.Namespace) -> dict[str, Callable[[], Mitigation]]:
    """Return the penalties to measure."""
    contenders: dict[str, Callable[[], Mitigation]] = {
        "ewc, gradient": lambda: build_ewc("gradient"),
        "ewc, gradient, in bfloat16": lambda: build_ewc("gradient", dtype="bfloat16"),
        "l2sp, gradient": lambda: L2Sp(1.0, "gradient", "base", "device"),
        "ewc, loss": lambda: build_ewc("loss"),
        "l2sp, loss": lambda: L2Sp(1.0, "loss", "base", "device"),
    }
    if not given.lora:
        contenders["ewc, proximal"] = lambda: build_ewc("proximal")
        contenders["l2sp, proximal"] = lambda: L2Sp(1.0, "proximal", "base", "device")
    return contenders


if __name__ == "__main__":
    main()
