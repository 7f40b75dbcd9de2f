"""A run is resumed with the plugins that it was started with, unless the user allows others."""

from __future__ import annotations

import importlib
import json
import types

import pytest

from harness.errors import HarnessError
from harness.interfaces.component import Component
from harness.plugin_versions import component_names, describe_plugins, digest_code, plugins_in_use
from harness.registry import Registry
from harness.runner.folder import RunFolder
from harness.runner.resume import changed_plugins, require_same_plugins


@pytest.fixture
def acme(tmp_path, monkeypatch):
    """A registry with one third-party metric `count`, whose code is in two packages, and one module that listens."""
    monkeypatch.syspath_prepend(tmp_path)
    for file in ("acme_plugin/__init__.py", "acme_plugin/deep/helper.py", "acme_code/__init__.py", "ears.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("VALUE = 1\n")
    registry = Registry()
    registry.modules["acme"] = [types.ModuleType("acme_plugin.declared")]
    registry.modules["ears"] = [types.ModuleType("ears")]
    registry.modules["ears"][0].harness_on_event = print
    registry.add("metrics", "count", Component("C.", "acme_code.count:Count"), "acme")
    return registry


USES_COUNT = {"evaluate": {"all": {"metrics": {"count": {}}}}}


def store(folder, environment):
    folder.mkdir(parents=True)
    (folder / "environment.json").write_text(json.dumps(environment))


def test_plugins_in_use_are_those_of_the_spec_and_those_that_listen(acme):
    assert set(describe_plugins(acme)) == {"acme", "ears"}
    assert set(plugins_in_use(acme, USES_COUNT)) == {"acme", "ears"}
    assert set(plugins_in_use(acme, {"evaluate": {"all": {"metrics": {"chrf": {}}}}})) == {"ears"}


def test_a_mitigation_of_a_single_stage_is_in_use(acme):
    acme.add("mitigations", "keep", Component("K.", "acme:Keep"), "acme")
    spec = {"mode": {"continual": {"stages": [{"mitigations": {"keep": {}}}]}}}
    assert "acme" in plugins_in_use(acme, spec)


def test_the_same_plugins_are_no_change(acme, tmp_path):
    store(tmp_path / "run", {"plugins": plugins_in_use(acme, USES_COUNT)})
    assert changed_plugins(RunFolder(tmp_path / "run"), acme) == []


@pytest.mark.parametrize("changed", ["acme_plugin/deep/helper.py", "acme_code/__init__.py", "acme_plugin/new.py"])
@pytest.mark.parametrize("place", ["run", "run/arms/a"])
def test_changed_code_is_refused_with_the_command_that_allows_it(acme, tmp_path, place, changed):
    store(tmp_path / place, {"plugins": plugins_in_use(acme, USES_COUNT)})
    (tmp_path / changed).write_text("VALUE = 2\n")
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(HarnessError) as caught:
        require_same_plugins(folder, acme)
    assert "the code of the plugin acme" in caught.value.what
    assert caught.value.hint.endswith(f"harness run --resume {folder.path} --allow-plugin-change")


def test_a_file_that_moves_changes_the_digest_and_the_folder_of_the_package_does_not(acme, tmp_path, monkeypatch):
    before = describe_plugins(acme)["acme"]["digest"]
    (tmp_path / "elsewhere").mkdir()
    for package in ("acme_plugin", "acme_code"):
        (tmp_path / package).rename(tmp_path / "elsewhere" / package)
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    importlib.invalidate_caches()
    assert describe_plugins(acme)["acme"]["digest"] == before
    (tmp_path / "elsewhere/acme_plugin/deep").rename(tmp_path / "elsewhere/acme_plugin/other")
    assert describe_plugins(acme)["acme"]["digest"] != before


def test_libraries_that_a_factory_comes_from_are_not_part_of_the_digest():
    assert digest_code([], ["collections:Counter", "torch.optim:SGD"]) == digest_code([])


@pytest.mark.parametrize("stages", [3, "all", {"a": 1}, ["a", 2], [{"train": 1, "mitigations": ["ewc"]}]])
def test_an_option_stages_of_a_plugin_s_mode_may_be_anything(stages):
    names = component_names({"mode": {"own": {"stages": stages}}, "mitigations": {"lora": {}}})
    assert names == [("modes", "own"), ("mitigations", "lora")]


def test_another_version_and_a_removed_plugin_are_named(acme, tmp_path):
    stored = {"acme": {"version": "0.1", "digest": "x"}, "gone": {"version": "1", "digest": "y"}}
    store(tmp_path / "run", {"plugins": stored})
    changes = changed_plugins(RunFolder(tmp_path / "run"), acme)
    assert changes == ["the plugin acme changed from 0.1 to None", "the plugin gone was removed"]
