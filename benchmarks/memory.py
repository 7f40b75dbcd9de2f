"""Compare the memory that `harness plan` estimates for training with the memory that training takes on a CPU.

    python benchmarks/memory.py [--case full] [--json FILE]

Each case trains a random model of about 37 million weights, or the one that `--model` names, for three steps, in
processes of their own. The baseline is the resident memory of the process before the model is loaded: Python and the
libraries. All other numbers are in addition to it.

`measured` is the largest anonymous memory, plus the frozen weights that are mapped from the model's file. glibc returns
freed blocks to the system meanwhile (see `harness.utils.allocator`), as it does in a stage whose settings depend on the
memory. `resident` is the largest resident memory with glibc's default, which keeps them; it also counts pages of the
file that nothing uses any more. The ratio is estimate divided by `measured`.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

CASES = {
    "full": {},
    "lora": {"mitigations": {"lora": {"rank": 16}}},
    "qlora": {"mitigations": {"lora": {"rank": 16}}, "quantization": {"bitsandbytes": {}}},
    "ewc": {"mitigations": {"ewc": {"source": "rows", "samples": 4, "cache": False}}},
    "kl": {"mitigations": {"kl": {"source": "rows", "rows": 2}}},
}
"""Name -> the mitigations and the quantization of its spec."""

LIBRARIES = (
    *("transformers.models.llama.modeling_llama", "peft.tuners.lora.bnb", "bitsandbytes.optim"),
    *("harness.training.train_stage", "harness.training.trl_trainer", "harness_mitigations.fisher"),
)

ROWS, TOKENS, VOCABULARY = 24, 300, 8192

SAMPLING_SECONDS = 0.004
"""Time between two looks at the anonymous memory."""


def write_model(folder: Path) -> None:
    """Write a random model of the Llama architecture with a tokenizer of bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from harness.testing.tiny_model import build_tokenizer

    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=10,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def write_spec(folder: Path, case: str, model: str) -> Path:
    """Write the rows and the spec of a case."""
    words = "word " * (TOKENS // 10)
    row = json.dumps({"messages": [{"role": "user", "content": words}, {"role": "assistant", "content": words}]})
    (folder / "rows.jsonl").write_text(f"{row}\n" * ROWS)
    options = CASES[case]
    spec = {
        "name": case,
        "model": {"path": model, "quantization": options.get("quantization")},
        "template": "chatml",
        "sources": {"rows": {"jsonl": {"path": "rows.jsonl"}}},
        "mode": {"domain": {"sources": ["rows"]}},
        "mitigations": options.get("mitigations", {}),
        "train": {"steps": 3, "batch_size": 4, "max_length": 512, "precision": "float32"},
        "checks": {"near_duplicates": None, "contamination": None},
        "track": {"enabled": False},
        "output": str(folder / "runs"),
    }
    file = folder / f"{case}.json"
    file.write_text(json.dumps(spec))
    return file


def status_bytes(key: str) -> int:
    """Return a number of /proc/self/status: VmRSS, its maximum VmHWM, or RssAnon."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def mapped_weight_bytes() -> int:
    """Return the bytes of weights whose memory is the mapped file of the model, and not a copy."""
    import torch

    ranges, resident, in_file = [], 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, *rest = line.split()
        if "-" in key and not key.endswith(":"):
            in_file = line.endswith(".safetensors")
            if in_file:
                ranges.append([int(address, 16) for address in key.split("-")])
        elif in_file and key in ("Rss:", "Anonymous:"):
            resident += (1 if key == "Rss:" else -1) * int(rest[0]) * 1024
    storages = {
        weight.untyped_storage().data_ptr(): weight.untyped_storage().nbytes()
        for weight in gc.get_objects()
        if isinstance(weight, torch.nn.Parameter) and weight.device.type == "cpu"
    }
    used = sum(size for address, size in storages.items() if any(low <= address < high for low, high in ranges))
    return min(used, resident)


def measure(case: str, folder: Path, model: str, *, returns: bool) -> dict[str, float]:
    """Plan and train a case in this process; return estimate and measurement in bytes.

    Args:
        case: The case.
        folder: Where its files are written.
        model: The model.
        returns: Whether glibc returns freed blocks.
    """
    for module in LIBRARIES:  # what they take is not memory of the model
        if importlib.util.find_spec(module) is not None:
            importlib.import_module(module)
    from harness import events, hookimpl
    from harness.registry import discover_plugins
    from harness.runner import api, plan_summary
    from harness.spec import schema, spec
    from harness.utils import allocator

    if returns:
        allocator.return_freed_memory()
    before: dict[str, int] = {}
    peaks = {"anonymous": 0, "resident": 0, "mapped": 0}
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLING_SECONDS):
            peaks["anonymous"] = max(peaks["anonymous"], status_bytes("RssAnon"))

    class Listener:
        @hookimpl
        def harness_on_event(self, event: events.Event) -> None:
            if isinstance(event, events.ProgressUpdated) and event.phase == "load" and not before:
                before.update({key: status_bytes(key) for key in ("RssAnon", "VmRSS")})
            elif isinstance(event, events.StageStarted):
                Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
                threading.Thread(target=sample, daemon=True).start()
            elif isinstance(event, events.StageFinished):
                ended.set()
                peaks["resident"], peaks["mapped"] = status_bytes("VmHWM"), mapped_weight_bytes()

    registry = discover_plugins()
    registry.manager.register(Listener())
    loaded = spec.load_spec(write_spec(folder, case, model), schema.compose_schema(registry))
    kinds = plan_summary.summarize_plan(loaded, registry)["memory"]["kinds"]
    api.run(loaded, registry)
    return {
        "baseline": before["VmRSS"],
        "estimated": kinds["peak"],
        "measured": peaks["anonymous"] - before["RssAnon"] + peaks["mapped"],
        "resident": peaks["resident"] - before["VmRSS"],
        "kinds": kinds,
    }


def main() -> None:
    """Measure every case in processes of its own, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, action="append")
    parser.add_argument("--model", metavar="MODEL", help="a model of the spec's `model.path`; default: a random one")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--in", dest="folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--keep-freed", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        result = measure(arguments.case[0], arguments.folder, arguments.model, returns=not arguments.keep_freed)
        print(json.dumps(result))
        return
    results = {}
    columns = ("estimated", "measured", "resident", "baseline")
    print(f"| case | {' | '.join(f'{name} MiB' for name in columns)} | ratio |\n|---|{'---:|' * 5}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = arguments.model or str(folder / "model")
        if arguments.model is None:
            write_model(folder / "model")
        for case in arguments.case or CASES:
            command = [sys.executable, __file__, "--case", case, "--in", str(folder), "--model", model]
            outputs = [
                subprocess.run([*command, *options], check=True, stdout=subprocess.PIPE, text=True).stdout
                for options in ([], ["--keep-freed"])
            ]
            returned, kept = (json.loads(output.splitlines()[-1]) for output in outputs)
            results[case] = result = {**returned, "resident": kept["resident"]}
            result["ratio"] = result["estimated"] / result["measured"]
            sizes = " | ".join(f"{result[key] / 2**20:,.0f}" for key in columns)
            print(f"| {case} | {sizes} | {result['ratio']:.2f} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
