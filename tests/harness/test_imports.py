"""The import budget: commands that do not run a model import no heavy package."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import harness_metrics
import pytest
from support.paths import ROOT

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


@pytest.mark.parametrize("module", ["runner.data_check", "runner.prepare", "terminal.row_preview"])
def test_what_checks_data_imports_neither_torch_nor_transformers(module):
    """The tokenizer is loaded with transformers' `AutoTokenizer`, which is imported when it is called."""
    _, names = imported_packages(f"import sys, harness.{module}\ncode = 0\n")
    assert names & (HEAVY - {"numpy"}) == set()


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
    required_options = {"regex": {"pattern": "x"}, "bertscore": {"model": "./encoder"}}
    metrics = {name: required_options.get(name, {}) for name in harness_metrics.harness_metrics()}
    scores = {"general/response_nll": 1, "general/bits_per_byte": 1, "general/acc": 1}
    document = {
        "name": "all",
        "model": {"path": "org/model"},
        "template": "chatml",
        "sources": {name: {"jsonl": {"path": f"{name}.jsonl"}} for name in ("domain", "general")},
        "mode": {"domain": {"sources": ["domain"]}},
        "train": {"evaluate_steps": 5, "early_stopping": {"scores": scores}},
        "evaluate": {"general": {"source": "general", "role": "general", "metrics": metrics}},
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
