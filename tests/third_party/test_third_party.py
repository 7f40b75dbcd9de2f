"""A third-party distribution registers components like the built-ins; a broken one does not affect other specs."""

from __future__ import annotations

import json

import pytest
from support import run_folders

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


@pytest.mark.slow
def test_its_components_pass_the_contract_checks(example, harness):
    done = harness(example, "plugins", "--check", "harness-example", "--json")
    results = json.loads(done.stdout)
    assert [result for result in results if result["status"] == "failed"] == []
    skipped = [(result["name"], result["claim"]) for result in results if result["status"] == "skipped"]
    assert skipped == [("prompt_nll", "A better answer has a better score.")]
    assert {(result["component_type"], result["name"]) for result in results} >= set(EXAMPLE_COMPONENTS.items())
    assert done.returncode == 0


def test_third_parties_can_be_hidden(example, harness, spec):
    listed = json.loads(harness(example, "plugins", "--json", HARNESS_NO_THIRD_PARTY="1").stdout)
    assert {name for kind in EXAMPLE_COMPONENTS for name in listed[kind]} & set(EXAMPLE_COMPONENTS.values()) == set()
    done = harness(example, "validate", spec(**SPEC), HARNESS_NO_THIRD_PARTY="1")
    assert done.returncode == 2
    assert "template: no plugin provides 'dialogue'" in done.stderr


@pytest.mark.slow
def test_its_command_and_its_section_of_the_report_are_used(example, harness, tmp_path):
    folder = run_folders.write_run(tmp_path / "run")
    assert "answer-lengths" in harness(example, "--help").stdout
    done = harness(example, "answer-lengths", folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert "helpdesk-stage1: " in done.stdout
    assert error_line(harness(example, "answer-lengths", tmp_path)).endswith("has no answers; name the folder of a run")
    assert harness(example, "report", folder).returncode == 0
    assert "Answer lengths" in (folder / "report.html").read_text(encoding="utf-8")
    assert "#### Answer lengths" in harness(example, "report", folder, "--markdown", "-").stdout


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
        VALID_PLUGIN.replace(
            '"collections:Counter"',
            '"collections:Counter", {"size": {"type": "int", "default": 1, "description": "S."}}',
        ),
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_built_in_keeps_its_name_and_the_plugin_is_used_by_its_long_name(make, harness, spec):
    folder = make("acme-metrics", VALID_PLUGIN.replace('"mine"', '"chrf"'))
    done = harness(folder, "validate", spec())
    assert done.returncode == 0
    assert done.stderr == (
        "warning: the metric 'chrf' is the built-in one; a plugin provides another: write acme-metrics/chrf\n"
    )
    done = harness(folder, "validate", spec(**suite_with_metric("harness-sft/chrf")), "--filled")
    assert list(json.loads(done.stdout)["evaluate"]["all"]["metrics"]) == ["chrf"]
    done = harness(folder, "validate", spec(**suite_with_metric("acme-metrics/chrf")))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "harness: metric 'acme-metrics/chrf' of acme-metrics 1.0, collections:Counter: returned a Counter, which does "
    )


def test_one_plugin_can_be_disabled(make, harness, spec):
    folder = make("acme-metrics", VALID_PLUGIN)
    path = spec(**suite_with_metric("mine"))
    line = error_line(harness(folder, "validate", path, "--disable-plugin", "acme_metrics"))
    assert "no plugin provides 'mine'" in line
    line = error_line(harness(folder, "validate", spec(), "--disable-plugin", "other"))
    assert line.startswith("harness: HARNESS_DISABLE_PLUGINS: no plugin distribution 'other' is installed; ")


def test_a_plugin_that_only_listens_is_listed(make, harness):
    text = "from harness import hookimpl\n@hookimpl\ndef harness_on_event(event):\n    pass\n"
    folder = make("acme-listener", text)
    distributions = json.loads(harness(folder, "plugins", "--json").stdout)["distributions"]
    assert distributions["acme-listener"]["version"] == "1.0"
    assert distributions["acme-listener"]["listens"] is True
    assert len(distributions["acme-listener"]["digest"]) == 64
    assert "acme-listener 1.0: receives the events of a run" in harness(folder, "plugins", "--kind", "modes").stdout


def test_a_component_with_a_missing_module_fails_only_when_used(make, harness, spec):
    text = VALID_PLUGIN.replace("harness_metrics", "harness_modes").replace("collections:Counter", "acme_gone:Mode")
    folder = make("acme-modes", text)
    assert harness(folder, "validate", spec()).returncode == 0
    assert error_line(harness(folder, "validate", spec(mode="mine"))) == (
        "harness: mode 'mine' of acme-modes 1.0: cannot import 'acme_gone:Mode': ModuleNotFoundError: "
        "No module named 'acme_gone'; reinstall or fix that plugin"
    )
