"""The notebook `examples/start.ipynb`: its commands exist, and the spec that it writes is valid."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from support.paths import ROOT

from harness.cli.main import _build_parser, main
from harness.registry import discover_plugins
from harness.spec.plan import build_plan
from harness.spec.schema import compose_schema
from harness.spec.spec import load_spec

NOTEBOOK = json.loads((ROOT / "examples" / "start.ipynb").read_text(encoding="utf-8"))
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
COMMANDS = [line.partition("harness ")[2] for cell in CELLS for line in cell.splitlines() if line.startswith("!")]
TEXT = "\n".join("".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "markdown")


def split_command(command, **names):
    return shlex.split(command.format(**{"FILE": "tickets.csv", "NAME": "tickets-try", **names}))


def test_the_notebook_leads_from_a_file_to_a_chat():
    assert [command.split()[0] for command in COMMANDS] == ["init", "check", "run", "runs", "report", "chat"]
    assert all(not cell.get("outputs") for cell in NOTEBOOK["cells"])
    assert "%pip install" in CELLS[1]


@pytest.mark.parametrize("command", [*COMMANDS, *re.findall(r"`harness ([^`]+)`", TEXT)])
def test_every_command_of_the_notebook_is_valid(command):
    words = split_command(command)
    arguments = _build_parser(words).parse_args(words)  # exits with an unknown command or option
    assert arguments.command_name == words[0]


def test_the_spec_of_the_notebook_is_valid(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    variables = {}
    for cell in CELLS:
        if cell.startswith("!harness init"):
            assert main(split_command(cell.removeprefix("!harness "), FILE=variables["FILE"])) == 0
        elif not cell.startswith(("!", "%", "from IPython")):
            exec(cell, variables)
    assert variables["NAME"] == "tickets-try"
    (run,) = (split_command(command) for command in COMMANDS if command.startswith("run "))
    registry = discover_plugins()
    spec = load_spec(tmp_path / run[1], compose_schema(registry), run[run.index("--set") + 1 :])
    assert [stage.train["steps"] for stage in build_plan(spec, registry).stages] == [30]
