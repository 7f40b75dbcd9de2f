"""The plugin of each tutorial is extracted from its page, checked, installed and run; the generated page is current."""

from __future__ import annotations

import functools
import json
import os
import re
import runpy
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint

import pytest
from support.paths import ROOT

from harness import registry
from harness.testing import contract, example_run, new_plugin

FOLDER = ROOT / "docs" / "plugins"
TUTORIALS = [*new_plugin.available_kinds(), "listener"]


def extract_plugin(page, folder):
    """Write the files of a tutorial, each a code block that begins with its path; return its name and entry point."""
    text = (FOLDER / f"{page}.md").read_text(encoding="utf-8")
    for path, code in re.findall(r"^```\w+\n# ([\w./-]+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code, encoding="utf-8")
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ((name, module),) = project["entry-points"]["harness"].items()
    return project["name"], EntryPoint(name, module, "harness")


def spec_of(page):
    """Return the part of a spec that a tutorial shows, with the names of the sources of the example spec."""
    blocks = re.findall(r"^```json\n(.*?)^```", (FOLDER / f"{page}.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == (page != "exporter"), "only an exporter is not named in a spec"
    return json.loads(blocks[0].replace('"support"', '"desk"').replace('"helpdesk"', '"general"')) if blocks else {}


def merge(first, second):
    """Return a spec with the keys of both, at any depth."""
    merged = {**first, **second}
    for key in first.keys() & second.keys():
        if isinstance(first[key], dict) and isinstance(second[key], dict):
            merged[key] = merge(first[key], second[key])
    return merged


def test_there_is_a_tutorial_for_each_kind_of_component():
    assert {f"{kind}s" for kind in new_plugin.available_kinds()} == set(registry.INTERFACES)
    assert all((FOLDER / f"{page}.md").is_file() for page in TUTORIALS)


@pytest.mark.parametrize("kind", new_plugin.available_kinds())
def test_the_component_of_a_tutorial_passes_the_contract_checks(kind, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    distribution, entry = extract_plugin(kind, tmp_path)
    plugins = registry.discover_plugins([(distribution, entry)])
    assert plugins.broken_plugins == []
    (tmp_path / "checks").mkdir()
    results = list(contract.run_checks(plugins, distribution, tmp_path / "checks"))
    assert [(result.claim, result.reason) for result in results if result.status != "passed"] == []
    assert {result.component_type for result in results} == {f"{kind}s"}


@pytest.mark.slow
def test_a_run_uses_the_plugins_of_all_tutorials_after_their_installation(tmp_path):
    site, work = tmp_path / "site", tmp_path / "work"
    for page in TUTORIALS:
        extract_plugin(page, tmp_path / page)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
        command += ["--no-deps", "--no-build-isolation", "--target", str(site), str(tmp_path / page)]
        subprocess.run(command, check=True)
    spec = functools.reduce(merge, map(spec_of, new_plugin.available_kinds()))
    spec["train"] = merge({"steps": 2, "batch_size": 2, "max_length": 64}, spec["train"])
    del spec["track"]["mlflow"]
    general = {"source": "general", "role": "general", "metrics": "response_perplexity"}
    spec["sources"]["general"] = {"jsonl": {"path": "general.jsonl", "held_out": 0.3}}
    log = {"source": "log", "metrics": "response_perplexity"}
    spec["evaluate"] = {"desk": {**spec["evaluate"]["desk"], "max_new_tokens": 4}, "general": general, "log": log}
    work.mkdir()
    file = example_run.write_example_spec(work, **spec)
    rows = [f"[{i}]\nprompt = {i} + 1?\ncompletion = {i + 1}\n" for i in range(10)]
    (work / "support.ini").write_text("\n".join(rows))
    (work / "log.jsonl").write_text("".join(json.dumps({"log": f"{i}?/It is {i}."}) + "\n" for i in range(5)))
    environment = {key: value for key, value in os.environ.items() if key != "HARNESS_NO_THIRD_PARTY"}
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))

    def call(*words):
        command = [sys.executable, "-m", "harness", *map(str, words)]
        environment_of_site = {**environment, "PYTHONPATH": path}
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False, env=environment_of_site)
        assert done.returncode == 0, done.stderr

    call("run", file)
    (folder,) = (path for path in (work / "runs").iterdir() if (path / "report.json").exists())
    steps = [json.loads(line) for line in (folder / "stages" / "general" / "steps.jsonl").read_text().splitlines()]
    assert [step["penalty/l2"] > 0 for step in steps] == [False, True]
    assert "short_answers" in (folder / "scores.json").read_text()
    assert len((work / "losses.txt").read_text().splitlines()) == 4
    assert [line.rpartition(",")[0] for line in (folder / "losses.csv").read_text().splitlines()] == [
        "1,1",
        "1,2",
        "2,1",
        "2,2",
    ]
    data = json.loads((folder / "data.json").read_text())
    assert data["counts"]["log"]["evaluated"] == 5
    assert data["checks"]["plugins"]["too_short"]["sources.desk"]["rows_found"] > 0
    call("export", folder, "--to", "archive", work / "exported")
    assert (work / "exported" / "model.zip").is_file()


def test_the_page_of_data_classes_is_current():
    generated = runpy.run_path(str(FOLDER / "generate_types.py"))["write_page"]()
    assert (FOLDER / "types.md").read_text(encoding="utf-8") == generated, "run python docs/plugins/generate_types.py"
