"""What EWC, L2-SP and KL cost: their part of an update, the Fisher against what it is made of, and memory.

    python benchmarks/mitigations.py [MODEL_FOLDER] [--only fisher|pulls|kl] [--rows 8] [--tokens 128] [--samples 64]
                                     [--updates 4] [--rounds 3] [--lora RANK]

Without a folder a tiny model is made in code. Time of a pull is taken within the update that it belongs to and divided
by the rest of that update; the Fisher, updates with KL, and what they are compared with are interleaved, round by
round, and medians taken: a noisy machine hits all alike. Read the ratios, not the seconds. Targets: 3 % of an update
for the default coupling; 1.15 of a forward and backward pass over the same tokens for the batched Fisher, and a third
of the time of single rows; 1.6 of an update with an adapter for KL on the task's tokens (measured with --lora).
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
from harness.training.collator import Collator
from harness.training.loss import summed_nll
from harness.training.train_stage import seed_mitigations, train_stage
from harness.types import Stage, StageDataset, TokenizedExample

SETTINGS = {
    "engine": "transformers", "epochs": 1, "steps": None, "learning_rate": 1e-5, "accumulation": 1,
    "scheduler": "constant", "warmup_ratio": 0.0, "weight_decay": 0.0, "max_grad_norm": 1.0, "max_length": 4096,
    "packing": False, "precision": "float32", "gradient_checkpointing": False, "log_steps": 1, "save_steps": None,
}  # fmt: skip


def made_rows(number: int, tokens: int, vocabulary: int, seed: int = 0) -> tuple[TokenizedExample, ...]:
    """Rows of `tokens` tokens on average, from half to one and a half times as many, half of each trained."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(number):
        length = tokens // 2 + tokens * index // max(1, number - 1)
        ids = torch.randint(10, vocabulary, (length,), generator=generator).tolist()
        rows.append(
            TokenizedExample(str(index), "made", tuple(ids), (-100,) * (length // 2) + tuple(ids[length // 2 :]))
        )
    return tuple(rows[i] for i in torch.randperm(number, generator=generator))


def tiny() -> torch.nn.Module:
    torch.manual_seed(0)
    shape = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=4096, tie_word_embeddings=True, **shape))


def ewc(coupling: str, **storage: str) -> Ewc:
    options: dict[str, Any] = {"dtype": "float32", "place": "device", **storage}
    return Ewc("kept", 1.0, coupling, "sampled", 16, 8, True, None, 1.0, cache=False, **options)  # type: ignore[arg-type]


class Timed(Mitigation):
    """Another mitigation, and the seconds that each update spends in it."""

    def __init__(self, inner: Mitigation) -> None:
        self.inner, self.penalty_timing = inner, inner.penalty_timing
        self.seconds: list[float] = []

    def on_stage_start(
        self, stage: Stage, model: Any, rows: Mapping[str, Sequence[TokenizedExample]], *, seed: int
    ) -> None:
        self.inner.on_stage_start(stage, model, rows, seed=seed)

    def add_weight_penalty(self, model: Any) -> torch.Tensor | None:
        started = time.perf_counter()
        value = self.inner.add_weight_penalty(model)
        self.seconds.append(time.perf_counter() - started)
        return value

    def on_step_end(self, model: Any, learning_rate: float) -> None:
        started = time.perf_counter()
        self.inner.on_step_end(model, learning_rate)
        self.seconds[-1] += time.perf_counter() - started


def update_cost(model: torch.nn.Module, inner: Mitigation, tokenizer: Any, given: argparse.Namespace) -> float:
    """The median over updates of the time in the mitigation over the time of the rest of the update."""
    timed = Timed(inner)
    whole = updates(model, {"timed": timed}, tokenizer, given)
    return statistics.median(own / (all_ - own) for own, all_ in zip(timed.seconds[1:], whole, strict=True))


def updates(
    model: torch.nn.Module, mitigations: dict[str, Mitigation], tokenizer: Any, given: argparse.Namespace
) -> list[float]:
    """Seconds of each update of a short training, but for the first, which makes the optimizer's state."""
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


def held(mitigation: Mitigation) -> int:
    """Bytes of the tensors that it remembers."""

    def size(value: Any) -> int:
        if isinstance(value, torch.Tensor):
            return value.numel() * value.element_size()
        return sum(map(size, value.values())) if isinstance(value, dict) else 0

    return size(mitigation.state_dict())


def forward_backward(model: torch.nn.Module, rows: Sequence[TokenizedExample], batch_size: int) -> None:
    """What the Fisher is made of: the loss of the same rows in the same batches and its gradient, let go each time."""
    ordered = sorted(rows, key=lambda row: len(row.input_ids), reverse=True)
    for start in range(0, len(ordered), batch_size):
        some = ordered[start : start + batch_size]
        summed_nll(model, model, Collator(some, [(i,) for i in range(len(some))], 0)(range(len(some)))).backward()
        model.zero_grad(set_to_none=True)


