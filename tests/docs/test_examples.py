"""The examples of the documentation work: JSON is a valid spec, commands have valid options, Python names exist."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
from support.paths import ROOT

from harness.cli.main import main
from harness.data.reading import first_rows

PAGES = [ROOT / "README.md", ROOT / "README.zh.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = ("support", "general", "helpdesk", "lists", "chat", "web")
"""Names of sources in the examples."""


def code_blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def complete_spec(fragment: dict, stages: bool) -> dict:
    """Return a spec that contains a fragment of one: its keys, one suite, or mitigations."""
    schema = json.loads((ROOT / "specs" / "harness.schema.json").read_text(encoding="utf-8"))
    if not set(fragment) <= set(schema["properties"]):
        fragment = {"evaluate": {"support": fragment}} if "source" in fragment else {"mitigations": fragment}
    sources = fragment.pop("sources", {})
    metrics = {"rouge": {}, "response_perplexity": {}}
    continual = {"stages": [{"name": name, "domain": [name]} for name in ("helpdesk", "lists")]}
    mixed = {"domain": ["support"], "general": ["general", "chat", "web"]}
    return {
        "name": "example",
        "model": {"path": "org/model"},
        "template": "llama2",
        "sources": {name: {"jsonl": {"path": f"{name}.jsonl", "held_out": 0.3}} for name in SOURCES} | sources,
        "mode": {"continual": continual} if stages else {"mixed": mixed},
        "evaluate": {
            name: {"source": name, "role": "general" if name == "general" else "domain", "metrics": metrics}
            for name in ("support", "general", "helpdesk", "lists")
        },
        **fragment,
    }


def test_every_json_example_is_part_of_a_valid_spec(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(first_rows, "reads_local_text", lambda kind, options: False)  # the files are a reader's own
    for name in SOURCES:
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "base.json").write_text('{"seed": 0}')  # what an example extends
    pages = [page for page in PAGES if page.parent.name != "plugins"]  # test_plugin_tutorials.py runs those examples
    examples = [(page, block) for page in pages for block in code_blocks(page, "json")]
    assert len(examples) >= 10
    for page, block in examples:
        fragment = json.loads(block if block.lstrip().startswith("{") else f"{{{block}}}")
        needs_stages = "backward_transfer" in block or "forgetting:" in block
        file = tmp_path / "example.json"
        file.write_text(json.dumps(complete_spec(fragment, needs_stages)))
        assert main(["validate", str(file)]) == 0, f"{page.name}: {block}\n{capsys.readouterr().err}"


def commands_with_a_spec() -> list[list[str]]:
    """Return the words of each command of the pages that names a spec of the repository."""
    lines = [
        line.strip().removeprefix("$ ")
        for page in PAGES
        for language in ("bash", "")
        for block in code_blocks(page, language)
        for line in block.splitlines()
        if re.match(r"(?:\$ )?harness \w+ specs/", line.strip())
    ]
    return [shlex.split(line, comments=True) for line in lines]


def test_every_command_on_a_spec_has_valid_overrides(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    commands = commands_with_a_spec()
    assert len(commands) >= 8
    for _, _, spec, *options in commands:
        overrides = [word for pair in pairwise(options) if pair[0] == "--set" for word in pair]
        assert main(["validate", spec, *overrides]) == 0, f"{spec} {overrides}\n{capsys.readouterr().err}"


EXAMPLE_PACKAGES = {"harness_lengths"}
"""Packages that only examples of the documents have."""


def imported_names(code: str) -> list[tuple[str, str]]:
    """Return (module, name) of each name that code imports from harness or a built-in plugin package."""
    return [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.ImportFrom)
        and node.module
        and node.module.partition("_")[0].startswith("harness")
        and node.module.partition(".")[0] not in EXAMPLE_PACKAGES
        for alias in node.names
    ]


def has_name(module_name: str, name: str) -> bool:
    """Return whether a module has an attribute or a submodule of this name."""
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError:
        return False
    return hasattr(module, name) or importlib.util.find_spec(f"{module_name}.{name}") is not None


@pytest.mark.parametrize("folder", ["docs", "benchmarks"])
def test_every_name_that_an_example_or_benchmark_imports_exists(folder):
    if folder == "docs":
        code = [(page.name, block) for page in PAGES for block in code_blocks(page, "python")]
    else:
        code = [(file.name, file.read_text(encoding="utf-8")) for file in sorted((ROOT / folder).glob("*.py"))]
    imported = [(file, *pair) for file, text in code for pair in imported_names(text)]
    assert len(imported) >= 8
    assert [f"{file}: {module}.{name}" for file, module, name in imported if not has_name(module, name)] == []
