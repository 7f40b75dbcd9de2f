"""Plugins are discovered through entry points; a broken plugin is reported and does not affect the others."""

from __future__ import annotations

import sys
import threading
import time
import types
from importlib.metadata import EntryPoint, PathDistribution, distributions

import pytest

from harness import events, plugin_entry_points
from harness import registry as registry_module
from harness.errors import ComponentError, HarnessError
from harness.interfaces.component import COMPONENT_TYPES, CORE_DISTRIBUTION, Component
from harness.interfaces.source import Source
from harness.plugin_listener import PluginListener, read_only
from harness.registry import (
    HEAVY_PACKAGES,
    Registry,
    discover_plugins,
    installed_entry_points,
    validate_option_schemas,
)

HOOK = """
from harness import Component, hookimpl

@hookimpl
def harness_metrics():
    return {"NAME": Component("Counts.", "collections:Counter")}
"""


@pytest.fixture
def write_plugin(tmp_path, monkeypatch):
    """Return a function that writes a module and returns it as an entry point of a distribution."""
    monkeypatch.syspath_prepend(tmp_path)
    modules = []

    def write_plugin(distribution, text, module=None):
        module = module or f"made_{distribution.replace('-', '_')}_{len(modules)}"
        (tmp_path / f"{module}.py").write_text(text, encoding="utf-8")
        modules.append(module)
        return distribution, EntryPoint("metrics", module, "harness")

    yield write_plugin
    for module in modules:
        sys.modules.pop(module, None)


@pytest.fixture
def install_distribution(tmp_path, monkeypatch):
    """Return a function that installs a distribution (metadata only) with these entry points."""
    monkeypatch.syspath_prepend(tmp_path)

    def install_distribution(name, entry_points):
        folder = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
        (folder / "entry_points.txt").write_text(entry_points, encoding="utf-8")

    return install_distribution


# -- installed entry points -------------------------------------------------------------------------------------------


def test_own_entry_points_come_first_then_the_others_by_name(install_distribution):
    install_distribution("a-first", "[harness]\nb = x\na = y\n")
    installed = [(name, entry.name) for name, entry in installed_entry_points()]
    own = [pair for pair in installed if pair[0] == CORE_DISTRIBUTION]
    others = {"presets"}  # not components
    assert {name for _, name in own} == (set(COMPONENT_TYPES) - {"schedulers"}) | others, "optimizers has both"
    assert installed[: len(own)] == own
    assert [pair for pair in installed if pair[0] == "a-first"] == [("a-first", "a"), ("a-first", "b")]


def test_distribution_names_are_normalized(install_distribution):
    install_distribution("My_Plugin", "[harness]\nx = y\n")
    assert "my-plugin" in [name for name, _ in installed_entry_points()]


def test_entry_points_of_other_groups_are_ignored(install_distribution):
    install_distribution("other", "[console_scripts]\nx = y:z\n\n[harness.more]\nx = y\n")
    assert "other" not in [name for name, _ in installed_entry_points()]


@pytest.mark.parametrize(("value", "included"), [("1", False), ("", True), ("0", True)])
def test_third_party_plugins_can_be_excluded(install_distribution, monkeypatch, value, included):
    install_distribution("other", "[harness]\nx = y\n")
    monkeypatch.setenv("HARNESS_NO_THIRD_PARTY", value)
    names = [name for name, _ in installed_entry_points()]
    assert ("other" in names) is included
    assert CORE_DISTRIBUTION in names


def test_the_metadata_of_other_distributions_is_not_read(install_distribution, monkeypatch):
    install_distribution("other", "[console_scripts]\nx = y:z\n")
    install_distribution("plugin", "[harness]\nx = y\n")
    read = []

    class Recorded(PathDistribution):
        @property
        def metadata(self):
            read.append(super().metadata["Name"])
            return super().metadata

    found = list(distributions())
    monkeypatch.setattr(
        plugin_entry_points, "distributions", lambda: [Recorded(distribution._path) for distribution in found]
    )
    assert "plugin" in [name for name, _ in installed_entry_points()]
    assert "plugin" in read
    assert "other" not in read
    assert "torch" not in read


