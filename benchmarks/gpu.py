"""Measure and verify training on one CUDA card, in at most eight minutes, without a model hub.

    python benchmarks/gpu.py [--out FOLDER] [--seconds 480] [--dry-run]

Runs the tests marked `gpu`, then trains a random model of about 1.1 billion weights, each case in a process of its
own: bfloat16, packing with FlashAttention's kernel, LoRA, QLoRA, optimizers with 8 bits, a resumed run, and stock TRL
on the same rows. Writes `gpu.json` and `gpu.md` with tokens a second, MFU (model FLOPs utilization: 6 · weights ·
tokens, of the device's data sheet), and peak memory against `harness plan`.

A case whose package is missing, or for which no time is left, is skipped and named with the reason. Nothing is
installed or downloaded. `--dry-run` runs the same code with a tiny model, on a CPU too, and measures nothing of
interest.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import random
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("harness-sft", "torch", "transformers", "trl", "peft", "bitsandbytes", "flash-attn", "liger-kernel")
NF4 = {"bitsandbytes": {"bits": 4, "type": "nf4", "double": True}}
TRAIN = {"batch_size": 8, "max_length": 1024, "precision": "auto", "learning_rate": 1e-5, "log_steps": 1}


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        name: Shown in the table.
        changes: Keys of the spec that differ from the base spec, by path.
        requires: Packages without which it is skipped.
        needs_gpu: Whether it is skipped on a CPU.
        trainer: `harness` or `trl`.
        resumes: Whether the run is interrupted and resumed.
    """

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    requires: tuple[str, ...] = ()
    needs_gpu: bool = False
    trainer: str = "harness"
    resumes: bool = False


LORA = {"mitigations": {"lora": {"rank": 16}}, "train.learning_rate": 1e-4}
CASES = (
    Case("full, bfloat16"),
    Case("TRL: full, bfloat16", trainer="trl"),
    Case("LoRA", LORA),
    Case("TRL: LoRA", LORA, trainer="trl"),
    Case("full, gradient checkpointing", {"train.gradient_checkpointing": True}),
    Case("full, packing", {"train.packing": True}),
    Case(
        "full, packing, FlashAttention",
        {"train.packing": True, "model.attention": "flash_attention_2"},
        requires=("flash_attn",),
        needs_gpu=True,
    ),
    Case("QLoRA, NF4", {**LORA, "model.quantization": NF4}, requires=("bitsandbytes",)),
    Case("full, adamw_8bit", {"train.optimizer": {"adamw_8bit": {}}}, requires=("bitsandbytes",)),
    Case(
        "full, paged_adamw_8bit",
        {"train.optimizer": {"paged_adamw_8bit": {}}},
        requires=("bitsandbytes",),
        needs_gpu=True,
    ),
    Case("LoRA, EWC", {**LORA, "mitigations": {"lora": {"rank": 16}, "ewc": {"source": "rows", "samples": 16}}}),
    Case("LoRA, interrupted and resumed", {**LORA, "train.save_steps": 2}, resumes=True),
)

SIZES = {
    "1.1B": {
        "model": {
            "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
            "num_key_value_heads": 8, "vocab_size": 32_000, "max_position_embeddings": 2048,
        },
        "steps": 20,
        "row_tokens": (100, 900),
    },
    "tiny": {
        "model": {
            "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 2048,
        },
        "steps": 4,
        "row_tokens": (40, 90),
    },
}  # fmt: skip


# -- inputs -----------------------------------------------------------------------------------------------------------


def write_inputs(folder: Path, size: str) -> None:
    """Write the random model, its tokenizer of bytes, and rows of random words."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from harness.testing.tiny_model import build_tokenizer

    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder / "model")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        torch.manual_seed(0)
        config = LlamaConfig(**SIZES[size]["model"], pad_token_id=tokenizer.pad_token_id, dtype="bfloat16")
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "model")
    generator, shortest_longest = random.Random(0), SIZES[size]["row_tokens"]
    with (folder / "rows.jsonl").open("w") as file:
        for _ in range(8 * SIZES[size]["steps"]):
            letters = generator.randint(*shortest_longest) - 30  # the markup of the turns takes about 30 tokens
            text = "".join(generator.choice("abcdefghij klmnop") for _ in range(letters))
            cut = letters // 3
            turns = [{"role": "user", "content": text[:cut]}, {"role": "assistant", "content": text[cut:]}]
            file.write(json.dumps({"messages": turns}) + "\n")


def write_distribution(folder: Path) -> None:
    """Write the metadata of harness into a folder for PYTHONPATH, with which a checkout works without installation."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    metadata = folder / f"harness_sft-{project['version']}.dist-info"
    metadata.mkdir(parents=True)
    header = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (metadata / "METADATA").write_text(header)
    entry_points = "".join(f"{name} = {module}\n" for name, module in project["entry-points"]["harness"].items())
    (metadata / "entry_points.txt").write_text(f"[harness]\n{entry_points}")


