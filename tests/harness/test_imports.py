"""The import budget: what answers at once imports nothing heavy."""

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
except SystemExit as stopped:
    code = stopped.code
"""
REPORT = """
import json
print("\\n" + json.dumps([code, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def modules(program, *arguments):
    """The exit code and the top-level packages that a fresh interpreter holds after the program."""
    shown = subprocess.run(
        [sys.executable, "-c", program + REPORT, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HARNESS_NO_THIRD_PARTY": "1"},
    )
    code, names = json.loads(shown.stdout.splitlines()[-1])
    assert "harness" in names
    return code, set(names)


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["validate", SPEC], ["schema"], ["plugins"], ["plugins", "--json"], ["run", "--help"],
     ["plan", "--help"], ["check", "--help"], ["preview", "--help"], ["compare", "--help"]],
    ids=" ".join,
)  # fmt: skip
def test_a_command_that_answers_at_once_imports_nothing_heavy(arguments):
    code, names = modules(COMMAND, *arguments)
    assert code in (0, None)
    assert names & HEAVY == set()


@pytest.mark.parametrize("command", ["run", "plan", "check", "preview"])
def test_a_bad_spec_is_refused_before_anything_heavy_is_imported(command):
    code, names = modules(COMMAND, command, SPEC, "--set", "evaluate.general.source=nowhere")
    assert code == 2
    assert names & HEAVY == set()


@pytest.mark.parametrize(
    "room", ["report.run_report", "statistics.intervals", "comparison.compare", "tracking.tracker", "terminal.console"]
)
def test_a_room_that_only_reads_results_never_imports_torch(room):
    _, names = modules(f"import sys, harness.{room}\ncode = 0\n")
    assert names & (HEAVY - {"numpy"}) == set()


def test_what_a_plugin_author_imports_is_light():
    _, names = modules("import sys\nfrom harness import *\ncode = 0\n")
    assert names & HEAVY == set()
    assert "jsonschema" not in names
    assert "rich" not in names


def test_validate_knows_the_scores_of_every_metric_and_imports_nothing_heavy(tmp_path):
    """It makes them to learn their scores' names; they import what they need when they measure."""
    needed = {"regex": {"pattern": "x"}, "bertscore": {"model": "./encoder"}}
    metrics = {name: needed.get(name, {}) for name in harness_metrics.harness_metrics()}
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
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(document))
    code, names = modules(COMMAND, "validate", str(file))
    assert code == 0
    assert names & HEAVY == set()
    code, names = modules(COMMAND, "run", str(file), "--set", "gate.0.score=general/bluu")
    assert code == 2
    assert names & HEAVY == set()