# -- discovery --------------------------------------------------------------------------------------------------------


def test_a_component_is_registered_with_the_distribution_that_provides_it(write_plugin):
    registry = discover_plugins([write_plugin("acme", HOOK.replace("NAME", "count"))])
    assert list(registry.components["metrics"]) == ["count"]
    assert registry.origins == {("metrics", "count"): "acme"}
    assert registry.broken_plugins == []


def test_a_module_with_two_entry_points_is_registered_once(write_plugin):
    name, entry = write_plugin("acme", HOOK.replace("NAME", "count"))
    second_entry = EntryPoint("sources", entry.value, "harness")
    registry = discover_plugins([(name, entry), (name, second_entry)])
    assert list(registry.components["metrics"]) == ["count"]
    assert registry.broken_plugins == []
    assert registry.manager.has_plugin(f"acme:{entry.value}")


@pytest.mark.parametrize("first", ["acme", "zeta"])
def test_of_two_components_with_one_name_each_has_its_long_name(write_plugin, first):
    second = {"acme": "zeta", "zeta": "acme"}[first]
    registry = discover_plugins([write_plugin(name, HOOK.replace("NAME", "count")) for name in (first, second)])
    assert set(registry.components["metrics"]) == {"acme/count", "zeta/count"}
    assert registry.origins["metrics", "acme/count"] == "acme"
    with pytest.raises(HarnessError) as caught:
        registry.get("metrics", "count")
    assert caught.value.what == "several plugins provide 'count'"
    assert caught.value.hint == f"write {first}/count or {second}/count"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("builtin_first", [True, False])
def test_a_built_in_keeps_its_name(write_plugin, builtin_first):
    registry = Registry()
    builtin, other = Component("B.", "collections:Counter"), Component("O.", "collections:Counter")
    added = [(builtin, CORE_DISTRIBUTION), (other, "acme")]
    for component, distribution in added if builtin_first else reversed(added):
        registry.add("metrics", "count", component, distribution)
    assert registry.components["metrics"] == {"count": builtin, "acme/count": other}
    assert registry.clashes == {("metrics", "count"): ("acme/count",)}
    assert registry.aliases("metrics") == {"harness-sft/count": "count"}


def test_a_name_is_free_again_when_the_other_plugin_turns_out_broken(write_plugin):
    good = write_plugin("acme", HOOK.replace("NAME", "count"))
    bad = write_plugin("zeta", HOOK.replace("NAME", "count").replace("return {", "return {'bad': 1, "))
    both_names = write_plugin("zeta", HOOK.replace("NAME", "count"))
    registry = discover_plugins([good, both_names, bad])
    assert list(registry.components["metrics"]) == ["count"]
    assert registry.origins == {("metrics", "count"): "acme"}
    assert registry.clashes == {}
    assert [plugin.distribution for plugin in registry.broken_plugins] == ["zeta"]


def test_one_distribution_cannot_provide_a_name_twice(write_plugin):
    entries = [write_plugin("acme", HOOK.replace("NAME", "count")) for _ in range(2)]
    registry = discover_plugins(entries)
    assert "is provided twice by this distribution" in str(registry.broken_plugins[0])
    assert registry.components["metrics"] == {}


@pytest.mark.parametrize("api", [0, 2, 99])
def test_a_component_of_another_interface_version_is_refused(write_plugin, api):
    text = HOOK.replace("NAME", "count").replace('Counter")', f'Counter", api={api})')
    registry = discover_plugins([write_plugin("acme", text)])
    (broken,) = registry.broken_plugins
    assert f"is written for version {api} of the plugin interface; this harness supports 1" in broken.error


