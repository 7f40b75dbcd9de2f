"""Measure training: real tokens a second, peak memory, and the share of the machine's matrix-product rate.

    python benchmarks/train_step.py MODEL_FOLDER [--rounds 3] [--only "harness" "TRL"] [--json FILE]

Every contender trains the same rows in a process of its own, in batches of 8. Rounds are interleaved, and medians and
ranges over the rounds are printed, so noise affects all contenders alike. Read the ratios, not the figures. A time is
that of the training steps alone, from the first batch to the end of the last step, of every contender. On a busy
machine use `--clock cpu` with `OMP_NUM_THREADS=1`: the CPU time of one thread.

Model FLOPs utilization: a token takes 6 operations for each trained weight of a matrix product, and 4 for each frozen
one, whose own gradient is not computed. Embeddings are looked up and count only where they are the head too. The
utilization is these operations a second, divided by the rate at which this machine multiplies two float32 matrices of
2048 × 2048. The rate is measured in the same process after the training. Computing something twice, or for padding,
does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BATCH, SEED = 8, 0
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
clock = CLOCKS[os.environ.get("BENCHMARK_CLOCK", "wall")]
"""Reads the time in seconds: wall time, or the CPU time of all threads of this process."""

SETTINGS = {
    "epochs": 1, "steps": None, "learning_rate": 2e-5, "batch_size": BATCH, "accumulation": 1,
    "scheduler": {"constant": {}}, "optimizer": {"adamw": {"betas": [0.9, 0.999], "eps": 1e-8}},
    "warmup_ratio": 0.0, "weight_decay": 0.0, "max_grad_norm": 1.0, "max_length": 2048, "packing": False,
    "precision": "float32", "gradient_checkpointing": False, "log_steps": 1, "save_steps": None,
}  # fmt: skip

CONTENDERS: dict[str, dict[str, Any]] = {
    "harness": {},
    "harness, trl engine": {"engine": "trl"},
    "harness, bfloat16": {"precision": "bfloat16"},
    "harness, gradient_checkpointing": {"gradient_checkpointing": True},
    "harness, packing": {"packing": True},
    "harness, lora": {"lora": True},
    "harness, ewc": {"mitigation": "ewc"},
    "harness, l2sp": {"mitigation": "l2sp"},
    "harness, kl on task": {"mitigation": "kl-task"},
    "harness, kl on 2 general rows": {"mitigation": "kl-general"},
    "plain loop": {"trainer": "plain"},
    "TRL": {"trainer": "trl", "gradient_checkpointing": True},
    "TRL, no checkpointing": {"trainer": "trl"},
    "TRL, packing": {"trainer": "trl", "gradient_checkpointing": True, "packing": True},
    "TRL, packing, no checkpointing": {"trainer": "trl", "packing": True},
    "TRL, lora": {"trainer": "trl", "gradient_checkpointing": True, "lora": True},
    "TRL, lora, no checkpointing": {"trainer": "trl", "lora": True},
}
BASELINES = {"harness": ("TRL", "TRL, no checkpointing"), "harness, lora": ("TRL, lora", "TRL, lora, no checkpointing")}
"""Contender -> the contenders that it is compared with; the others are compared with `harness`."""


def build_rows(vocabulary: int, count: int) -> tuple[Any, ...]:
    """Return random rows with the lengths of instruction data: a median of 85 tokens, a tenth above 200."""
    from harness.types import TokenizedExample

    generator, rows = random.Random(SEED), []
    for index in range(count):
        length = min(max(int(generator.lognormvariate(4.45, 0.65)), 12), 1024)
        ids = tuple(generator.randrange(10, vocabulary) for _ in range(length))
        prompt = max(int(length * generator.uniform(0.15, 0.6)), 1)
        rows.append(TokenizedExample(f"{index:016x}", "made", ids, (-100,) * prompt + ids[prompt:]))
    return tuple(rows)


def add_adapter(model: Any) -> Any:
    """Add a LoRA adapter of rank 16 to all linear layers."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))


def build_mitigation(name: str) -> Any:
    """Return a mitigation with the options that are measured."""
    from harness_mitigations.ewc import Ewc
    from harness_mitigations.kl import build_kl_mitigation
    from harness_mitigations.l2sp import L2Sp

    if name == "ewc":
        return Ewc("made", 1.0, "gradient", "sampled", 32, 8, True, None, 1.0, "float32", "device", cache=False)
    if name == "l2sp":
        return L2Sp(1.0, "gradient", "base", "device")
    on, rows = ("task", 1) if name == "kl-task" else ("general", 2)
    return build_kl_mitigation(on, "made", rows, 1.0, "forward", 1.0, False, "data", "data", {})


