"""Runs of tiny models of many architectures, and what each is checked for.

Prints the tables of docs/models.md:

    PYTHONPATH=tests python -m support.model_matrix [architecture ...]
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from harness import registry
from harness.errors import HarnessError
from harness.runner import api
from harness.spec import schema, spec
from support.architectures import ARCHITECTURES, build_architecture

TOLERANCE = 1e-5
"""Largest difference of two negative log-likelihoods, in nats per token."""

ADAPTER: dict[str, Any] = {"lora": {"rank": 2}}

RUNS: dict[str, tuple[dict[str, Any], str]] = {
    "all weights": ({}, "continue"),
    "`lora`, continued": (ADAPTER, "continue"),
    "`lora`, merged": (ADAPTER, "merge"),
}
"""Column of the table -> mitigations, and what the second stage does with the adapter of the first."""

LORA_TARGETS = {
    "mamba": ["in_proj"],
    "falcon_mamba": ["in_proj"],
    "mamba2": ["in_proj"],
    "falcon_h1": ["in_proj", "q_proj", "k_proj", "v_proj", "o_proj"],
}
"""`lora.target` of the models of which PEFT refuses `all-linear`."""

WORDS = ("amber", "basil leaf", "clay", "a dune", "ember", "the green fern", "grove", "hazel", "iris")
MAX_NEW_TOKENS = 4


class ModelWorkspace:
    """A folder with rows, models and runs.

    Attributes:
        folder: The folder.
        tokenizer: The tokenizer of all models.
    """

    def __init__(self, folder: Path, tokenizer: Any) -> None:
        self.folder, self.tokenizer, self._count = folder, tokenizer, 0
        for name, question, answer in (("a", "Where is {}?", "{} is here"), ("b", "Spell {}", "It is {}.")):
            rows = [{"instruction": question.format(word), "output": answer.format(word)} for word in WORDS]
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def model_folder(self, name: str) -> Path:
        """Return the folder of the architecture's random model, which is built when it is asked for first."""
        folder = self.folder / name
        if not folder.exists():
            build_architecture(name, self.tokenizer).save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
        return folder

    def run(
        self,
        name: str,
        mitigations: Mapping[str, Any],
        adapter: str = "continue",
        *,
        second_learning_rate: float = 1e-12,
        **train: Any,
    ) -> Path:
        """Train two stages and return the run's folder.

        Suites `single` and `batched` evaluate the same rows in batches of 1 and 8.

        Args:
            name: The architecture.
            mitigations: The mitigations of both stages.
            adapter: What the second stage does with the adapter of the first.
            second_learning_rate: Learning rate of the second stage; by default it changes nothing.
            train: Other keys of `train`.
        """
        self._count += 1
        output = self.folder / f"runs-{self._count}"
        suite = {
            "source": "a",
            "metrics": {"response_perplexity": {}, "exact_match": {}},
            "max_new_tokens": MAX_NEW_TOKENS,
        }
        document = {
            "name": name,
            "model": {"path": str(self.model_folder(name))},
            "template": {"chatml": {"system": None}},
            "sources": {
                "a": {"jsonl": {"path": "a.jsonl"}},
                "b": {"jsonl": {"path": "b.jsonl"}},
            },
            "mode": {
                "continual": {
                    "stages": [
                        {"name": "first", "domain": ["b"]},
                        {
                            "name": "second",
                            "domain": ["b"],
                            "adapter": adapter,
                            "train": {"learning_rate": second_learning_rate},
                        },
                    ]
                }
            },
            "mitigations": dict(mitigations),
            "train": {"steps": 3, "batch_size": 2, "learning_rate": 0.01, "max_length": 128, **train},
            "evaluate": {"single": {**suite, "batch_size": 1}, "batched": {**suite, "batch_size": 8}},
            "track": {"enabled": False},
            "output": str(output),
        }
        file = self.folder / f"spec-{self._count}.json"
        file.write_text(json.dumps(document))
        components = registry.discover_plugins()
        api.run(spec.load_spec(file, schema.compose_schema(components)), components)
        (folder,) = (entry for entry in output.iterdir() if (entry / "spec.json").exists())
        return folder


def load_items(run_folder: Path, suite: str, stage: int) -> list[dict[str, Any]]:
    """Return the evaluated items of a suite after a stage, in the order of the rows."""
    lines = (run_folder / "predictions" / f"{suite}-stage{stage}.jsonl").read_text().splitlines()
    return sorted((json.loads(line) for line in lines), key=lambda item: item["id"])


def load_by_documented_lines(folder: Path) -> tuple[Any, Any]:
    """Return model and tokenizer of a run's folder `model`, as docs/spec.md says to load them."""
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not (folder / "adapter_config.json").exists():
        return AutoModelForCausalLM.from_pretrained(folder).eval(), tokenizer
    config = PeftConfig.from_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(
        config.base_model_name_or_path, revision=config.revision, dtype="float32"
    )
    return PeftModel.from_pretrained(base, folder).eval(), tokenizer