def test_plugins_can_be_disabled_by_distribution(install_distribution, monkeypatch):
    install_distribution("Other_Plugin", "[harness]\nx = y\n")
    install_distribution("third", "[harness]\nx = y\n")
    monkeypatch.setenv("HARNESS_DISABLE_PLUGINS", "other.plugin, third")
    names = {name for name, _ in installed_entry_points()}
    assert "other-plugin" not in names
    assert "third" not in names
    assert CORE_DISTRIBUTION in names


@pytest.mark.parametrize(
    ("name", "problem"), [("nothing", "no plugin distribution 'nothing'"), (CORE_DISTRIBUTION, "cannot be")]
)
def test_only_an_installed_plugin_can_be_disabled(monkeypatch, name, problem):
    monkeypatch.setenv("HARNESS_DISABLE_PLUGINS", name)
    with pytest.raises(HarnessError, match=problem):
        installed_entry_points()


def test_components_of_two_kinds_may_have_the_same_name(write_plugin):
    mode_hook = HOOK.replace("harness_metrics", "harness_modes")
    registry = discover_plugins(
        [write_plugin("acme", HOOK.replace("NAME", "x")), write_plugin("zeta", mode_hook.replace("NAME", "x"))]
    )
    assert registry.origins == {("metrics", "x"): "acme", ("modes", "x"): "zeta"}