def single_rows(model: torch.nn.Module, rows: Sequence[TokenizedExample]) -> None:
    """A loop of single examples as it is mostly written: full logits, and a square of every gradient for each row."""
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
    """Median seconds of each way to spend a pass over the rows."""
    model.eval()
    moves = find_trainable_weights(model, "benchmark")
    rows = made_rows(given.samples, given.tokens, model.config.vocab_size - 10, seed=2)

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    contenders: dict[str, Callable[[], object]] = {
        "forward and backward": lambda: forward_backward(model, rows, given.rows),
        "fisher, sampled, batched": lambda: compute_diagonal_fisher(
            model, moves, rows, labels="sampled", batch_size=given.rows, generator=generator()
        ),
        "fisher, sampled, row by row": lambda: compute_diagonal_fisher(
            model, moves, rows, labels="sampled", batch_size=1, generator=generator()
        ),
        "fisher, empirical": lambda: compute_diagonal_fisher(model, moves, rows, labels="empirical"),
        "single rows, as mostly written": lambda: single_rows(model, rows),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(given.rounds + 1):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            if number:  # the first round pages everything in
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def kl_cost(fresh: Callable[[], torch.nn.Module], tokenizer: Any, given: argparse.Namespace) -> dict[str, float]:
    """Median seconds of an update: plain, with KL on the task's tokens, and on as many rows of general data."""
    contenders: dict[str, Callable[[], dict[str, Mitigation]]] = {
        "plain update": dict,
        "kl, task": lambda: {"kl": build_kl_mitigation("task", None, 4, 1.0, "forward", 1.0)},
        f"kl, general, {max(1, given.rows // 2)} rows": lambda: {
            "kl": build_kl_mitigation("general", "kept", max(1, given.rows // 2), 1.0, "forward", 1.0)
        },
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(given.rounds):
        for name, make in contenders.items():
            seconds[name] += updates(fresh(), make(), tokenizer, given)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="folder of a causal language model; left out: a tiny one")
    parser.add_argument("--only", choices=("fisher", "pulls", "kl"), help="measure this alone")
    parser.add_argument("--samples", type=int, default=64, help="rows that a Fisher is measured on")
    parser.add_argument("--rows", type=int, default=8, help="in a batch")
    parser.add_argument("--tokens", type=int, default=128, help="in a row, on average")
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lora", type=int, help="rank of an adapter on all linear layers")
    given = parser.parse_args()
    if given.only == "kl" and not given.lora:
        parser.error("--only kl needs --lora RANK")
    loaded = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32) if given.model else tiny()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0})), pad_token="<pad>")

    def fresh() -> Any:
        model = copy.deepcopy(loaded)
        torch.manual_seed(0)
        return (
            Lora(given.lora, None, 0.0, "all-linear", False, False, "zero", None, 1).prepare_model(model, seed=0)
            if given.lora
            else model
        )

    model = fresh()
    weights = sum(w.numel() for w in model.parameters() if w.requires_grad)
    print(f"{weights / 1e6:.1f} million trained weights, batches of {given.rows} rows of about {given.tokens} tokens")
    if given.only in (None, "fisher"):
        table(fisher_cost(model, given), "forward and backward")
    del model
    if given.lora and given.only in (None, "kl"):
        table(kl_cost(fresh, tokenizer, given), "plain update")
    for name, make in pulls(given).items() if given.only in (None, "pulls") else ():
        mitigation = make()
        share = update_cost(fresh(), mitigation, tokenizer, given)
        print(f"{name:30} {share:8.1%} of an update  {held(mitigation) / weights:5.1f} bytes a trained weight")


def table(seconds: dict[str, float], unit: str) -> None:
    for name, taken in seconds.items():
        print(f"{name:30} {taken:8.3f} s  {taken / seconds[unit]:6.2f} of {unit}")


def pulls(given: argparse.Namespace) -> dict[str, Callable[[], Mitigation]]:
    contenders: dict[str, Callable[[], Mitigation]] = {
        "ewc, gradient": lambda: ewc("gradient"),
        "ewc, gradient, in bfloat16": lambda: ewc("gradient", dtype="bfloat16"),
        "l2sp, gradient": lambda: L2Sp(1.0, "gradient", "base", "device"),
        "ewc, loss": lambda: ewc("loss"),
        "l2sp, loss": lambda: L2Sp(1.0, "loss", "base", "device"),
    }
    if not given.lora:
        contenders["ewc, proximal"] = lambda: ewc("proximal")
        contenders["l2sp, proximal"] = lambda: L2Sp(1.0, "proximal", "base", "device")
    return contenders


if __name__ == "__main__":
    main()