class StepTimer:
    """Measures the time of the training steps: from the start of training to the end of the last step.

    Both trainers log every step, and do so before `finish_step`.
    """

    def __init__(self) -> None:
        self._started = self._finished = 0.0

    def start(self) -> None:
        """Training starts: its setup is done."""
        self._started = clock()

    def finish_step(self) -> None:
        """A step has ended."""
        self._finished = clock()

    @property
    def seconds(self) -> float:
        """The time of all steps."""
        return self._finished - self._started

    @contextmanager
    def started_by(self, owner: type, method: str) -> Iterator[None]:
        """Within the context, the timer starts when the method of a class is called."""
        original = getattr(owner, method)

        def timed(*arguments: Any, **options: Any) -> Any:
            self.start()
            return original(*arguments, **options)

        setattr(owner, method, timed)
        try:
            yield
        finally:
            setattr(owner, method, original)


def train_with_harness(
    model: Any, tokenizer: Any, rows: tuple[Any, ...], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Train with `train_stage`; return the seconds, and of a mitigation its start and its share of a step."""
    from harness.data.mixing.packing import PackedSequences, pack_rows
    from harness.seeding import seed_mitigations
    from harness.training.step_log import StepLog
    from harness.training.train_stage import train_stage
    from harness.types import Stage, StageDataset

    stage = Stage("made", (), {**SETTINGS, "engine": "transformers", **settings})
    mitigations, result, inside = {}, {}, []
    if "mitigation" in settings:
        mitigation = build_mitigation(settings["mitigation"])
        started = clock()
        mitigation.on_stage_start(stage, model, {"made": rows[:32]}, seed=seed_mitigations(SEED))
        result["start_seconds"] = clock() - started
        add_penalty = mitigation.add_weight_penalty

        def timed_penalty(model: Any) -> Any:
            started = clock()
            value = add_penalty(model)
            inside.append(clock() - started)
            return value

        mitigation.add_weight_penalty = timed_penalty
        mitigations[settings["mitigation"].partition("-")[0]] = mitigation
    order = PackedSequences.from_sequences((index,) for index in range(len(rows)))
    if stage.train["packing"]:
        order = pack_rows([len(row.input_ids) for row in rows], stage.train["max_length"])
    timer = StepTimer()
    with tempfile.TemporaryDirectory() as folder, timer.started_by(StepLog, "start"):
        data = StageDataset(stage, rows, order, (len(order),), {}, 1.0)
        train_stage(
            model, tokenizer, data, mitigations, seed=SEED, folder=Path(folder), on_step=lambda *_: timer.finish_step()
        )
    seconds = timer.seconds
    share = sum(inside) / (seconds - sum(inside))
    return {**result, "seconds": seconds, **({"penalty_share": share} if inside else {})}


def train_with_trl(model: Any, tokenizer: Any, rows: tuple[Any, ...], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Train with TRL's `SFTTrainer`."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    table = Dataset.from_list([{"input_ids": list(row.input_ids), "labels": list(row.labels)} for row in rows])
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            folder, per_device_train_batch_size=BATCH, num_train_epochs=1, learning_rate=SETTINGS["learning_rate"],
            report_to=[], bf16=False, disable_tqdm=True, save_strategy="no", logging_steps=1, max_length=2048,
            gradient_checkpointing=settings.get("gradient_checkpointing", False),
            packing=settings.get("packing", False), use_cpu=not torch.cuda.is_available(),
        )  # fmt: skip
        timer = StepTimer()

        class Observer(TrainerCallback):
            def on_train_begin(self, *_: Any, **__: Any) -> None:
                timer.start()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                timer.finish_step()

        trainer = SFTTrainer(model, config, train_dataset=table, processing_class=tokenizer, callbacks=[Observer()])
        trainer.train()
    return {"seconds": timer.seconds}


def train_in_plain_loop(model: Any, tokenizer: Any, rows: tuple[Any, ...], _: Mapping[str, Any]) -> dict[str, Any]:
    """Train with a plain PyTorch loop on padded batches; the head is applied to trained positions only."""
    import torch

    from harness.training.collator import Collator

    optimizer = torch.optim.AdamW(model.parameters(), lr=SETTINGS["learning_rate"], fused=True)
    collator = Collator(rows, [(index,) for index in range(len(rows))], tokenizer.pad_token_id or 0)
    started = clock()
    for begin in range(0, len(rows), BATCH):
        batch = collator(range(begin, min(begin + BATCH, len(rows))))
        labels = batch.pop("labels")[:, 1:]
        hidden = model.model(**batch, use_cache=False).last_hidden_state[:, :-1]
        is_trained = labels != -100
        torch.nn.functional.cross_entropy(model.lm_head(hidden[is_trained]), labels[is_trained]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return {"seconds": clock() - started}


def measure_matmul_rate() -> float:
    """Return the operations a second of a float32 matrix product."""
    import torch

    left = torch.randn(2048, 2048)
    times = []
    for _ in range(8):
        started = clock()
        left @ left
        times.append(clock() - started)
    return 2 * 2048**3 / statistics.median(times)


def operations_of_token(model: Any) -> int:
    """Return the operations that a token needs in the matrix products of a step; see the head of this file."""
    lookup = model.get_input_embeddings().weight
    is_head = model.get_output_embeddings().weight is lookup
    weights = [weight for weight in model.parameters() if weight.ndim == 2 and (is_head or weight is not lookup)]
    return sum(weight.numel() * (6 if weight.requires_grad else 4) for weight in weights)


def run_contender(name: str, folder: str, row_count: int) -> dict[str, Any]:
    """Train one contender in this process, and return its measurements."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    settings = dict(CONTENDERS[name])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = build_rows(len(tokenizer) - 10, row_count)
    if settings.pop("lora", False):
        model = add_adapter(model)
    trainers: dict[str, Callable[..., dict[str, Any]]] = {"trl": train_with_trl, "plain": train_in_plain_loop}
    train = trainers.get(settings.pop("trainer", ""), train_with_harness)
    operations = operations_of_token(model)
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = train(model, tokenizer, rows, settings)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rate = sum(len(row.input_ids) for row in rows) / result["seconds"]
    return {
        **result,
        "tokens_per_second": rate,
        "matmul_share": operations * rate / measure_matmul_rate(),
        "peak_gb": peak / 2**20,
        "loaded_gb": loaded / 2**20,
    }


def measure(folder: str, names: list[str], rounds: int, rows: int) -> dict[str, list[dict[str, Any]]]:
    """Run every contender in a process of its own, in interleaved rounds."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for index in range(rounds):
        for name in names:
            command = [sys.executable, __file__, folder, "--contender", name, "--rows", str(rows)]
            process = subprocess.run(command, capture_output=True, text=True, check=False)
            if process.returncode:
                sys.exit(f"{name} failed:\n{process.stderr[-2000:]}")
            results[name].append(json.loads(process.stdout.splitlines()[-1]))
            print(f"round {index + 1}: {name}: {results[name][-1]['tokens_per_second']:.0f} tokens/s", file=sys.stderr)
    return results


def summarize(results: Mapping[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return the median of each measurement, and the ratio of speeds to the baselines: median, smallest, largest."""
    summary: dict[str, dict[str, Any]] = {}
    for name, rounds in results.items():
        keys = dict.fromkeys(key for measured in rounds for key in measured)
        summary[name] = {key: statistics.median(measured[key] for measured in rounds) for key in keys}
        for baseline in BASELINES.get(name, ("harness",)):
            if baseline in results and baseline != name:
                ratios = [
                    left["tokens_per_second"] / right["tokens_per_second"]
                    for left, right in zip(rounds, results[baseline], strict=True)
                ]
                summary[name].setdefault("speed_relative_to", {})[baseline] = {
                    "median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)
                }  # fmt: skip
    return summary


def print_table(summary: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a Markdown table."""
    print("| | tokens/s | model FLOPs utilization | peak GB | speed relative to | penalty |\n|---|---|---|---|---|---|")
    for name, measured in summary.items():
        ratios = ", ".join(
            f"{baseline} {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
            for baseline, ratio in measured.get("speed_relative_to", {}).items()
        )
        penalty = f"{measured['penalty_share']:.1%}" if "penalty_share" in measured else ""
        print(
            f"| {name} | {measured['tokens_per_second']:.0f} | {measured['matmul_share']:.2f} "
            f"| {measured['peak_gb']:.2f} | {ratios} | {penalty} |"
        )


def main() -> None:
    """Measure all contenders and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a causal language model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=48, help="rows that each contender trains")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, help="contenders; default: all but bfloat16")
    parser.add_argument("--json", type=Path, help="write all measurements and their summary to this file")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="wall time, or CPU time of all threads")
    parser.add_argument("--contender", choices=CONTENDERS, help="train one contender in this process")
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(run_contender(arguments.contender, arguments.model, arguments.rows)))
        return
    os.environ["BENCHMARK_CLOCK"] = arguments.clock  # the contenders are processes of their own
    names = arguments.only or [name for name in CONTENDERS if CONTENDERS[name].get("precision") is None]
    results = measure(arguments.model, names, arguments.rounds, arguments.rows)
    summary = summarize(results)
    print_table(summary)
    if arguments.json:
        import torch
        import transformers
        import trl

        about = {
            "date": time.strftime("%Y-%m-%d"), "machine": platform.platform(), "threads": torch.get_num_threads(),
            "torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__,
            "rows": arguments.rows, "batch": BATCH, "clock": arguments.clock,
        }  # fmt: skip
        arguments.json.write_text(json.dumps({"about": about, "summary": summary, "rounds": results}, indent=2))


if __name__ == "__main__":
    main()