BROKEN = {
    "raises at import": ("1 / 0", "ZeroDivisionError"),
    "leaves at import": ("import sys\nsys.exit('bye')", "SystemExit: bye"),
    "imports what is not there": ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    "is not Python": ("def", "SyntaxError"),
    "misspells a hook": (HOOK.replace("harness_metrics", "harness_metrix"), "unknown hook 'harness_metrix'"),
    "has a hook with arguments": (HOOK.replace("harness_metrics()", "harness_metrics(model)"), "model"),
    "raises when listed": (
        "from harness import hookimpl\n@hookimpl\ndef harness_modes():\n    raise KeyError('x')",
        "KeyError",
    ),
    "leaves when listed": (
        "import sys\nfrom harness import hookimpl\n@hookimpl\ndef harness_modes():\n    sys.exit(3)",
        "SystemExit: 3",
    ),
    "returns a list": (
        "from harness import hookimpl\n@hookimpl\ndef harness_modes():\n    return ['x']",
        "AttributeError",
    ),
    "returns nothing": ("from harness import hookimpl\n@hookimpl\ndef harness_modes():\n    pass", "AttributeError"),
    "returns no component": (
        "from harness import hookimpl\n@hookimpl\ndef harness_modes():\n    return {'x': 'y:z'}",
        "is a str",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_is_reported_and_the_others_are_registered(write_plugin, kind):
    text, error = BROKEN[kind]
    bad = write_plugin("bad", text.replace("NAME", "lost"))
    registry = discover_plugins([bad, write_plugin("good", HOOK.replace("NAME", "count"))])
    assert list(registry.origins) == [("metrics", "count")]
    assert [(broken.distribution, broken.module) for broken in registry.broken_plugins] == [("bad", bad[1].value)]
    assert error in registry.broken_plugins[0].error
    assert "\n" not in str(registry.broken_plugins[0])
    assert not registry.manager.has_plugin(f"bad:{bad[1].value}")


def test_a_plugin_with_one_invalid_component_is_withdrawn_completely(write_plugin):
    text = """
from harness import Component, hookimpl

@hookimpl
def harness_metrics():
    return {"good": Component("Counts.", "collections:Counter"), "bad": Component("Counts.", "collections")}

@hookimpl
def harness_on_event(event):
    raise AssertionError("a withdrawn plugin receives no events")
"""
    registry = discover_plugins([write_plugin("acme", text)])
    assert registry.components["metrics"] == {}
    assert registry.origins == {}
    assert "write 'package.module:factory'" not in registry.broken_plugins[0].error
    assert "factory is 'collections'" in registry.broken_plugins[0].error
    registry.emit(events.WarningRaised(text="x"))


@pytest.mark.parametrize("heavy", ["pandas", "mlflow"])
@pytest.mark.parametrize("import_in", ["module", "hook"])
def test_a_plugin_that_imports_a_heavy_package_when_it_is_loaded_is_rejected(
    write_plugin, monkeypatch, heavy, import_in
):
    write_plugin("stand-in", "", module=heavy)
    monkeypatch.setitem(sys.modules, heavy, types.ModuleType(heavy))
    monkeypatch.delitem(sys.modules, heavy)
    text = HOOK.replace("NAME", "count")
    text = (
        f"import {heavy}\n{text}"
        if import_in == "module"
        else text.replace("    return", f"    import {heavy}\n    return")
    )
    registry = discover_plugins([write_plugin("acme", text)])
    assert registry.components["metrics"] == {}
    assert f"loading it imports {heavy}" in registry.broken_plugins[0].error


def test_heavy_packages_are_those_of_the_import_budget():
    assert set(HEAVY_PACKAGES) == {
        "torch", "numpy", "pandas", "transformers", "trl", "peft", "datasets", "evaluate", "mlflow",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("1 / 0", ZeroDivisionError),
        (HOOK.replace("return", "return 1 / 0,"), ZeroDivisionError),
        (HOOK.replace("collections:Counter", "collections"), HarnessError),
    ],
)
def test_an_error_in_an_own_plugin_is_raised(write_plugin, text, error):
    with pytest.raises(error):
        discover_plugins([write_plugin(CORE_DISTRIBUTION, text)])


# -- declarations -----------------------------------------------------------------------------------------------------

TEXT = {"type": "string", "description": "A text."}
INVALID = {
    "no schema": ({"options": {"x": {**TEXT, "type": "strin", "default": ""}}}, "not a JSON Schema"),
    "an option that is not an object": ({"options": {"x": True}}, "the option 'x' is True"),
    "no description": ({"options": {"x": {"type": "string", "default": ""}}}, "'x' has no description"),
    "no default and not required": ({"options": {"x": TEXT}}, "'x' has neither a default nor is required"),
    "a default of the wrong type": ({"options": {"x": {**TEXT, "default": 3}}}, "the default of 'x' is invalid"),
    "a default out of range": (
        {"options": {"x": {"type": "number", "minimum": 1, "default": 0, "description": "X."}}},
        "the default of 'x' is invalid",
    ),
    "a required option not declared": ({"required": ("x",)}, "'x' is not declared"),
    "no factory": ({"factory": "package.module"}, "factory is 'package.module'"),
    "a usual range of nothing": ({"typical_ranges": {"train.lerning_rate": (0, 1)}}, "'train.lerning_rate'"),
}


@pytest.mark.parametrize("kind", INVALID)
def test_an_invalid_declaration_is_rejected_with_its_component(kind):
    fields, message = INVALID[kind]
    with pytest.raises(HarnessError) as caught:
        Registry().add("metrics", "count", Component(**{"summary": "Counts.", "factory": "a:b", **fields}), "acme")
    assert caught.value.where == "acme: metric 'count'"
    assert message in caught.value.what


@pytest.mark.parametrize("option", ["form", "columns", "limit", "held_out"])
def test_a_source_may_not_declare_an_option_that_every_source_has(option):
    component = Component("Reads.", "a:b", {option: TEXT}, (option,))
    with pytest.raises(HarnessError, match="a key of the core"):
        Registry().add("sources", "mine", component, "acme")
    Registry().add("metrics", "mine", component, "acme")


def test_a_valid_declaration_is_registered():
    registry = Registry()
    options = {"x": TEXT, "y": {"type": ["number", "null"], "default": None, "description": "Y."}}
    component = Component("Counts.", "a:b", options, ("x",), {"train.learning_rate": (1e-4, 1e-3)})
    registry.add("metrics", "count", component, "acme")
    assert registry.get("metrics", "count") is component


# -- lookup and creation ----------------------------------------------------------------------------------------------


def test_an_unknown_name_gives_the_most_similar_name(small_registry):
    with pytest.raises(HarnessError, match="did you mean 'overlap'"):
        small_registry.get("metrics", "overlapp")


def test_an_unknown_name_without_a_similar_name_gives_all_names(small_registry):
    with pytest.raises(HarnessError) as caught:
        small_registry.get("modes", "xyz")
    assert caught.value.hint == "available: continual, curriculum, domain, general, mixed"


def test_an_unknown_name_gives_the_broken_plugins_that_may_provide_it(write_plugin):
    registry = discover_plugins([write_plugin("bad", "1 / 0", module="made_bad")])
    with pytest.raises(HarnessError) as caught:
        registry.get("metrics", "mine")
    assert "bad (made_bad): ZeroDivisionError" in caught.value.hint


def test_a_factory_receives_its_own_options_and_not_those_of_the_core(small_registry, monkeypatch):
    module = types.ModuleType("made_source")
    received = {}

    class Lines(Source):
        def __init__(self, **options):
            received.update(options)

        def records(self):
            return iter(())

    module.Source = Lines
    monkeypatch.setitem(sys.modules, "made_source", module)
    small_registry.components["sources"]["lines"] = Component("R.", "made_source:Source", {"path": TEXT}, ("path",))
    small_registry.create("sources", "lines", {"path": "x", "limit": None, "held_out": 0, "form": "auto"})
    assert received == {"path": "x"}


@pytest.mark.parametrize(
    ("factory", "cause"),
    [
        ("no_such_module:X", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("collections:NoSuchThing", "AttributeError"),
        ("made_bad_one:X", "ZeroDivisionError"),
    ],
)
def test_an_import_error_of_a_component_names_its_distribution(write_plugin, factory, cause):
    write_plugin("bad", "1 / 0", module="made_bad_one")
    registry = Registry()
    registry.add("metrics", "count", Component("Counts.", factory), "acme")
    with pytest.raises(HarnessError) as caught:
        registry.create("metrics", "count", {})
    assert caught.value.where == "metric 'count' of acme"
    assert f"cannot import '{factory}': {cause}" in caught.value.what


# -- listeners --------------------------------------------------------------------------------------------------------

LISTENER = """
from harness import hookimpl
received = []

@hookimpl
def harness_on_event(event):
    received.append(event)
    {then}
"""


LAST = events.RunFailed(error="stopped")  # emitting it waits for the listeners


def test_a_failing_listener_is_reported_once_and_removed(write_plugin):
    bad = write_plugin("bad", LISTENER.format(then="raise SystemExit('full')"))
    good = write_plugin("good", LISTENER.format(then=""))
    registry = discover_plugins([bad, good])
    first, second = events.ArmsPrepared(stage_index=1), events.ArmsPrepared(stage_index=2)
    for event in (first, LAST, second, LAST):
        registry.emit(event)
    assert sys.modules[bad[1].value].received == [first]
    received = sys.modules[good[1].value].received
    assert [event for event in received if not isinstance(event, events.WarningRaised)] == [first, LAST, second, LAST]
    (warning,) = [event for event in received if isinstance(event, events.WarningRaised)]
    assert warning.text.startswith("the listener of bad:")
    assert warning.text.endswith("is ignored from now on: SystemExit: full")


def test_a_listener_cannot_change_an_event(write_plugin):
    then = "event.metrics['loss'] = 0.0"
    registry = discover_plugins([write_plugin("bad", LISTENER.format(then=then))])
    metrics = {"loss": 1.0}
    for event in (events.StepLogged(step=1, metrics=metrics), LAST, LAST):
        registry.emit(event)
    assert metrics == {"loss": 1.0}
    assert registry._plugin_listeners.popitem()[1].failure.startswith("TypeError: 'mappingproxy' object")


def test_a_slow_listener_delays_the_run_for_its_time_limit_alone():
    released = threading.Event()
    listener = PluginListener("slow", lambda event: released.wait(60), time_limit=0.05)
    started = time.monotonic()
    listener.send(events.ArmsPrepared())
    listener.send(LAST)
    assert time.monotonic() - started < 30
    assert "take longer than 0.05 s" in listener.failure
    released.set()


def test_lists_and_nested_dicts_of_an_event_are_read_only():
    event = events.DataPrepared(
        counts={"s": {"read": 1}}, stages=[], shares=[{"s": {"rows": 1.0}}], digests={}, template="t"
    )
    copy = read_only(event)
    assert type(copy) is events.DataPrepared
    assert copy.stages == ()
    with pytest.raises(TypeError):
        copy.counts["s"]["read"] = 2
    with pytest.raises(TypeError):
        copy.shares[0]["s"]["rows"] = 0.0
    assert event.counts == {"s": {"read": 1}}


def test_a_hook_without_its_mark_breaks_the_plugin(write_plugin):
    registry = discover_plugins([write_plugin("acme", HOOK.replace("@hookimpl", "").replace("NAME", "count"))])
    assert registry.components["metrics"] == {}
    (broken,) = registry.broken_plugins
    assert broken.error.endswith("harness_metrics: is not registered as a hook")


@pytest.mark.parametrize("code", ["raise SystemExit(3)", "raise OSError(28, 'No space', 'file')"])
@pytest.mark.parametrize("place", ["module", "factory"])
def test_a_component_that_ends_the_program_is_named(write_plugin, monkeypatch, code, place):
    indented = f"    {code}" if place == "factory" else f"    pass\n{code}"
    _, entry = write_plugin("acme", f"def build():\n{indented}\n")
    registry = Registry()
    registry.add("metrics", "stop", Component("Stops.", f"{entry.value}:build"), "acme")
    with pytest.raises(HarnessError, match=r"metric 'stop' of acme"):
        registry.create("metrics", "stop", {})


def test_a_frozen_data_class_can_be_a_component(write_plugin):
    text = """
from dataclasses import dataclass
from harness import Source

@dataclass(frozen=True)
class Fixed(Source):
    rows: int

    def records(self):
        raise KeyError("z")
"""
    _, entry = write_plugin("acme", text)
    registry = Registry()
    option = {"type": "integer", "default": 3, "description": "Rows."}
    registry.add("sources", "fixed", Component("Fixed.", f"{entry.value}:Fixed", {"rows": option}), "acme")
    source = registry.create("sources", "fixed", {"rows": 5})
    assert source.rows == 5
    with pytest.raises(ComponentError, match=r"source 'fixed' of acme, records: KeyError: 'z'"):
        list(source.records())


def test_the_version_of_the_interface_is_checked_first():
    component = Component("Other.", "no factory", options={"x": {"type": "not a type"}}, api=2)
    with pytest.raises(HarnessError, match="is written for version 2 of the plugin interface"):
        Registry().add("metrics", "other", component, "acme")


def test_a_plugin_that_is_imported_for_long_is_named(write_plugin, monkeypatch, capsys):
    monkeypatch.setattr(registry_module, "SLOW_IMPORT_SECONDS", 0.01)
    entry = write_plugin("harness-slow", "import threading, time\nend = time.monotonic() + 5\n"
        "while time.monotonic() < end and not NAMED.is_set(): time.sleep(0.01)\n" + HOOK)  # fmt: skip
    named = threading.Event()
    monkeypatch.setattr("builtins.NAMED", named, raising=False)
    monkeypatch.setattr(registry_module, "printable", lambda text: named.set() or text)
    assert "NAME" in discover_plugins([entry]).components["metrics"]
    assert named.is_set()
    assert "the plugin harness-slow is still being imported" in capsys.readouterr().err


def test_the_options_of_built_in_components_have_valid_schemas_and_defaults():
    found = discover_plugins()
    checked = 0
    for kind, components in found.components.items():
        for name, component in components.items():
            validate_option_schemas(component, f"{kind} {name}")
            checked += len(component.options)
    assert checked > 100