def child_environment(folder: Path) -> dict[str, str]:
    """Return the environment of the cases: this checkout is imported, also where it is not installed."""
    paths = [str(ROOT), str(ROOT / "plugins")]
    try:
        importlib.metadata.distribution("harness-sft")
    except importlib.metadata.PackageNotFoundError:
        write_distribution(folder / "site")
        paths.append(str(folder / "site"))
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    offline = {"HF_HUB_OFFLINE": "1", "HARNESS_NO_THIRD_PARTY": "1"}
    return {**os.environ, **offline, "PYTHONPATH": os.pathsep.join(paths)}


def build_spec(case: Case, folder: Path, size: str) -> dict[str, Any]:
    """Return the spec of a case."""
    spec: dict[str, Any] = {
        "name": "gpu",
        "model": {"path": str(folder / "model")},
        "template": "chatml",
        "sources": {"rows": {"jsonl": {"path": str(folder / "rows.jsonl")}}},
        "mode": {"domain": {"sources": ["rows"]}},
        "train": {**TRAIN, "steps": SIZES[size]["steps"]},
        "checks": {"near_duplicates": None, "contamination": None},
        "track": {"enabled": False},
        "output": str(folder / "runs" / case.name.replace(" ", "-").replace(",", "").replace(":", "")),
    }
    for path, value in case.changes.items():
        *parents, key = path.split(".")
        section = spec
        for parent in parents:
            section = section.setdefault(parent, {})
        section[key] = value
    return spec


# -- one case, in a process of its own --------------------------------------------------------------------------------


def run_case(case: Case, folder: Path, size: str) -> dict[str, Any]:
    """Train a case in this process, and return its measurements."""
    return train_with_trl(case, folder, size) if case.trainer == "trl" else train_with_harness(case, folder, size)


