"""The import budget: commands that do not run a model import no heavy package."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import harness_metrics
import pytest
from support.paths import ROOT

from harness.cli import main

HEAVY = {"torch", "numpy", "pandas", "transformers", "trl", "peft", "datasets", "evaluate", "mlflow"}
SPEC = str(ROOT / "specs" / "mixed_sft.json")

COMMAND = """
import sys
from harness.cli.main import main
try:
    code = main(sys.argv[1:])
except SystemExit as error:
    code = error.code
"""
REPORT = """
import json
print("\\n" + json.dumps([code, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def imported_packages(program, *arguments):
    """Run a program in a new interpreter; return its exit code and the top-level packages that it has imported."""
    completed = subprocess.run(
        [sys.executable, "-c", program + REPORT, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HARNESS_NO_THIRD_PARTY": "1"},
    )
    code, names = json.loads(completed.stdout.splitlines()[-1])
    assert "harness" in names
    return code, set(names)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["validate", SPEC], ["schema"], ["plugins"], ["plugins", "--json"], ["run", "--help"],
     ["plan", "--help"], ["check", "--help"], ["preview", "--help"], ["compare", "--help"]],
    ids=" ".join,
)  # fmt: skip
def test_a_command_that_runs_no_model_imports_no_heavy_package(arguments):
    code, names = imported_packages(COMMAND, *arguments)
    assert code in (0, None)
    assert names & HEAVY == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    "module", ["runner.data_check", "runner.prepare", "runner.prepare_arms", "terminal.row_preview"]
)
def test_what_checks_data_imports_neither_torch_nor_transformers(module):
    """The tokenizer is loaded with transformers' `AutoTokenizer`, which is imported when it is called."""
    _, names = imported_packages(f"import sys, harness.{module}\ncode = 0\n")
    assert names & (HEAVY - {"numpy"}) == set()


@pytest.fixture
def small_spec(tmp_path, monkeypatch, tiny_model, tokenizer):
    """The path of a spec with a model that no command has seen."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HARNESS_NO_THIRD_PARTY", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    tiny_model.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    rows = {"desk": "Where is shelf {}?", "general": "What is {} and one?"}
    for name, question in rows.items():
        lines = [json.dumps({"prompt": question.format(i), "completion": f"It is {i + 1}."}) for i in range(40)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    document = {
        "name": "small",
        "output": str(tmp_path / "runs"),
        "model": {"path": str(tmp_path / "tiny")},
        "template": "tokenizer",
        "sources": {name: {"jsonl": {"path": str(tmp_path / f"{name}.jsonl"), "held_out": 0.2}} for name in rows},
        "mode": {"domain": {"sources": ["desk"]}},
        "mitigations": {"lora": {"rank": 2}},
        "train": {"max_length": 128},
        "evaluate": {
            "desk": {"source": "desk", "metrics": "rouge"},
            "general": {"source": "general", "role": "general", "metrics": "response_perplexity"},
        },
    }
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(document))
    return str(spec)


@pytest.mark.slow
def test_the_first_command_on_a_model_imports_no_heavy_package(small_spec, tmp_path):
    """A process of its own saves the snapshot of the tokenizer, see docs/decisions/027."""
    code, names = imported_packages(COMMAND, "check", small_spec)
    assert code == 0
    assert names & (HEAVY - {"numpy"} | {"scipy"}) == set()
    assert len(list((tmp_path / "cache" / "tokenizers").glob("*.json"))) == 1


@pytest.mark.slow
def test_check_of_a_spec_with_arms_imports_no_heavy_package_and_loads_one_tokenizer(small_spec):
    arms = {"named": {"naive": {}, "low": {"train.learning_rate": 1e-6}}, "gain": "desk/rougeL"}
    count = """
from harness.model import cached_tokenizer
real, calls = cached_tokenizer.load_light_tokenizer, []
cached_tokenizer.load_light_tokenizer = lambda *given: calls.append(given) or real(*given)
"""
    arguments = ["check", small_spec, "--set", f"arms={json.dumps(arms)}"]
    code, names = imported_packages(count + COMMAND + "\nassert len(calls) == 1, calls\n", *arguments)
    assert code == 0
    assert names & (HEAVY - {"numpy"} | {"scipy"}) == set()


@pytest.mark.slow
def test_the_second_command_on_a_model_imports_no_heavy_package(small_spec, capsys):
    """The first command saves a snapshot of the tokenizer and the numbers of weights, see docs/decisions/027."""
    assert main.main(["plan", small_spec]) == 0
    first = capsys.readouterr().out
    for command in ("check", "plan", "preview"):
        code, names = imported_packages(COMMAND, command, small_spec)
        assert code == 0, command
        assert names & (HEAVY - {"numpy"} | {"scipy"}) == set(), command
    assert main.main(["plan", small_spec]) == 0
    assert capsys.readouterr().out == first


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "plan", "check", "preview"])
def test_an_invalid_spec_is_rejected_before_a_heavy_package_is_imported(command):
    code, names = imported_packages(COMMAND, command, SPEC, "--set", "evaluate.general.source=nowhere")
    assert code == 2
    assert names & HEAVY == set()


@pytest.mark.parametrize(
    "module",
    ["report.run_report", "statistics.intervals", "comparison.compare", "tracking.tracker", "terminal.console"],
)
def test_a_module_that_only_reads_results_does_not_import_torch(module):
    _, names = imported_packages(f"import sys, harness.{module}\ncode = 0\n")
    assert names & (HEAVY - {"numpy"}) == set()


def test_the_public_api_imports_no_heavy_package():
    _, names = imported_packages("import sys\nfrom harness import *\ncode = 0\n")
    assert names & HEAVY == set()
    assert "jsonschema" not in names
    assert "rich" not in names


def test_validate_reads_the_score_names_of_every_metric_without_a_heavy_import(tmp_path):
    """`validate` creates the metrics to read their score names; a metric imports its packages when it is computed."""
    required_options = {"regex": {"pattern": "x"}, "bertscore": {"model": "./encoder"}, "judge": {"model": "./judge"}}
    required_options["classification"] = {"labels": ["a", "b"]}
    required_options["lm_eval"] = {"task": "gsm8k", "scores": ["score_of_the_task"]}
    metrics = {name: required_options.get(name, {}) for name in harness_metrics.harness_metrics()}
    scores = {"general/response_nll": 1, "general/bits_per_byte": 1, "general/acc": 1}
    document = {
        "name": "all",
        "model": {"path": "org/model"},
        "template": "chatml",
        "sources": {name: {"jsonl": {"path": f"{name}.jsonl"}} for name in ("domain", "general")},
        "mode": {"domain": {"sources": ["domain"]}},
        "train": {"evaluate_steps": 5, "early_stopping": {"scores": scores}},
        "evaluate": {
            "general": {"source": "general", "role": "general", "metrics": metrics, "samples": 2, "temperature": 0.8}
        },
        "gate": [{"score": f"general/{name}", "at_least": 0} for name in ("bleu", "rougeL", "ter", "json_valid")],
    }
    for name in document["sources"]:
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(document))
    code, names = imported_packages(COMMAND, "validate", str(file))
    assert code == 0
    assert names & HEAVY == set()
    code, names = imported_packages(COMMAND, "run", str(file), "--set", "gate.0.score=general/bluu")
    assert code == 2
    assert names & HEAVY == set()