@torch.no_grad()
def measure_item(model: Any, tokenizer: Any, item: Mapping[str, Any]) -> tuple[float, str]:
    """Return the negative log-likelihood of the item's reference in nats, and the greedy answer to its prompt.

    Uses forward passes of single rows without a cache, and no code of harness.
    """
    question = f"<|im_start|>user\n{item['prompt']}<|im_end|>\n<|im_start|>assistant\n"
    prompt = tokenizer(question, add_special_tokens=False, return_tensors="pt").input_ids
    response = tokenizer(item["reference"] + "<|im_end|>", add_special_tokens=False, return_tensors="pt").input_ids
    logits = model(input_ids=torch.cat([prompt, response], dim=1)).logits[0, prompt.shape[1] - 1 : -1]
    nll = float(torch.nn.functional.cross_entropy(logits.double(), response[0], reduction="sum"))
    answer: list[int] = []
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    for _ in range(MAX_NEW_TOKENS):  # a forward pass over the whole text each time: no cache, no generate
        ids = torch.cat([prompt, torch.tensor([answer], dtype=torch.long)], dim=1)
        token = int(model(input_ids=ids, use_cache=False).logits[0, -1].argmax())
        if token in ends:
            break
        answer.append(token)
    return nll, tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def check_run(run_folder: Path) -> None:
    """Check a run of `ModelWorkspace.run`.

    Raises:
        AssertionError: The scores depend on the batch, the second stage changed them, or the saved model has others.
    """
    measured = load_items(run_folder, "single", 2)
    _require_same(measured, load_items(run_folder, "batched", 2), "batch 8 differs from batch 1")
    _require_same(measured, load_items(run_folder, "single", 1), "the second stage changed the scores")
    check_saved_model(run_folder)


def check_saved_model(run_folder: Path) -> None:
    """Check that the saved model has the scores and answers that the run measured, which are not those of the base.

    Raises:
        AssertionError: They differ.
    """
    measured = load_items(run_folder, "single", 2)
    before = load_items(run_folder, "single", 0)
    moved = max(abs(new["nll"] - old["nll"]) for new, old in zip(measured, before, strict=True))
    assert moved > 0.01, f"the first stage changed no score: {moved:g} nats"
    model, tokenizer = load_by_documented_lines(run_folder / "model")
    saved = []
    for item in measured:
        nll, answer = measure_item(model, tokenizer, item)
        saved.append({**item, "nll": nll, "answer": answer})
    _require_same(measured, saved, "the saved model differs from the measured one")


def _require_same(items: list[dict[str, Any]], others: list[dict[str, Any]], what: str) -> None:
    assert [item["id"] for item in items] == [item["id"] for item in others]
    differences = [abs(a["nll"] - b["nll"]) / a["tokens"] for a, b in zip(items, others, strict=True)]
    changed = sum(a["answer"] != b["answer"] for a, b in zip(items, others, strict=True))
    assert max(differences) < TOLERANCE, f"{what}: {max(differences):.2g} nats a token"
    assert not changed, f"{what}: {changed} of {len(items)} answers"


def run_case(workspace: ModelWorkspace, name: str, run: str) -> None:
    """Train a model of an architecture as a column of the table says, and check the run.

    Raises:
        AssertionError: A check failed.
        HarnessError: The run is refused.
    """
    mitigations, adapter = RUNS[run]
    if mitigations and name in LORA_TARGETS:
        mitigations = {"lora": {**mitigations["lora"], "target": LORA_TARGETS[name]}}
    check_run(workspace.run(name, mitigations, adapter))


def main(names: list[str]) -> None:
    """Print a table with a line for each architecture."""
    import gc
    import logging
    import warnings

    from harness.testing.tiny_model import build_tokenizer
    from harness.utils.silence import silence_libraries

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    tokenizer = build_tokenizer()
    print("| architecture | " + " | ".join(RUNS) + " |\n" + "|---" * (len(RUNS) + 1) + "|", flush=True)
    for name in names or ARCHITECTURES:
        cells = []
        with tempfile.TemporaryDirectory() as folder, silence_libraries():
            workspace = ModelWorkspace(Path(folder), tokenizer)
            for run in RUNS:
                gc.freeze()  # each stage ends with a garbage collection
                try:
                    run_case(workspace, name, run)
                    cells.append("equal")
                except HarnessError as error:
                    cells.append(f"refused: {error}")
                except Exception as error:
                    cells.append(f"**{type(error).__name__}: {error}**")
        print(f"| {name} | " + " | ".join(cell.splitlines()[0] for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
