"""Time multiple choice and greedy answers: harness and lm-evaluation-harness on the same model, prompts and machine.

    python benchmarks/evaluate.py [MODEL_FOLDER] [--rounds 3] [--json FILE]

lm-evaluation-harness runs with each of `--batch-sizes`: 1 is its default. `batch_size=auto` is not one of them. It runs
the model five times on up to 64 rows of the longest request, and for answers of its whole context. On a CPU that
takes longer than the evaluation. Contenders run in turn in one process, so noise affects all of them alike: read the
ratios. On a busy machine use `--clock cpu` with `OMP_NUM_THREADS=1`. It needs `pip install lm_eval`.

A question is preceded by two to four solved ones, and has four choices. An answer ends at an empty line or after 64
tokens. The scores of both sides are compared: likelihoods and answers must be the same.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import lm_eval
import torch
import transformers
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness import registry
from harness.evaluation.context import ModelToEvaluate
from harness.evaluation.evaluate import evaluate_suites
from harness.evaluation.padding_probe import probe_batch_support
from harness.interfaces.component import CORE_DISTRIBUTION
from harness.model.locate import resolve_model
from harness.spec.schema import fill_defaults
from harness.types import Example, Item, Message, Suite

ROOT = Path(__file__).resolve().parents[1]
MAX_NEW_TOKENS, STOP, CHOICES = 64, "\n\n", 4
TASKS = {
    "choices": {
        "output_type": "multiple_choice", "doc_to_text": "{{prompt}}", "doc_to_choice": "{{choices}}",
        "doc_to_target": 0, "target_delimiter": " ",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
    "answers": {
        "output_type": "generate_until", "doc_to_text": "{{prompt}}", "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": [STOP], "do_sample": False, "max_gen_toks": MAX_NEW_TOKENS},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
}  # fmt: skip
"""Tasks of lm-evaluation-harness."""


def build_rows(count: int) -> list[dict[str, Any]]:
    """Return prompts of 60 to 200 tokens, each with four choices of which the first one is right."""
    lines = (ROOT / "specs" / "data" / "general_train.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [(row["instruction"], row["output"]) for row in map(json.loads, lines)]
    rows = []
    for index in range(count):
        solved = [pairs[(7 * index + 53 * shot + 1) % len(pairs)] for shot in range(2 + index % 3)]
        shots = "".join(f"Question: {question}\nAnswer: {answer}{STOP}" for question, answer in solved)
        choices = [pairs[(index + 37 * choice) % len(pairs)][1] for choice in range(CHOICES)]
        rows.append({"prompt": f"{shots}Question: {pairs[index % len(pairs)][0]}\nAnswer:", "choices": choices})
    return rows


def default_model() -> str:
    """Return the folder of the model of `specs/mixed_sft.json`, which is downloaded and converted once."""
    settings = json.loads((ROOT / "specs" / "mixed_sft.json").read_text(encoding="utf-8"))["model"]
    return resolve_model({"revision": None, "trust_remote_code": False, **settings}).path


def harness_contender(
    model: Any, tokenizer: Any, rows: dict[str, list[dict[str, Any]]]
) -> Callable[[str], tuple[Item, ...]]:
    """Return a function that evaluates a task with harness."""
    own = [pair for pair in registry.installed_entry_points() if pair[0] == CORE_DISTRIBUTION]
    plugins = registry.discover_plugins(own)

    def create(group: str, name: str) -> Any:
        schema = {"type": "object", "properties": dict(plugins.get(group, name).options)}
        return plugins.create(group, name, fill_defaults({}, schema, schema))

    metrics = {"choices": create("metrics", "multiple_choice"), "answers": create("metrics", "exact_match")}
    template, support = create("templates", "chatml"), probe_batch_support(model, tokenizer)
    examples = {
        task: [
            Example(
                f"{index:016x}",
                (Message("user", row["prompt"]), Message("assistant", row["choices"][0])),
                f"rows:{index}",
                choices=tuple(row["choices"]) if task == "choices" else (),
            )
            for index, row in enumerate(task_rows)
        ]
        for task, task_rows in rows.items()
    }

    def run(task: str) -> tuple[Item, ...]:
        suite = Suite(task, "rows", "domain", {}, None, MAX_NEW_TOKENS, 32, plain=True, stop=(STOP,))
        subject = ModelToEvaluate(model, tokenizer, template, stage=0, seed=0, max_length=2048, batch_support=support)
        (evaluation,) = evaluate_suites(subject, [suite], examples, {task: {"score": metrics[task]}})
        return evaluation.items

    return run


def lm_eval_contender(
    model: Any, tokenizer: Any, rows: dict[str, list[dict[str, Any]]], batch_size: int, folder: Path
) -> Callable[[str], list[Any]]:
    """Return a function that evaluates a task with lm-evaluation-harness: for each row, its responses."""
    for task, settings in TASKS.items():
        data = folder / f"{task}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows[task]), encoding="utf-8")
        dataset = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        (folder / f"{task}.yaml").write_text(yaml.safe_dump({"task": task, **dataset, **settings}), encoding="utf-8")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    contender = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=2048, device="cpu")

    def run(task: str) -> list[Any]:
        results = lm_eval.simple_evaluate(
            model=contender, tasks=[task], task_manager=manager, bootstrap_iters=0, log_samples=True
        )
        return [sample["resps"] for sample in sorted(results["samples"][task], key=lambda sample: sample["doc_id"])]

    return run


def compare_results(task: str, items: tuple[Item, ...], responses: list[Any]) -> dict[str, Any]:
    """Return how the results of both sides differ: the largest relative error, or the number of equal answers."""
    if task == "answers":
        return {"equal_answers": sum(item.answer == row[0][0] for item, row in zip(items, responses, strict=True))}
    pairs = [
        (own, float(other[0][0]))
        for item, row in zip(items, responses, strict=True)
        for own, other in zip(item.choice_lls or (), row, strict=True)
    ]
    return {"largest_relative_error": max(abs(own - other) / abs(other) for own, other in pairs)}


def main() -> None:
    """Time all contenders on both tasks, print a table, and write the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="folder of a causal language model; default: that of the demo spec")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--questions", type=int, default=24, help="rows with four choices")
    parser.add_argument("--answers", type=int, default=48, help="prompts that are answered")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16], help="of lm-evaluation-harness")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="wall time, or CPU time of all threads"
    )
    arguments = parser.parse_args()
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    folder = arguments.model or default_model()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = {"choices": build_rows(arguments.questions), "answers": build_rows(arguments.answers)}
    report: dict[str, Any] = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}",
        "versions": {
            "torch": torch.__version__, "transformers": transformers.__version__, "lm_eval": lm_eval.__version__
        },
        "clock": arguments.clock,
        "tasks": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        own = harness_contender(model, tokenizer, rows)
        others = {
            f"lm_eval, batch size {size}": lm_eval_contender(model, tokenizer, rows, size, Path(scratch))
            for size in arguments.batch_sizes
        }
        for task in arguments.tasks:
            seconds: dict[str, list[float]] = {}
            for _ in range(arguments.rounds):
                results: dict[str, Any] = {}
                for name, run in {"harness": own, **others}.items():
                    started = clock()
                    results[name] = run(task)
                    seconds.setdefault(name, []).append(clock() - started)
            comparison = compare_results(task, results["harness"], results[next(iter(others))])
            report["tasks"][task] = {"rows": len(rows[task]), **_summarize(seconds), **comparison}
            _print_task(task, report["tasks"][task])
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _summarize(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Return for each contender the median time, and the median and range of its ratio to harness, round by round."""
    contenders = {}
    for name, times in seconds.items():
        ratios = sorted(time / own for time, own in zip(times, seconds["harness"], strict=True))
        contenders[name] = {
            "seconds": statistics.median(times),
            "ratio": statistics.median(ratios),
            "ratio_range": [ratios[0], ratios[-1]],
        }
    return {"contenders": contenders}


def _print_task(task: str, result: dict[str, Any]) -> None:
    agreement = ", ".join(f"{name} {value:.3g}" for name, value in result.items() if name not in ("rows", "contenders"))
    print(f"{task}: {result['rows']} rows; {agreement}")
    for name, figures in result["contenders"].items():
        low, high = figures["ratio_range"]
        print(f"  {name:24} {figures['seconds']:7.1f} s   {figures['ratio']:5.2f} × harness ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
