"""A third-party distribution registers components like the built-ins; a broken one does not affect other specs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE_COMPONENTS = {
    "templates": "dialogue",
    "sources": "pairs",
    "modes": "sandwich",
    "mitigations": "short_stages",
    "metrics": "answer_length",
}
SPEC = {
    "name": "third-party",
    "model": {"path": "./model"},
    "template": "dialogue",
    "sources": {name: {"pairs": {"path": f"{name}.txt"}} for name in ("desk", "chat", "heldout")},
    "mode": {"sandwich": {"bread": "chat", "filling": "desk"}},
    "mitigations": {"short_stages": {"steps": 3}},
    "evaluate": {"all": {"source": "heldout", "role": "general", "metrics": {"answer_length": {}}}},
}
VALID_PLUGIN = """
from harness import Component, hookimpl

@hookimpl
def harness_metrics():
    return {"mine": Component("Counts.", "collections:Counter")}
"""


@pytest.fixture
def spec(tmp_path):
    """Return a function that writes a spec file, by default with built-in components only."""

    def spec(**keys):
        document = {
            "name": "plain",
            "model": {"path": "./model"},
            "sources": {"desk": {"jsonl": {"path": "desk.jsonl", "held_out": 0.1}}},
            "mode": {"general": {"sources": ["desk"]}},
            "evaluate": {"all": {"source": "desk", "role": "general", "metrics": "chrf"}},
            **keys,
        }
        file = tmp_path / "spec.json"
        file.write_text(json.dumps(document), encoding="utf-8")
        (tmp_path / "desk.jsonl").write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
        return file

    return spec


def suite_with_metric(metric):
    return {"evaluate": {"all": {"source": "desk", "role": "general", "metrics": metric}}}


def error_line(done):
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


# -- a valid one ------------------------------------------------------------------------------------------------------


def test_plugins_lists_each_of_its_components_with_its_distribution(example, harness):
    listed = json.loads(harness(example, "plugins", "--json").stdout)
    assert listed["broken"] == []
    assert {kind: listed[kind][name]["distribution"] for kind, name in EXAMPLE_COMPONENTS.items()} == dict.fromkeys(
        EXAMPLE_COMPONENTS, "harness-example"
    )
    assert listed["modes"]["mixed"]["distribution"] == "harness-sft"


def test_the_summary_is_shown_as_written(example, harness):
    output = " ".join(harness(example, "plugins", "--kind", "templates", COLUMNS="200").stdout.split())
    assert "dialogue harness-example Speakers by name, as in a play: [Ann] … [/Ann]." in output


def test_the_schema_has_the_options(example, harness):
    properties = json.loads(harness(example, "schema").stdout)["properties"]
    sources = properties["sources"]["additionalProperties"]["properties"]
    assert properties["template"]["properties"]["dialogue"]["properties"]["speaker"]["default"] == "Answer"
    assert {"path", "form", "held_out"} <= set(sources["pairs"]["properties"])
    assert properties["mode"]["properties"]["sandwich"]["required"] == ["bread", "filling"]
    assert properties["mitigations"]["properties"]["short_stages"]["properties"]["steps"]["minimum"] == 1
    suite = properties["evaluate"]["additionalProperties"]["properties"]
    assert "answer_length" in suite["metrics"]["properties"]


def test_a_spec_that_uses_them_is_valid_and_gets_their_defaults(example, harness, spec):
    done = harness(example, "validate", spec(**SPEC), "--filled", "--set", "train.learning_rate=5e-6")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["template"] == {"dialogue": {"speaker": "Answer"}}


def test_its_mode_and_its_typical_range_are_used(example, harness, spec):
    done = harness(example, "validate", spec(**SPEC))
    assert "is valid: 3 stage(s) (below, filling, above), 1 suite(s)" in done.stdout
    assert done.stderr == "warning: train.learning_rate is 2e-05; usual is 1e-06 to 1e-05\n"


def test_its_options_are_validated_like_those_of_built_ins(example, harness, spec):
    file = spec(**{**SPEC, "mitigations": {"short_stages": {"step": 3}}})
    line = error_line(harness(example, "validate", file))
    assert line.endswith("mitigations.short_stages: unknown key 'step'; did you mean 'steps'?")


def test_a_source_named_in_its_options_must_exist(example, harness, spec):
    file = spec(**{**SPEC, "mode": {"sandwich": {"bread": "chat", "filling": "dsk"}}})
    line = error_line(harness(example, "validate", file))
    assert line.endswith("mode.sandwich.filling: there is no source 'dsk'; did you mean 'desk'?")


def test_its_template_passes_the_contract_tests(example):
    contract = Path(__file__).parents[1] / "contract" / "test_templates.py"
    path = os.pathsep.join(filter(None, [str(example), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(contract), "-k", "dialogue"]
    environment = {key: value for key, value in os.environ.items() if key != "HARNESS_NO_THIRD_PARTY"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**environment, "PYTHONPATH": path})
    assert done.returncode == 0, done.stdout
    assert re.search(r"\b12 passed", done.stdout), done.stdout


def test_third_parties_can_be_hidden(example, harness, spec):
    listed = json.loads(harness(example, "plugins", "--json", HARNESS_NO_THIRD_PARTY="1").stdout)
    assert {name for kind in EXAMPLE_COMPONENTS for name in listed[kind]} & set(EXAMPLE_COMPONENTS.values()) == set()
    done = harness(example, "validate", spec(**SPEC), HARNESS_NO_THIRD_PARTY="1")
    assert done.returncode == 2
    assert "template: no plugin provides 'dialogue'" in done.stderr


# -- broken ones ------------------------------------------------------------------------------------------------------

BROKEN_PLUGINS = {
    "raises at import": ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
    "imports torch when it is imported": (f"import torch\n{VALID_PLUGIN}", "loading it imports torch"),
    "imports torch when it is listed": (
        VALID_PLUGIN.replace("    return", "    import torch\n    return"),
        "loading it imports torch",
    ),
    "misspells a hook": (VALID_PLUGIN.replace("harness_metrics", "harness_metrix"), "unknown hook 'harness_metrix'"),
    "has a bad options fragment": (
        VALID_PLUGIN.replace('"collections:Counter"', '"collections:Counter", {"size": {"type": "int"}}'),
        "its options are not a JSON Schema",
    ),
    "has a default that does not fit": (
        VALID_PLUGIN.replace(
            '"collections:Counter"',
            '"collections:Counter", {"size": {"type": "integer", "default": "4", "description": "S."}}',
        ),
        "the default of 'size' is invalid",
    ),
}


@pytest.mark.parametrize("kind", BROKEN_PLUGINS)
def test_a_broken_plugin_is_listed_and_fails_only_specs_that_use_it(make, harness, spec, kind):
    text, error = BROKEN_PLUGINS[kind]
    folder = make("acme-metrics", text)
    (folder / "torch.py").write_text("")  # a stand-in before the real one on the path, which takes seconds to import

    listed = json.loads(harness(folder, "plugins", "--json").stdout)
    (broken,) = listed["broken"]
    assert (broken["distribution"], broken["module"]) == ("acme-metrics", "acme_metrics")
    assert error in broken["error"]
    assert "mine" not in listed["metrics"]
    assert "chrf" in listed["metrics"]

    done = harness(folder, "validate", spec())
    assert done.returncode == 0
    assert "is valid" in done.stdout

    line = error_line(harness(folder, "validate", spec(**suite_with_metric("mine"))))
    assert "evaluate.all.metrics: no plugin provides 'mine'; " in line
    assert "a plugin that may provide it failed to load: acme-metrics (acme_metrics): " in line
    assert error in line


def test_the_printed_list_ends_with_the_broken_plugins(make, harness):
    done = harness(make("acme-metrics", "raise RuntimeError('no\\nlicence')"), "plugins")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "broken: acme-metrics (acme_metrics): RuntimeError: no licence"


def test_a_broken_plugin_can_be_hidden(make, harness):
    done = harness(make("acme-metrics", "1 / 0"), "plugins", "--json", HARNESS_NO_THIRD_PARTY="1")
    assert json.loads(done.stdout)["broken"] == []


@pytest.mark.parametrize("command", ["validate", "plugins", "schema"])
def test_a_name_registered_twice_is_an_error_that_names_both(make, harness, spec, command):
    folder = make("acme-metrics", VALID_PLUGIN.replace('"mine"', '"chrf"'))
    line = error_line(harness(folder, command, *([spec()] if command == "validate" else [])))
    assert line == (
        "harness: plugins: the distributions 'harness-sft' and 'acme-metrics' both provide a metric 'chrf'; "
        "uninstall one of them, or rename its component"
    )


def test_a_component_with_a_missing_module_fails_only_when_used(make, harness, spec):
    text = VALID_PLUGIN.replace("harness_metrics", "harness_modes").replace("collections:Counter", "acme_gone:Mode")
    folder = make("acme-modes", text)
    assert harness(folder, "validate", spec()).returncode == 0
    assert error_line(harness(folder, "validate", spec(mode="mine"))) == (
        "harness: mode 'mine' of acme-modes: cannot import 'acme_gone:Mode': ModuleNotFoundError: "
        "No module named 'acme_gone'; reinstall or fix that plugin"
    )