def train_with_harness(case: Case, folder: Path, size: str) -> dict[str, Any]:
    """Plan and train a case with harness; an interrupted one also without interruption, to compare the weights."""
    from harness import events, hookimpl
    from harness.registry import discover_plugins
    from harness.runner import api, plan_summary
    from harness.spec import schema, spec

    spec_file = folder / f"spec-{os.getpid()}.json"
    spec_file.write_text(json.dumps(build_spec(case, folder, size)))

    class Listener:
        def __init__(self, stop_at: int | None = None) -> None:
            self.stop_at, self.seconds, self.trained, self.folder = stop_at, [], None, Path()

        @hookimpl
        def harness_on_event(self, event: events.Event) -> None:
            if isinstance(event, events.RunStarted):
                self.folder = Path(event.folder)
            elif isinstance(event, events.StepLogged):
                self.seconds.append(time.perf_counter())
                if event.step == self.stop_at:
                    raise KeyboardInterrupt
            elif isinstance(event, events.StageFinished):
                self.trained = event.trained

    def run(stop_at: int | None = None, resume: Path | None = None) -> Listener:
        registry, listener = discover_plugins(), Listener(stop_at)
        registry.manager.register(listener)
        loaded = spec.load_spec(spec_file, schema.compose_schema(registry))
        try:
            api.run(loaded, registry) if resume is None else api.resume_run(loaded, registry, resume)
        except KeyboardInterrupt:
            if stop_at is None:
                raise
        return listener

    registry = discover_plugins()
    summary = plan_summary.summarize_plan(spec.load_spec(spec_file, schema.compose_schema(registry)), registry)
    listener = run()
    trained, steps = listener.trained, len(listener.seconds)
    skipped = min(3, steps - 2)  # the first steps load kernels
    seconds = listener.seconds[-1] - listener.seconds[skipped]
    tokens = trained.tokens * (steps - 1 - skipped) / steps
    result = {
        "tokens_per_second": tokens / seconds,
        "weights": summary["memory"]["weights"],
        "trained": summary["memory"]["trained"],
        "peak": trained.memory["peak"],
        "planned": summary["memory"]["kinds"]["peak"],
        "loss": trained.loss,
    }
    if case.resumes:
        stopped = run(stop_at=SIZES[size]["steps"] // 2 + 1)
        run(resume=stopped.folder)
        result["largest_difference"] = largest_difference(listener.folder / "model", stopped.folder / "model")
    return result


def largest_difference(one: Path, other: Path) -> float:
    """Return the largest difference of a weight between two folders of a model."""
    from safetensors.torch import load_file

    (file,) = one.glob("*.safetensors")
    weights, others = load_file(file), load_file(other / file.name)
    return max(float((weight - others[name]).abs().max()) for name, weight in weights.items())


def train_with_trl(case: Case, folder: Path, size: str) -> dict[str, Any]:
    """Train the same rows with TRL's SFTTrainer, without checkpointing."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    has_cuda = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    rows = []
    for line in (folder / "rows.jsonl").read_text().splitlines():
        ids = tokenizer.apply_chat_template(json.loads(line)["messages"], return_dict=True)["input_ids"]
        rows.append({"input_ids": ids, "labels": [-100] * (len(ids) // 3) + ids[len(ids) // 3 :]})
    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if has_cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter())

    config = SFTConfig(
        str(folder / "trl"), per_device_train_batch_size=TRAIN["batch_size"], max_steps=SIZES[size]["steps"],
        learning_rate=1e-5, report_to=[], bf16=has_cuda, use_cpu=not has_cuda, disable_tqdm=True, save_strategy="no",
        logging_steps=1, max_length=TRAIN["max_length"], gradient_checkpointing=False,
    )  # fmt: skip
    adapter = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        model,
        config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=adapter if "mitigations" in case.changes else None,
        callbacks=[Clock()],
    )
    trainer.train()
    steps = len(seconds)
    skipped = min(3, steps - 2)
    tokens = sum(len(row["input_ids"]) for row in rows) / len(rows) * TRAIN["batch_size"] * (steps - 1 - skipped)
    weights = sum(weight.numel() for weight in trainer.model.parameters())
    return {
        "tokens_per_second": tokens / (seconds[-1] - seconds[skipped]),
        "weights": weights,
        "trained": sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad),
        "peak": torch.cuda.max_memory_allocated() if has_cuda else None,
        "loss": trainer.state.log_history[-1].get("train_loss"),
    }


# -- all cases --------------------------------------------------------------------------------------------------------


def missing_reason(case: Case, has_gpu: bool) -> str | None:
    """Return why a case cannot run here; None if it can."""
    for package in case.requires:
        if importlib.util.find_spec(package) is None:
            return f"the package {package} is not installed"
    return "it needs a GPU" if case.needs_gpu and not has_gpu else None


def run_in_process(case: Case, folder: Path, size: str, seconds: float, environment: dict[str, str]) -> dict[str, Any]:
    """Run a case in a process of its own; return its measurements, or `failed` or `skipped` with the reason."""
    if seconds < 5:
        return {"skipped": "no time was left"}
    command = [sys.executable, __file__, "--case", case.name, "--folder", str(folder), "--size", size]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment)
    except subprocess.TimeoutExpired:
        return {"skipped": f"it took more than the {seconds:.0f} s that were left"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_gpu_tests(seconds: float, environment: dict[str, str]) -> dict[str, Any]:
    """Run the tests that are marked `gpu`; return pytest's last line."""
    if importlib.util.find_spec("pytest") is None or not (ROOT / "tests").is_dir():
        return {"skipped": "pytest or the folder tests is missing"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", str(ROOT / "tests")]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, cwd=ROOT, env=environment)
    except subprocess.TimeoutExpired:
        return {"skipped": f"they took more than {seconds:.0f} s"}
    last = (done.stdout.strip().splitlines() or ["no output"])[-1]
    return {"passed": done.returncode == 0, "summary": last}


def device_facts() -> dict[str, Any]:
    """Return name, memory and speed of the card, and the versions of the libraries."""
    import torch

    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    facts = {"date": datetime.date.today().isoformat(), "python": platform.python_version(), "versions": versions}
    if not torch.cuda.is_available():
        return {**facts, "device": "cpu", "teraflops": None}
    properties = torch.cuda.get_device_properties(0)
    return {
        **facts,
        "device": properties.name,
        "gigabytes": properties.total_memory / 2**30,
        "teraflops": teraflops_of(properties.name),
    }


def teraflops_of(name: str) -> float | None:
    """Return the speed of a card in the table of `harness plan`, by the first word that both names have."""
    from harness.runner.device_table import DEVICES

    words = name.lower().replace("-", " ").split()
    known = (device.teraflops for key, device in DEVICES.items() if set(key.split("-")) & {*words} - {"rtx"})
    return next(known, None)


def format_table(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    device, tests = results["device"], results["tests"]
    lines = [
        f"{device['date']}, {device['device']}, Python {device['python']}, "
        + ", ".join(f"{name} {version or 'missing'}" for name, version in device["versions"].items()),
        "",
        f"Command: `python benchmarks/gpu.py{' --dry-run' if results['size'] == 'tiny' else ''}`, "
        f"{results['seconds']:.0f} s. Model: {results['size']}, random weights. "
        f"Tests marked `gpu`: {tests.get('summary') or 'skipped: ' + tests['skipped']}.",
        "",
        "| case | tokens/s | MFU | peak GiB | planned GiB | planned / peak | note |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for name, result in results["cases"].items():
        reason = next((f"{key}: {result[key]}" for key in ("skipped", "failed") if key in result), None)
        if reason:
            lines.append(f"| {name} | – | – | – | – | – | {reason} |")
            continue
        rate, peak, planned = result["tokens_per_second"], result["peak"], result.get("planned")
        peak_flops = device["teraflops"] and device["teraflops"] * 1e12
        is_full = result["trained"] > 0.5 * result["weights"]
        mfu = f"{6 * result['weights'] * rate / peak_flops:.0%}" if peak_flops and is_full else "–"
        sizes = [f"{size / 2**30:.2f}" if size else "–" for size in (peak, planned)]
        ratio = f"{planned / peak:.2f}" if peak and planned else "–"
        difference = result.get("largest_difference")
        note = f"loss {result['loss']:.3f}" if result.get("loss") is not None else ""
        note += "" if difference is None else f"; largest difference of a weight after resuming {difference:.1e}"
        lines.append(f"| {name} | {rate:,.0f} | {mfu} | {sizes[0]} | {sizes[1]} | {ratio} | {note} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run everything, and write the results after each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder of gpu.json and gpu.md")
    parser.add_argument("--seconds", type=float, default=460, help="the time within which all cases run")
    parser.add_argument("--dry-run", action="store_true", help="a tiny model, on a CPU too")
    parser.add_argument("--only", nargs="*", help="names of cases")
    for hidden in ("--case", "--size"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        case = next(case for case in CASES if case.name == arguments.case)
        print(json.dumps(run_case(case, arguments.folder, arguments.size)))
        return 0

    import tempfile

    import torch

    started = time.monotonic()
    has_gpu = torch.cuda.is_available()
    if not has_gpu and not arguments.dry_run:
        print("no CUDA device is visible; --dry-run runs the same code with a tiny model on the CPU", file=sys.stderr)
        return 2
    size = "tiny" if arguments.dry_run else "1.1B"
    cases = [case for case in CASES if arguments.only is None or case.name in arguments.only]
    results: dict[str, Any] = {"size": size, "device": device_facts(), "tests": {"skipped": "dry run"}, "cases": {}}
    arguments.out.mkdir(parents=True, exist_ok=True)

    def left() -> float:
        return arguments.seconds - (time.monotonic() - started)

    def write() -> None:
        results["seconds"] = time.monotonic() - started
        (arguments.out / "gpu.json").write_text(json.dumps(results, indent=2) + "\n")
        (arguments.out / "gpu.md").write_text(format_table(results))

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        environment = child_environment(folder)
        write_inputs(folder, size)
        for case in cases:
            reason = missing_reason(case, has_gpu)
            result = {"skipped": reason} if reason else run_in_process(case, folder, size, left(), environment)
            results["cases"][case.name] = result
            print(f"{case.name}: {json.dumps(result)}", flush=True)
            write()
        if not arguments.dry_run:
            results["tests"] = run_gpu_tests(left(), environment)
        write()
    print((arguments.out / "gpu.md").read_text())
    failed = any("failed" in result for result in results["cases"].values())
    return 1 if failed or results["tests"].get("passed") is False else 0


if __name__ == "__main__":
    sys.exit(main())
